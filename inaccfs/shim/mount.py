"""What the files of a mount have in common."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from inaccfs.shim.counters import Counters
from inaccfs.shim.headroom import Headroom
from inaccfs.shim.loop import TRIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.semantics import Plan, Semantics
    from inaccfs.shim.allocator import Allocator
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.frames import FrameSource
    from inaccfs.shim.loop import Event, Loop
    from inaccfs.shim.order import Evictor
    from inaccfs.shim.turn import Turn


class Space(Protocol):
    """What the backing gives back in the background: see fuse/closing."""

    # How many large files have been closed so far.
    freed: int

    @property
    def busy(self) -> bool:
        """Whether memory is on its way back."""

    async def wait_idle(self) -> None:
        """Wait until all of it is back."""


def _nothing(file: InaccessibleFile, offset: int, length: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Worker threads. Each kind of work has its own, so that none waits for another.

    There are two more kinds: see fuse/closing, and shim/census.
    """

    # Changes of the backing that take long, one a file: fallocate(2), ftruncate(2).
    changes: trio.CapacityLimiter = field(
        default_factory=partial(trio.CapacityLimiter, 32)
    )
    # What get-pfn and memory-failure want to know of many pages, or of huge ones.
    fetches: trio.CapacityLimiter = field(
        default_factory=partial(trio.CapacityLimiter, 16)
    )


@dataclass(frozen=True, slots=True)
class Shim:
    """What the files of a mount have in common."""

    semantics: Semantics
    # In bytes; see Backing.page_size.
    page_size: int
    # Makes long allocations interruptible, and those that the OOM killer may end.
    allocator: Allocator | None = None
    # How much may be allocated without it.
    headroom: Headroom = field(default_factory=Headroom)
    # Where page frame numbers come from; without it there are none to get.
    frames: FrameSource | None = None
    counters: Counters = field(default_factory=Counters)
    threads: Threads = field(default_factory=Threads)
    # What all of this runs in.
    loop: Loop = TRIO
    # Called before the backing removes or adds pages of which notifiers are told; with
    # the file, and a range in bytes. If they are told of a start, they have answered.
    on_change: Callable[[InaccessibleFile, int, int], object] = _nothing
    # How long a notifier may take to answer.
    ack_seconds: float = 10.0
    # The turns of the files that run a long operation.
    busy: set[Turn] = field(default_factory=set)
    # Where memory is on its way back: who finds no space asks once more.
    space: Space | None = None
    # Who evicts the silent where no task waits; without it tasks wait.
    patience: Evictor | None = None
    # Whether the rules say who may get which pages, and when.
    guards_pages: bool = field(init=False)
    # What is told of punches, and of other calls of fallocate(2).
    punch_plan: Plan = field(init=False)
    other_plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        rules = self.semantics
        guards = rules.scope == "range" or rules.references == "locked"
        object.__setattr__(self, "guards_pages", guards)
        object.__setattr__(self, "punch_plan", rules.plan(punches=True))
        object.__setattr__(self, "other_plan", rules.plan(punches=False))

    def plan(self, *, punches: bool) -> Plan:
        """What is told of a fallocate(2). As the rules had it when they were asked."""
        return self.punch_plan if punches else self.other_plan

    @property
    def whole_call(self) -> bool:
        """Whether the list of notifiers is held for the whole of a fallocate(2)."""
        return self.semantics.list_locked == "the whole call"

    @property
    def punches_at_once(self) -> bool:
        """Whether a quick punch needs no task: see `InaccessibleFile.punch_at_once`."""
        # The change comes first then, and has nothing to wait for: neither for those
        # who are told before, while others may take the file, nor for a locked page.
        return (
            self.patience is not None
            and self.patience.running
            and self.punch_plan.before is None
            and self.semantics.references != "locked"
        )

    @property
    def freed(self) -> int:
        """How many large files have been closed so far: for `more_space`."""
        return 0 if self.space is None else self.space.freed

    async def more_space(
        self, exc: OSError, freed: int, interrupted: Event | None = None
    ) -> bool:
        """Whether to try again what failed with *exc*; waits until that makes sense.

        Memory of files that had gone before the call, when the space had *freed* so
        many, may have been on its way back while the backing looked for some.
        """
        space = self.space
        if exc.errno != errno.ENOSPC or space is None:
            return False
        if not space.busy and space.freed == freed:
            return False
        if interrupted is None:
            await space.wait_idle()
        else:
            await self.loop.first_of(space.wait_idle, interrupted.wait)
        return True
