"""The order of an operation: its check, its events, and the change of the file.

The order is written down once, as a generator without I/O. There are two drivers: a
task that waits for the answers, and `InlineDrive`, which the last answer calls.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from inaccfs.shim.frames import Punched
from inaccfs.shim.notifiers import Notice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from inaccfs.semantics import Plan
    from inaccfs.semantics.attributes import Kinds
    from inaccfs.shim.call import PageRange
    from inaccfs.shim.frames import Extent
    from inaccfs.shim.notifiers import Notifiers


class Changed(NamedTuple):
    """The result of a change of the file."""

    # Which fetched pages were removed, and which have moved.
    punched: Punched = Punched([], [])
    # Why nothing has changed: an error of the backing, or a bug.
    refusal: Exception | None = None


Step: TypeAlias = "Callable[[], Notice] | None"
"""Builds the notice of the next event. Call it only once the notifier list is locked:
what it reports may have changed during the wait for the lock. None means: change the
file now.
"""

Steps: TypeAlias = "Generator[Step, Changed | None, Exception | None]"
"""Yields each step; goes on when all notifiers have answered that event. After None,
which comes once at most, it is sent the result. Returns why the change was refused.
"""


def in_order(
    plan: Plan,
    start: int,
    end: int,
    frames: Callable[[], Sequence[Extent]] | None = None,
    *,
    check: Callable[[], None] | None = None,
    settle: Callable[[Changed], None] | None = None,
    kinds: Callable[[int, int], Kinds | None] = lambda start, end: None,
    zaps: PageRange | None = None,
    change_last: bool = False,
) -> Steps:
    """The steps of one operation on pages from *start* to *end*.

    *check* is called before the first event. It may refuse the operation with an
    `OSError`; then no notifier gets an event. What it checks must still hold when the
    file is changed, so the driver must lock the notifier list for the whole call.

    *frames* finds the frames that are about to go, where events report them; *kinds*
    finds the kinds of these pages, where events carry them. *zaps* are the pages to
    zap, if these are fewer.
    *settle* is called with the result as soon as the file has been changed. With
    *change_last* the file changes after the last event, which is therefore sent even if
    the change fails.
    """
    if check is not None:
        try:
            check()
        except OSError as exc:
            return exc
    if (before := plan.before) is not None:
        yield lambda: Notice(
            before,
            start,
            end,
            None if frames is None else frames(),
            kinds(start, end),
            zaps,
        )
    if change_last and plan.after is not None:
        now = None if frames is None else frames()
        yield partial(Notice, plan.after, start, end, now, kinds(start, end), zaps)
    changed = yield None
    assert changed is not None
    if settle is not None:
        settle(changed)
    if change_last or plan.after is None:
        return changed.refusal
    if changed.refusal is None or plan.after_failure:
        removed = None if frames is None else changed.punched.removed
        found = kinds(start, end)
        yield partial(Notice, plan.after, start, end, removed, found, zaps)
    return changed.refusal


async def drive(
    steps: Steps,
    notifiers: Notifiers,
    change: Callable[[], Awaitable[Changed]],
    *,
    whole_call: bool,
    cause: int = 0,
) -> Exception | None:
    """Take all steps in this task; returns the error of the change, if any.

    The notifier list is locked for the *whole_call*, or for each event by itself.
    *cause* is for traces, see `inaccfs.shim.trace.Happened`.
    """
    if whole_call:
        async with notifiers.fixed():
            return await drive_locked(steps, notifiers, change, cause=cause)

    async def tell_in_turn(make: Callable[[], Notice]) -> None:
        async with notifiers.fixed():
            await notifiers.tell(make(), cause)

    return await _take(steps, notifiers, change, tell_in_turn)


async def drive_locked(
    steps: Steps,
    notifiers: Notifiers,
    change: Callable[[], Awaitable[Changed]],
    *,
    cause: int = 0,
) -> Exception | None:
    """As `drive`, of a *whole_call* whose caller has locked the notifier list."""

    async def tell(make: Callable[[], Notice]) -> None:
        await notifiers.tell(make(), cause)

    return await _take(steps, notifiers, change, tell)


async def _take(
    steps: Steps,
    notifiers: Notifiers,
    change: Callable[[], Awaitable[Changed]],
    tell: Callable[[Callable[[], Notice]], Awaitable[None]],
) -> Exception | None:
    changed: Changed | None = None
    with closing(steps):
        while True:
            try:
                step = steps.send(changed)
            except StopIteration as stop:
                refusal: Exception | None = stop.value
                return refusal
            changed = None
            if step is None:
                try:
                    changed = await change()
                except Exception as exc:
                    # Do this even for a bug: a start that was sent must have its end.
                    changed = Changed(refusal=exc)
            elif notifiers:
                await tell(step)


class Evictor(Protocol):
    """Evicts late notifiers that no task waits for: `AckTimeouts`."""

    # Whether it is running.
    running: bool

    def watch(self, notifiers: Notifiers, sequence: int) -> None:
        """Begin the timeout of event *sequence*."""

    def forget(self, notifiers: Notifiers) -> None:
        """End the timeout: all have answered."""


Done: TypeAlias = "Callable[[Exception | None], None]"
"""Called when an operation is complete, with its error, if any. Never raises."""


class InlineDrive:
    """Takes steps without a task: up to an event, and on when it is answered."""

    __slots__ = ("_cause", "_change", "_done", "_notifiers", "_steps", "_timeouts")

    def __init__(
        self,
        steps: Steps,
        notifiers: Notifiers,
        timeouts: Evictor,
        change: Callable[[], Changed],
        done: Done,
        cause: int = 0,
    ) -> None:
        """*notifiers* must have been taken; they are released before *done* is called.

        *done* gets the error of the change, if any. *cause* is for traces.
        """
        self._steps: Final = steps
        self._notifiers: Final = notifiers
        self._timeouts: Final = timeouts
        self._change: Final = change
        self._done: Final = done
        self._cause: Final = cause

    def go_on(self) -> None:
        """Take all steps up to the next event that needs answers. Never raises."""
        self._timeouts.forget(self._notifiers)
        changed: Changed | None = None
        failure: Exception | None
        try:
            while True:
                step = self._steps.send(changed)
                changed = self._changed() if step is None else None
                if step is None:
                    continue
                sequence = self._notifiers.begin(step(), self.go_on, self._cause)
                if sequence is not None:
                    self._timeouts.watch(self._notifiers, sequence)
                    return
        except StopIteration as stop:
            failure = stop.value
        except Exception as exc:
            # It fails the fallocate(2), not the peer whose answer has led here.
            failure = exc
            self._steps.close()
        self._notifiers.release()
        self._done(failure)

    def _changed(self) -> Changed:
        try:
            return self._change()
        except Exception as exc:
            # Do this even for a bug: a start that was sent must have its end.
            return Changed(refusal=exc)


async def no_change() -> Changed:
    """The change for `drive` where events report something that changes nothing."""
    return Changed()
