"""One file's notifiers under each driver, which record what happens."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest
import trio
import trio.testing

from inaccfs.semantics import Plan
from inaccfs.semantics.rules import (
    INVALIDATE,
    INVALIDATE_END,
    INVALIDATE_START,
    POPULATE,
)
from inaccfs.shim.acktimeouts import AckTimeouts
from inaccfs.shim.notifiers import Notifiers
from inaccfs.shim.order import Changed, InlineDrive, drive
from inaccfs.shim.trace import FileTrace, Trace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from inaccfs.shim.notifiers import Notice
    from inaccfs.shim.order import Steps

ACK_SECONDS = 10.0

How = Literal["each walk", "the whole call", "at once"]
HOWS: tuple[How, ...] = ("each walk", "the whole call", "at once")

AFTER = Plan(after=INVALIDATE)
AFTER_FAILURE = Plan(after=INVALIDATE, after_failure=True)
BEFORE = Plan(before=INVALIDATE)
BRACKET = Plan(INVALIDATE_START, INVALIDATE_END, after_failure=True)
SILENT = Plan()
POPULATED = Plan(after=POPULATE)

NO_SPACE = OSError(errno.ENOSPC, "no space")


@dataclass(eq=False)
class Listener:
    """A notifier that records its events, and reacts as a test wants."""

    world: World
    name: str = ""
    # Called when it gets an event.
    then: Callable[[Listener, int], None] = lambda listener, sequence: None
    sequences: list[int] = field(default_factory=list)
    evicted_at: float | None = None

    who = number = 0

    def tell(self, notice: Notice, sequence: int | None) -> None:
        assert sequence is not None
        self.world.log.append(f"{self.name}{notice.event}")
        self.sequences.append(sequence)
        self.then(self, sequence)

    def answer(self) -> None:
        self.world.notifiers.answer(self, self.sequences[-1])

    def evict(self) -> None:
        self.evicted_at = trio.current_time()


@dataclass
class World:
    """The notifiers of one file, what evicts them, and what has happened."""

    notifiers: Notifiers
    ack_timeouts: AckTimeouts
    log: list[str] = field(default_factory=list)
    # The result of the change, or its exception.
    changed: Changed | Exception = field(default_factory=Changed)

    async def listener(
        self,
        name: str = "",
        then: Callable[[Listener, int], None] = lambda listener, sequence: None,
    ) -> Listener:
        made = Listener(self, name, then)
        await self.notifiers.register(made)
        return made

    def change(self) -> Changed:
        self.log.append("change")
        if isinstance(self.changed, Exception):
            raise self.changed
        return self.changed

    async def drive(self, how: How, steps: Steps) -> Exception | None:
        """Take all steps; return the change's refusal."""
        if how == "at once":
            over = trio.Event()
            failures: list[Exception | None] = []

            def done(failure: Exception | None) -> None:
                failures.append(failure)
                over.set()

            assert self.notifiers.take()
            InlineDrive(
                steps, self.notifiers, self.ack_timeouts, self.change, done
            ).go_on()
            await over.wait()
            await trio.testing.wait_all_tasks_blocked()
            (failure,) = failures
            return failure

        async def change() -> Changed:
            await trio.lowlevel.checkpoint()
            return self.change()

        whole = how == "the whole call"
        return await drive(steps, self.notifiers, change, whole_call=whole)

    def assert_free(self) -> None:
        """The list is unlocked, and no answer is awaited."""
        assert self.notifiers.take()
        self.notifiers.release()
        assert not self.notifiers.running
        assert all(self.notifiers.waiting(one) is None for one in self.notifiers)


@asynccontextmanager
async def new_world() -> AsyncIterator[World]:
    """A world without notifiers, whose timeouts are watched."""
    made = World(Notifiers(FileTrace(Trace()), ACK_SECONDS), AckTimeouts(ACK_SECONDS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.ack_timeouts.run)
        await trio.testing.wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


def answers(listener: Listener, sequence: int) -> None:
    """Answer at once, while the event is being sent."""
    listener.world.notifiers.answer(listener, sequence)


def goes(listener: Listener, sequence: int) -> None:
    """The notifier's connection breaks while the event is being sent."""
    listener.world.notifiers.drop(listener)


def fails(listener: Listener, sequence: int) -> None:
    raise RuntimeError("a bug of tell()")


hows = pytest.mark.parametrize("how", HOWS)
