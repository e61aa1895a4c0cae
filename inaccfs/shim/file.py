"""`InaccessibleFile`: the patch, for one file.

struct inaccessible_data of the seed holds a lock, the memfd and the notifiers;
here the memfd is an fd of the backing, opened for writing.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import trio

from inaccfs import syscalls
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.shim.allocator import Allocator, Undoing
    from inaccfs.shim.semantics import Semantics

QUICK_BYTES: Final = 4 << 20
"""A range up to this is dealt with in the trio loop: well under a millisecond."""

SHORT_BYTES: Final = 128 << 20
"""An allocation up to this is over before anybody could interrupt it."""


class InaccessibleFile:
    """One file that can be sized, allocated and punched, and nothing else.

    Offsets, lengths and sizes are bytes. Methods raise `OSError` with the errno
    that the caller of the system call shall see.
    """

    __slots__ = (
        "_allocator",
        "_busy",
        "_busy_files",
        "_check_fallocate",
        "_idle",
        "_quick_bytes",
        "_semantics",
        "fd",
        "page_size",
        "undoing",
        "writable",
    )

    def __init__(
        self,
        fd: int,
        page_size: int,
        semantics: Semantics,
        *,
        writable: bool = True,
        busy_files: set[InaccessibleFile] | None = None,
        allocator: Allocator | None = None,
    ) -> None:
        """Take an *fd* of the backing.

        *busy_files* holds this file while a long operation is under way. Without an
        *allocator* long allocations cannot be interrupted.
        """
        # An fd of the backing file. Closed by whoever opened it.
        self.fd = fd
        # Whether fd is open for writing; else it is good for fstat(2) only.
        self.writable = writable
        # In bytes; see Backing.page_size.
        self.page_size: Final = page_size
        self._semantics: Final = semantics
        # Looked up once: it is called for every request.
        self._check_fallocate: Final = semantics.check_fallocate
        # A page may be so large that even one takes long.
        self._quick_bytes: Final = QUICK_BYTES if page_size <= QUICK_BYTES else 0
        self._allocator: Final = allocator
        # Holds this file for as long as `_busy` is true and `_idle` is not set.
        self._busy_files = set() if busy_files is None else busy_files
        self._busy = False
        # Set unless a long operation has the lock of the backing's inode.
        self._idle = trio.Event()
        self._idle.set()
        # An interrupted allocation that still gives back what it had taken. Until it
        # has ended nobody may look at the file.
        self.undoing: Undoing | None = None

    def reopened(self, fd: int, *, writable: bool) -> None:
        """Use another fd of the same backing file from now on."""
        self.fd, self.writable = fd, writable

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
        self._busy_files.add(self)

    def _end_long(self) -> None:
        self._busy = False
        self._busy_files.discard(self)
        self._idle.set()

    def fallocate_quick(self, mode: int, offset: int, length: int) -> bool:
        """inaccessible_fallocate() of the seed, at once; False if that is not possible.

        It is not for a range that takes more time than the trio loop has, and not
        while others wait for the file: use `fallocate` then.
        """
        if length > self._quick_bytes or self._busy:
            return False
        self._check_fallocate(mode, offset, length, self.page_size)
        syscalls.fallocate_quick(self.fd, mode, offset, length)
        return True

    async def fallocate(
        self, mode: int, offset: int, length: int, interrupted: trio.Event
    ) -> None:
        """inaccessible_fallocate() of the seed, for a range of any length.

        *interrupted* is set when the caller wants out: an allocation that takes long
        then raises EINTR within a tenth of a second and is undone by the backing,
        which may take longer (see `settled`). A punch goes on to its end, as it does
        on a tmpfs.
        """
        # Again and again: of several that wait only one gets its turn.
        while self._busy:
            await first_of(self.wait_idle, interrupted.wait)
            if interrupted.is_set():
                raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        self._check_fallocate(mode, offset, length, self.page_size)
        self._begin_long()
        try:
            self.undoing = await self._allocate_or_punch(
                mode, offset, length, interrupted
            )
        finally:
            if self.undoing is None:
                self._end_long()
        if self.undoing is not None:
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    async def _allocate_or_punch(
        self, mode: int, offset: int, length: int, interrupted: trio.Event
    ) -> Undoing | None:
        allocates = not mode & ~FALLOC_FL_KEEP_SIZE
        if allocates and length > SHORT_BYTES and self._allocator is not None:
            return await self._allocator.allocate(
                self.fd, mode, offset, length, interrupted
            )
        await trio.to_thread.run_sync(syscalls.fallocate, self.fd, mode, offset, length)
        return None

    async def set_size(self, size: int) -> None:
        """inaccessible_setattr() of the seed, with ATTR_SIZE."""
        while self._busy:
            await self.wait_idle()
        attributes = os.fstat(self.fd)
        self._semantics.check_size(attributes.st_size, size, self.page_size)
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
