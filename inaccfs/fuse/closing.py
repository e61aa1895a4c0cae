"""Closing fds whose memory goes with them: in the background, but not out of mind.

On a tmpfs the memory of an unlinked file is back when its last close(2) returns. Here
the kernel tells of that close afterwards, and giving gigabytes back takes too long for
the trio loop; so an allocation that finds no space waits for what is on its way.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.fuse.inodes import close_now
from inaccfs.shim.file import QUICK_BYTES
from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.shim.file import InaccessibleFile

_THREADS: Final = 8

# How long to wait where no thread is to be had.
_NO_THREAD_SECONDS: Final = 0.1


class Closer:
    """Closes fds; large files that are unlinked, in worker threads."""

    def __init__(self) -> None:
        # Set for as long as the loop runs, and the threads can be waited for.
        self.nursery: trio.Nursery | None = None
        self._pending = 0
        # Of its own: who waits for space waits for these.
        self._threads = trio.CapacityLimiter(_THREADS)
        self._trouble: Final = Trouble()
        # How many large files have been closed so far.
        self.freed = 0
        # Set when nothing is pending. Replaced by a new one when something comes.
        self._idle = trio.Event()
        self._idle.set()

    @property
    def busy(self) -> bool:
        """Whether memory is on its way back."""
        return self._pending > 0

    async def wait_idle(self) -> None:
        """Wait until all that is being closed now has been."""
        await self._idle.wait()

    def close(self, fd: int, file: InaccessibleFile | None) -> None:
        """Close *fd* now, or soon if that frees more than the loop has time for.

        Let go of what was fetched of its *file*, if it is one: else the pins would keep
        the memory.
        """
        attributes = os.fstat(fd)
        large = attributes.st_nlink == 0 and attributes.st_blocks * 512 > QUICK_BYTES
        if not large or self.nursery is None:
            close_now(fd, file)
            return
        if not self.busy:
            self._idle = trio.Event()
        self._pending += 1
        self.nursery.start_soon(self._close, fd, file)

    async def _close(self, fd: int, file: InaccessibleFile | None) -> None:
        try:
            await self._in_thread(partial(close_now, fd, file))
        finally:
            self._pending -= 1
            self.freed += 1
            if not self.busy:
                self._idle.set()

    async def _in_thread(self, close: Callable[[], None]) -> None:
        """Call *close*, which does not raise; wait until there is a thread for it."""
        while True:
            try:
                return await trio.to_thread.run_sync(close, limiter=self._threads)
            except RuntimeError as exc:
                # Of threading: there may be no more (systemd's TasksMax).
                self._trouble.met(f"closing a file waits: {exc}")
                await trio.sleep(_NO_THREAD_SECONDS)
