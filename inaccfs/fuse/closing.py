"""Closes the fds of deleted files in the background, and waits for them.

On a tmpfs the memory of an unlinked file is free when its last close(2) returns. FUSE
sends RELEASE after that close has returned, and freeing gigabytes takes too long for
the trio loop. So an allocation that finds no space waits until pending closes have
freed their memory.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from inaccfs import threads
from inaccfs.fuse.nodes import close_now
from inaccfs.shim.filestate import INLINE_BYTES
from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from inaccfs.shim.file import InaccessibleFile

_THREADS: Final = 8


def _frees_much(fd: int) -> bool:
    """Whether to close *fd* frees more than the loop has time for."""
    try:
        attributes = os.fstat(fd)
    except OSError:
        # ENOMEM: it must be closed anyway, and a thread does no harm.
        return True
    return attributes.st_nlink == 0 and attributes.st_blocks * 512 > INLINE_BYTES


class Closer:
    """Closes fds; large files that are unlinked, in worker threads."""

    def __init__(self) -> None:
        # Set while the loop runs, which waits for the threads.
        self.nursery: trio.Nursery | None = None
        self._pending = 0
        # A separate limiter: allocations, which have another, may wait for these
        # threads.
        self._threads = trio.CapacityLimiter(_THREADS)
        self._trouble: Final = Trouble()
        # How many large files have been closed so far.
        self.closed = 0
        # Set while nothing is pending. Replaced by a new one when something is.
        self._idle = trio.Event()
        self._idle.set()

    @property
    def busy(self) -> bool:
        """Whether memory is being freed."""
        return self._pending > 0

    async def wait_idle(self) -> None:
        """Wait until everything that is being closed has been closed."""
        await self._idle.wait()

    def close(self, fd: int, file: InaccessibleFile | None) -> None:
        """Close *fd*: now, or in a thread if it frees more than the loop has time for.

        Also drops the pages fetched of its *file*, if it is one: their pins would keep
        the memory.
        """
        if self.nursery is None or not _frees_much(fd):
            close_now(fd, file)
            return
        if not self.busy:
            self._idle = trio.Event()
        self._pending += 1
        self.nursery.start_soon(self._close, fd, file)

    async def _close(self, fd: int, file: InaccessibleFile | None) -> None:
        try:
            await threads.do(
                partial(close_now, fd, file),
                self._threads,
                self._trouble,
                "closing a file",
            )
        finally:
            self._pending -= 1
            self.closed += 1
            if not self.busy:
                self._idle.set()
