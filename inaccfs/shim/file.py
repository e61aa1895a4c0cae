"""`InaccessibleFile`: the patch, for one file.

struct inaccessible_data of the seed holds a lock, the memfd and the notifiers;
here the memfd is an fd of the backing, opened for writing, and there is also what has
been fetched of it (memory.py).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from inaccfs import syscalls
from inaccfs.shim.counters import Counters
from inaccfs.shim.memory import Memory
from inaccfs.shim.notifiers import Notifiers
from inaccfs.shim.semantics import INVALIDATE
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from inaccfs.shim.allocator import Allocator, Undoing
    from inaccfs.shim.frames import Extent, FrameSource
    from inaccfs.shim.semantics import Semantics

QUICK_BYTES: Final = 4 << 20
"""A range up to this is dealt with in the trio loop: well under a millisecond."""

SHORT_BYTES: Final = 128 << 20
"""An allocation up to this is over before anybody could interrupt it."""

QUICK_FETCH_BYTES: Final = 1 << 20
"""So much can be fetched in the trio loop: memory that is touched first is cleared."""

_PAGES_A_TURN: Final = 4096
"""So many pages can be got at once: each may be an extent."""

_EXTENTS_A_TURN: Final = 512
"""How many extents are marked as punched before other tasks get a turn."""


class Space(Protocol):
    """What the backing gives back in the background: see fuse/closing."""

    # How many large files have been closed so far.
    freed: int

    @property
    def busy(self) -> bool:
        """Whether memory is on its way back."""

    async def wait_idle(self) -> None:
        """Wait until all of it is back."""


@dataclass(frozen=True, slots=True)
class Shim:
    """What the files of a mount have in common."""

    semantics: Semantics
    # In bytes; see Backing.page_size.
    page_size: int
    # Makes long allocations interruptible; without it they are not.
    allocator: Allocator | None = None
    # Where page frame numbers come from; without it there are none to get.
    frames: FrameSource | None = None
    counters: Counters = field(default_factory=Counters)
    # How long a notifier may take to answer.
    ack_seconds: float = 10.0
    # Files with a long operation under way; see InaccessibleFile.wait_idle.
    busy_files: set[InaccessibleFile] = field(default_factory=set)
    # Where memory is on its way back: who finds no space asks once more.
    space: Space | None = None


class InaccessibleFile:
    """One file that can be sized, allocated and punched, and nothing else.

    Offsets, lengths and sizes are bytes. Methods raise `OSError` with the errno
    that the caller of the system call shall see.
    """

    __slots__ = (
        "_busy",
        "_check_fallocate",
        "_counters",
        "_idle",
        "_moved",
        "_quick_bytes",
        "_quick_limit",
        "_shim",
        "fd",
        "label",
        "memory",
        "notifiers",
        "page_size",
        "undoing",
        "writable",
    )

    def __init__(self, fd: int, shim: Shim, *, writable: bool = True) -> None:
        """Take an *fd* of the backing."""
        # An fd of the backing file. Closed by whoever opened it.
        self.fd = fd
        # Whether fd is open for writing; else it is good for fstat(2) only.
        self.writable = writable
        # What people call a file that has no name.
        self.label = ""
        self.page_size: Final = shim.page_size
        self._shim: Final = shim
        # Looked up once: these are needed for every request.
        self._check_fallocate: Final = shim.semantics.check_fallocate
        self._counters: Final = shim.counters
        # A page may be so large that even one takes long.
        self._quick_bytes: Final = QUICK_BYTES if self.page_size <= QUICK_BYTES else 0
        # In bytes: what may be dealt with at once, without a look at notifiers, memory
        # or other operations. Kept by _set_quick_limit().
        self._quick_limit = self._quick_bytes
        self.notifiers: Final = Notifiers(
            shim.counters, shim.ack_seconds, self._set_quick_limit
        )
        # Ranges of pages that have moved, of which the notifiers are still to be told.
        self._moved: list[tuple[int, int]] = []
        # What has been fetched; None until something is.
        self.memory: Memory | None = None
        # True while a long operation has the lock of the backing's inode; busy_files
        # holds this file then, and `_idle` is not set. Nothing is fetched meanwhile,
        # so that no page can be found that is about to go.
        self._busy = False
        self._idle = trio.Event()
        self._idle.set()
        # An interrupted allocation that still gives back what it had taken. Until it
        # has ended nobody may look at the file.
        self.undoing: Undoing | None = None

    def reopened(self, fd: int, *, writable: bool) -> None:
        """Use another fd of the same backing file from now on."""
        self.fd, self.writable = fd, writable
        if self.memory is not None:
            self.memory.reopened(fd)

    def _set_quick_limit(self) -> None:
        plain = not self._busy and not self.notifiers and not self.has_memory
        self._quick_limit = self._quick_bytes if plain else -1

    @property
    def has_memory(self) -> bool:
        """Whether pages of the file have been fetched: they stay where they are."""
        return self.memory is not None and self.memory.pages > 0

    def close(self) -> None:
        """Let go of what was fetched. May take long for gigabytes."""
        if self.memory is not None:
            self.memory.close()

    @property
    def settled(self) -> bool:
        """Whether the file can be looked at without waiting."""
        return self.undoing is None

    async def wait_settled(self) -> None:
        """Wait until an interrupted allocation has been undone by the backing."""
        while (undoing := self.undoing) is not None:
            await undoing.wait()
            if self.undoing is undoing:
                self.undoing = None
                self._end_long()

    async def wait_idle(self) -> None:
        """Wait until no long operation is under way, nor being undone."""
        while not self._idle.is_set():
            if self.undoing is not None:
                await self.wait_settled()
            else:
                await self._idle.wait()

    def _begin_long(self) -> None:
        self._idle = trio.Event()
        self._busy = True
        self._shim.busy_files.add(self)
        self._quick_limit = -1

    def _end_long(self) -> None:
        self._busy = False
        self._shim.busy_files.discard(self)
        self._set_quick_limit()
        self._idle.set()

    # --- fallocate ---------------------------------------------------------------

    def fallocate_quick(self, mode: int, offset: int, length: int) -> bool:
        """inaccessible_fallocate() of the seed, at once; False if that is not possible.

        It is not for a range that takes more time than the trio loop has, nor while
        others wait for the file, nor where somebody must be told: use `fallocate` then.
        """
        if length > self._quick_limit:
            return False
        self._check_fallocate(mode, offset, length, self.page_size)
        syscalls.fallocate_quick(self.fd, mode, offset, length)
        self._count(mode)
        return True

    def _count(self, mode: int) -> None:
        self._counters.fallocates += 1
        if mode & FALLOC_FL_PUNCH_HOLE:
            self._counters.punches += 1

    async def fallocate(
        self,
        mode: int,
        offset: int,
        length: int,
        interrupted: trio.Event,
    ) -> None:
        """inaccessible_fallocate() of the seed, for a range of any length.

        *interrupted* is set when the caller wants out: an allocation that takes long
        then raises EINTR within a tenth of a second and is undone by the backing,
        which may take longer (see `settled`). A punch goes on to its end, as it does
        on a tmpfs; and so does the invalidation, which is a promise.
        """
        freed = self._freed
        # Again and again: of several that wait only one gets its turn.
        while self._busy:
            await first_of(self.wait_idle, interrupted.wait)
            if interrupted.is_set():
                raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        self._check_fallocate(mode, offset, length, self.page_size)
        self._count(mode)
        moved: list[Extent] = []
        refusal: OSError | None = None
        try:
            try:
                moved = await self._change(mode, offset, length, interrupted)
            except OSError as exc:
                if not await self._more_space(exc, freed, interrupted):
                    raise
                moved = await self._change(mode, offset, length, interrupted)
        except OSError as exc:
            refusal = exc
        await self._invalidate(mode, offset, length, moved, failed=refusal is not None)
        if refusal is not None:
            raise refusal

    @property
    def _freed(self) -> int:
        return 0 if self._shim.space is None else self._shim.space.freed

    async def _more_space(
        self, exc: OSError, freed: int, interrupted: trio.Event | None = None
    ) -> bool:
        """Whether to try again what failed with *exc*; waits until that makes sense.

        Memory of files that had gone before the call, when the space had *freed* so
        many, may have been on its way back while the backing looked for some.
        """
        space = self._shim.space
        if exc.errno != errno.ENOSPC or space is None:
            return False
        if not space.busy and space.freed == freed:
            return False
        if interrupted is None:
            await space.wait_idle()
        else:
            await first_of(space.wait_idle, interrupted.wait)
        return True

    async def _invalidate(
        self, mode: int, offset: int, length: int, moved: list[Extent], *, failed: bool
    ) -> None:
        """inaccessible_notifier_invalidate(), in pages as its declaration says."""
        self._note_moved(moved)
        if not self.notifiers:
            return
        async with self.notifiers.fixed():
            if self._shim.semantics.invalidates(mode, failed=failed):
                start = offset // self.page_size
                end = -(-(offset + length) // self.page_size)
                await self.notifiers.invalidate(INVALIDATE, start, end)
            await self._tell_moved()

    async def _change(
        self, mode: int, offset: int, length: int, interrupted: trio.Event
    ) -> list[Extent]:
        """Let the backing allocate or punch; return fetched pages that have moved."""
        while self._busy:
            await self.wait_idle()
        change = partial(syscalls.fallocate, self.fd, mode, offset, length)
        if mode & FALLOC_FL_PUNCH_HOLE and self.memory is not None:
            return await self._punch(self.memory, offset, length, change)
        if length <= self._quick_bytes:
            change()
            return []
        self._begin_long()
        try:
            allocates = not mode & ~FALLOC_FL_KEEP_SIZE
            allocator = self._shim.allocator
            if allocates and length > SHORT_BYTES and allocator is not None:
                self.undoing = await allocator.allocate(
                    self.fd, mode, offset, length, interrupted
                )
            else:
                await trio.to_thread.run_sync(change)
        finally:
            if self.undoing is None:
                self._end_long()
        if self.undoing is not None:
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        return []

    async def _punch(
        self, memory: Memory, offset: int, length: int, punch: Callable[[], None]
    ) -> list[Extent]:
        start = offset // self.page_size
        end = (offset + length) // self.page_size
        if length <= self._quick_bytes:
            removed, moved = memory.punch(start, end, punch)
            memory.record(removed, moved)
            return moved
        self._begin_long()
        try:
            removed, moved = await trio.to_thread.run_sync(
                memory.punch, start, end, punch
            )
            # All of it, whatever ends this task; and before anything can be fetched
            # again, which would be taken for what has gone.
            with trio.CancelScope(shield=True):
                for at in range(0, len(removed), _EXTENTS_A_TURN):
                    memory.record(removed[at : at + _EXTENTS_A_TURN], [])
                    await trio.lowlevel.checkpoint()
            memory.record((), moved)
        finally:
            self._end_long()
        return moved

    # --- page frames -------------------------------------------------------------

    async def get_pfns(
        self, holder: Hashable, start: int, end: int
    ) -> tuple[list[Extent], list[Extent]]:
        """inaccessible_get_pfn() of the seed for pages from *start* to *end*.

        *holder* gets a reference to each. Allocates, as SGP_WRITE does. Returns where
        the pages are, and which had moved: `invalidate_moved` is for those.

        Raises:
            OSError: EINVAL past the end, where the seed would allocate; ENOSPC, ENOMEM;
                EOPNOTSUPP where there are no frames to get.
        """
        while (got := self.get_pfns_now(holder, start, end)) is None:
            if self._busy:
                await self.wait_idle()
                continue
            memory = self._memory_of(start, end)
            self._begin_long()
            try:
                extents, moved = await self._fetch(memory, start, end)
                memory.record((), moved)
                # Nothing can be punched meanwhile; and what has been got is got,
                # whatever ends this task.
                with trio.CancelScope(shield=True):
                    for at in range(0, len(extents), _EXTENTS_A_TURN):
                        memory.get(holder, extents[at : at + _EXTENTS_A_TURN])
                        await trio.lowlevel.checkpoint()
            finally:
                self._end_long()
            return extents, moved
        return got

    async def _fetch(
        self, memory: Memory, start: int, end: int
    ) -> tuple[list[Extent], list[Extent]]:
        freed = self._freed
        try:
            return await trio.to_thread.run_sync(memory.fetch, start, end)
        except OSError as exc:
            if not await self._more_space(exc, freed):
                raise
        return await trio.to_thread.run_sync(memory.fetch, start, end)

    def get_pfns_now(
        self, holder: Hashable, start: int, end: int
    ) -> tuple[list[Extent], list[Extent]] | None:
        """The same at once; None if that takes more time than the trio loop has."""
        if end - start > _PAGES_A_TURN:
            return None
        if self.memory is not None:
            known = self.memory.known(start, end)
            if known is not None:
                self.memory.get(holder, known)
                return known, []
        if self._busy or (end - start) * self.page_size > QUICK_FETCH_BYTES:
            return None
        memory = self._memory_of(start, end)
        try:
            extents, moved = memory.fetch(start, end)
        except OSError as exc:
            if exc.errno == errno.ENOSPC and self._shim.space is not None:
                return None
            raise
        # In this order, and before anything else runs: what has moved is no more, and
        # what is here now may be punched by the next task.
        memory.record((), moved)
        memory.get(holder, extents)
        return extents, moved

    def _memory_of(self, start: int, end: int) -> Memory:
        """The memory of the file, if it has the pages from *start* to *end*."""
        pages = -(-os.fstat(self.fd).st_size // self.page_size)
        if end > pages:
            raise OSError(
                errno.EINVAL,
                f"offset {max(start, pages)} lies past the end ({pages} pages)",
            )
        if self.memory is None:
            if self._shim.frames is None:
                raise OSError(errno.EOPNOTSUPP, "this mount has no page frames")
            self.memory = Memory(
                self._shim.frames,
                self.fd,
                self.page_size,
                self._counters,
                self._set_quick_limit,
            )
        return self.memory

    async def invalidate_moved(self, moved: list[Extent]) -> None:
        """Tell of pages that are elsewhere now: as good as gone for who maps them.

        Where an invalidation runs it does so, and nobody waits here: the caller may be
        one of the callbacks that it waits for.
        """
        self._note_moved(moved)
        if self._moved and not self.notifiers.running:
            async with self.notifiers.fixed():
                await self._tell_moved()

    def _note_moved(self, moved: list[Extent]) -> None:
        if self.notifiers:
            self._moved += [(one.offset, one.offset + one.count) for one in moved]

    async def _tell_moved(self) -> None:
        """Tell what has been noted, in ranges as large as they are."""
        while self._moved:
            self._moved.sort()
            start, end = self._moved.pop(0)
            while self._moved and self._moved[0][0] <= end:
                end = max(end, self._moved.pop(0)[1])
            try:
                await self.notifiers.invalidate(INVALIDATE, start, end)
            except trio.Cancelled:
                # For the next: some may not have been told.
                self._moved.append((start, end))
                raise

    def put_pfns(self, holder: Hashable, pfn: int, count: int) -> None:
        """inaccessible_put_pfn() of the seed for *count* pages from frame *pfn*.

        Raises:
            OSError: EINVAL when *holder* has no reference to one of them.
        """
        if self.memory is None:
            raise OSError(errno.EINVAL, "nothing of this file has been fetched")
        self.memory.put(holder, pfn, count)

    # --- size ----------------------------------------------------------------------

    async def set_size(self, size: int) -> None:
        """inaccessible_setattr() of the seed, with ATTR_SIZE."""
        while self._busy:
            await self.wait_idle()
        attributes = os.fstat(self.fd)
        self._shim.semantics.check_size(attributes.st_size, size, self.page_size)
        if attributes.st_blocks * 512 <= QUICK_BYTES:
            os.ftruncate(self.fd, size)
            return
        # Memory allocated beyond the end, with KEEP_SIZE, is freed by this.
        self._begin_long()
        try:
            await trio.to_thread.run_sync(os.ftruncate, self.fd, size)
        finally:
            self._end_long()


async def first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Wait until one of several is over."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Awaitable[None]]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)
