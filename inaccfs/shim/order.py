"""In which order a file is changed and its notifiers are told of it.

The order is written down once, as a generator without I/O. Who drives it decides how
the answers are waited for: in a task, or by a call when the last has come.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from inaccfs.semantics import Plan
    from inaccfs.shim.frames import Extent
    from inaccfs.shim.notifiers import Notifiers


class Part(NamedTuple):
    """The pages that a change of a file concerns, each from a start to an end."""

    # All that have something of it: who has one of them is told.
    told: tuple[int, int]
    # Those that a punch takes. What lies in the change only in part is cleared there.
    gone: tuple[int, int]

    @classmethod
    def of(cls, offset: int, length: int, page_size: int) -> Part:
        """Of a range in bytes."""
        end = offset + length
        return cls(
            (offset // page_size, -(-end // page_size)),
            (-(-offset // page_size), end // page_size),
        )


class Notice(NamedTuple):
    """What notifiers are told, in pages of the file."""

    event: str
    start: int
    end: int
    # Those that go, where the semantics tell them.
    frames: Sequence[Extent] | None = None


class Changed(NamedTuple):
    """What has come of a change of the file."""

    # Fetched pages that are elsewhere now.
    moved: Sequence[Extent] = ()
    # Those that have gone.
    removed: Sequence[Extent] = ()
    # Why there was none: the backing's errno, or a bug.
    refusal: Exception | None = None


Step: TypeAlias = "Callable[[], Notice] | None"
"""What makes a notice, to be called when the list of notifiers is held: much may have
happened while that was waited for. None stands for the change.
"""

Steps: TypeAlias = "Generator[Step, Changed | None, Exception | None]"
"""Yields what is to be told, to go on when all have answered; and None, once, for the
change, to be sent what has come of it. Returns why the change was refused, if it was.
"""


def in_order(
    plan: Plan,
    start: int,
    end: int,
    frames: Callable[[], Sequence[Extent]] | None = None,
) -> Steps:
    """The steps of one fallocate(2). *frames* finds what is to go, if that is told."""
    if (before := plan.before) is not None:
        yield lambda: Notice(before, start, end, None if frames is None else frames())
    changed = yield None
    assert changed is not None
    if plan.after is not None and (changed.refusal is None or plan.after_failure):
        gone = None if frames is None else changed.removed
        yield partial(Notice, plan.after, start, end, gone)
    return changed.refusal


async def drive(
    steps: Steps,
    notifiers: Notifiers,
    change: Callable[[], Awaitable[Changed]],
    *,
    whole_call: bool,
) -> Exception | None:
    """Take all steps in this task; return what the change was refused with.

    The list of notifiers is held for the *whole_call*, or for each walk of it.
    """

    async def tell(make: Callable[[], Notice]) -> None:
        await notifiers.tell(make())

    if whole_call:
        async with notifiers.fixed():
            return await _take(steps, notifiers, change, tell)

    async def tell_in_turn(make: Callable[[], Notice]) -> None:
        async with notifiers.fixed():
            await tell(make)

    return await _take(steps, notifiers, change, tell_in_turn)


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
                    # Be it a bug: who has been told of a start is told of the end.
                    changed = Changed(refusal=exc)
            elif notifiers:
                await tell(step)


class Evictor(Protocol):
    """Evicts notifiers that do not answer in time where no task waits: `Patience`."""

    # Whether it does so now.
    running: bool

    def watch(self, notifiers: Notifiers, sequence: int) -> None:
        """Event *sequence* is to be answered."""

    def forget(self, notifiers: Notifiers) -> None:
        """It has been."""


def drive_at_once(
    steps: Steps,
    notifiers: Notifiers,
    patience: Evictor,
    change: Callable[[], Changed],
    done: Callable[[Exception | None], None],
) -> None:
    """Take steps until one is to be waited for, and on from there when it is over.

    `Notifiers.take` has been called; `release` is called before *done*, which gets what
    the change was refused with. Never raises.
    """
    patience.forget(notifiers)
    changed: Changed | None = None
    failure: Exception | None
    try:
        while True:
            step = steps.send(changed)
            changed = None
            if step is None:
                try:
                    changed = change()
                except Exception as exc:
                    # See _take().
                    changed = Changed(refusal=exc)
                continue
            go_on = partial(drive_at_once, steps, notifiers, patience, change, done)
            if (sequence := notifiers.begin(step(), go_on)) is not None:
                patience.watch(notifiers, sequence)
                return
    except StopIteration as stop:
        failure = stop.value
    except Exception as exc:
        # For whoever has called fallocate(2), and not for the peer whose answer is
        # being dealt with.
        failure = exc
        steps.close()
    notifiers.release()
    done(failure)


async def no_change() -> Changed:
    """For `drive`, where notifiers are told of what changes nothing."""
    return Changed()
