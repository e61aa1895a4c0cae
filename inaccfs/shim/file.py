"""`InaccessibleFile`: the patch, for one file.

struct inaccessible_data of the seed holds a lock, the memfd and the notifiers;
here the memfd is an fd of the backing, opened for writing.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Final

import trio

from inaccfs import syscalls
from inaccfs.shim.allocation import allocate, command
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE

if TYPE_CHECKING:
    from inaccfs.shim.semantics import Semantics

log = logging.getLogger(__name__)

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
        "_check_fallocate",
        "_semantics",
        "_undoing",
        "fd",
        "page_size",
        "writable",
    )

    def __init__(
        self, fd: int, page_size: int, semantics: Semantics, *, writable: bool = True
    ) -> None:
        # An fd of the backing file. Closed by whoever opened it.
        self.fd = fd
        # Whether fd is open for writing; else it is good for stat() only.
        self.writable = writable
        # In bytes; see Backing.page_size.
        self.page_size: Final = page_size
        self._semantics: Final = semantics
        # Looked up once: it is called for every request.
        self._check_fallocate: Final = semantics.check_fallocate
        # An interrupted allocation that still gives back what it had taken. Until it
        # has ended nobody may look at the file.
        self._undoing: trio.Process | None = None

    def reopened(self, fd: int, *, writable: bool) -> None:
        """Use another fd of the same backing file from now on."""
        self.fd, self.writable = fd, writable

    @property
    def settled(self) -> bool:
        """Whether the file can be looked at without waiting."""
        return self._undoing is None

    async def wait_settled(self) -> None:
        """Wait until an interrupted allocation has been undone by the backing."""
        while (undoing := self._undoing) is not None:
            await undoing.wait()
            if self._undoing is undoing:
                self._undoing = None

    def stat(self) -> os.stat_result:
        """The backing file's attributes. inaccessible_getattr() of the seed."""
        return os.fstat(self.fd)

    def fallocate_quick(self, mode: int, offset: int, length: int) -> bool:
        """inaccessible_fallocate() of the seed, at once; False if that is not possible.

        It is not for a range that takes more time than the trio loop has, and not
        while others wait for the file: use `fallocate` then.
        """
        if length > QUICK_BYTES or self._undoing is not None:
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
        await self.wait_settled()
        self._check_fallocate(mode, offset, length, self.page_size)
        if length > SHORT_BYTES and not mode & ~FALLOC_FL_KEEP_SIZE:
            try:
                arguments = command(self.fd, mode, offset, length)
                undoing = await allocate(arguments, self.fd, interrupted)
            except FileNotFoundError:
                log.warning("no fallocate(1): a long allocation cannot be interrupted")
            else:
                if undoing is not None:
                    self._undoing = undoing
                    raise OSError(errno.EINTR, os.strerror(errno.EINTR))
                return
        await trio.to_thread.run_sync(syscalls.fallocate, self.fd, mode, offset, length)

    async def set_size(self, size: int) -> None:
        """inaccessible_setattr() of the seed, with ATTR_SIZE."""
        await self.wait_settled()
        attributes = os.fstat(self.fd)
        self._semantics.check_size(attributes.st_size, size, self.page_size)
        if attributes.st_blocks * 512 <= QUICK_BYTES:
            os.ftruncate(self.fd, size)
        else:
            # Memory allocated beyond the end, with KEEP_SIZE, is freed by this.
            await trio.to_thread.run_sync(os.ftruncate, self.fd, size)
