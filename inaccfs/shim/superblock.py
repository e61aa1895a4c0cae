"""The superblock of a mount: what its files have in common."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from inaccfs.semantics.attributes import BOTH
from inaccfs.shim.attributes import Attributes
from inaccfs.shim.call import Kind, PageRange
from inaccfs.shim.frameoptions import FRAME_BYTES, HUGE_ORDER
from inaccfs.shim.headroom import Headroom
from inaccfs.shim.loop import TRIO
from inaccfs.shim.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inaccfs.semantics import Plan, Semantics
    from inaccfs.semantics.attributes import Kinds
    from inaccfs.shim.frames import FrameSource
    from inaccfs.shim.loop import Event, Loop
    from inaccfs.shim.order import Evictor
    from inaccfs.shim.turn import Turn, Undoing


class PendingFrees(Protocol):
    """Memory that the backing frees in the background: see fuse/closing."""

    # How many large files have been closed so far.
    closed: int

    @property
    def busy(self) -> bool:
        """Whether memory is being freed."""

    async def wait_idle(self) -> None:
        """Wait until no memory is being freed."""


class LongAllocator(Protocol):
    """Makes allocations that can be interrupted: `inaccfs.shim.allocator`."""

    async def allocate(
        self, fd: int, mode: int, offset: int, length: int, interrupted: Event
    ) -> Undoing | None:
        """fallocate(2), until it is done or *interrupted* is set."""


def _nothing(fd: int, offset: int, length: int) -> None:
    """Ignore a change."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Worker threads. Each kind of work has its own, so that none waits for another.

    There are two more kinds: see fuse/closing, and shim/census.
    """

    # Long changes of the backing, one per file: fallocate(2), ftruncate(2).
    changes: trio.CapacityLimiter = field(
        default_factory=partial(trio.CapacityLimiter, 32)
    )
    # Work of get-pfn and memory-failure on many pages, or on huge ones.
    fetches: trio.CapacityLimiter = field(
        default_factory=partial(trio.CapacityLimiter, 16)
    )


class Superblock:
    """What the files of a mount have in common."""

    def __init__(
        self,
        semantics: Semantics,
        page_size: int,
        *,
        allocator: LongAllocator | None = None,
        headroom: Headroom | None = None,
        frames: FrameSource | None = None,
        ack_seconds: float = 10.0,
        frees: PendingFrees | None = None,
        ack_timeouts: Evictor | None = None,
        loop: Loop = TRIO,
        on_change: Callable[[int, int, int], object] = _nothing,
    ) -> None:
        """*page_size* is in bytes; see `Backing.page_size`.

        *on_change* is called before the backing removes or adds pages that events
        report, with the fd of the file, and a range in bytes. If the events include a
        start, it has been answered by then.
        """
        self.semantics: Final = semantics
        self.page_size: Final = page_size
        # In bytes: the unit of a file's memory. Ranges of fallocate(2) are multiples of
        # it.
        self.granule: Final = (
            max(page_size, FRAME_BYTES << HUGE_ORDER)
            if semantics.by_huge_page
            else page_size
        )
        self.granule_pages: Final = self.granule // page_size
        # Whether each file has its own attributes; if not, all share these.
        self.converts: Final = semantics.in_place
        self._attributes: Final = Attributes(semantics.initial)
        # Makes long allocations interruptible, and protects the daemon from the OOM
        # killer.
        self.allocator: Final = allocator
        # How much may be allocated without the allocator.
        self.headroom: Final = Headroom() if headroom is None else headroom
        # Where page frame numbers come from; without it get-pfn fails.
        self.frames: Final = frames
        self.trace: Final = Trace()
        self.threads: Final = Threads()
        # The loop that the shim runs in.
        self.loop: Final = loop
        self.on_change: Final = on_change
        # How long a notifier may take to answer.
        self.ack_seconds: Final = ack_seconds
        # The turns of the files that run a long operation.
        self.busy: Final[set[Turn]] = set()
        # An allocation that finds no space waits for these and tries once more.
        self.frees: Final = frees
        # Evicts notifiers that no task waits for. Without it a task waits for each.
        self.ack_timeouts: Final = ack_timeouts
        # Whether the rules restrict which pages may be got, and when.
        self.guards_pages: Final = (
            semantics.by_range or semantics.locks_pages or semantics.get_waits
        )
        # The events of each kind of operation. The rules are asked once per mount.
        self.plans: Final[Mapping[Kind, Plan]] = {
            kind: semantics.plan(punches=kind is not Kind.ALLOCATE) for kind in Kind
        }

    def attributes(self) -> Attributes:
        """The attributes of a new file."""
        return Attributes(self.semantics.initial) if self.converts else self._attributes

    def kinds(self, attributes: Attributes, start: int, end: int) -> Kinds | None:
        """The kinds that the events of a punch, or of a failed page, carry."""
        match self.semantics.kinds:
            case "none":
                return None
            case "initial":
                return self.semantics.initial
            case "present" if start < end:
                return attributes.kinds(start, end)
        return BOTH

    def around(self, start: int, end: int) -> PageRange:
        """Pages from *start* to *end*, widened to whole granules."""
        pages = self.granule_pages
        return PageRange(start // pages * pages, -(-end // pages) * pages)

    @property
    def whole_call(self) -> bool:
        """Whether an operation locks the notifier list from its start to its end."""
        return self.semantics.list_locked == "the whole call"

    @property
    def punches_inline(self) -> bool:
        """Whether a short punch needs no task: see `InaccessibleFile.begin`."""
        # Such a punch begins with the change, and need not wait: neither for answers to
        # an event, during which other calls may take the file, nor for a locked page.
        return (
            self.ack_timeouts is not None
            and self.ack_timeouts.running
            and self.plans[Kind.PUNCH].before is None
            and not self.semantics.locks_pages
        )

    @property
    def closed(self) -> int:
        """How many large files have been closed so far: for `more_space`."""
        return 0 if self.frees is None else self.frees.closed

    async def more_space(
        self, exc: OSError, closed: int, interrupted: Event | None = None
    ) -> bool:
        """Whether to retry what failed with *exc*. Waits until a retry makes sense.

        *closed* is `closed` from before the call. Memory of files that were closed
        before may have been in the process of being freed when the backing needed some.
        """
        frees = self.frees
        if exc.errno != errno.ENOSPC or frees is None:
            return False
        if not frees.busy and frees.closed == closed:
            return False
        if interrupted is None:
            await frees.wait_idle()
        else:
            await self.loop.first_of(frees.wait_idle, interrupted.wait)
        return True
