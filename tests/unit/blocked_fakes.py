"""Calls that block until a test lets them go."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import trio

from inaccfs.shim.loop import first_of

if TYPE_CHECKING:
    from inaccfs.shim.loop import Event


class BlockedCall:
    """Stands in for syscalls.fallocate(); made in a trio task, called in a thread."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._let_go = threading.Event()
        # Set once a thread is inside.
        self.entered = trio.Event()
        self.arguments: tuple[int, ...] = ()

    def __call__(self, *arguments: int) -> None:
        self.arguments = arguments
        self._token.run_sync_soon(self.entered.set)
        self._let_go.wait()

    def let_go(self) -> None:
        self._let_go.set()


class BlockedUndoing:
    """Frees memory for as long as a test wants it to."""

    def __init__(self) -> None:
        self._over = trio.Event()

    def end(self) -> None:
        self._over.set()

    async def wait(self) -> None:
        await self._over.wait()


class BlockedAllocator:
    """Allocates nothing and has no helper: each call waits until a test lets it go."""

    def __init__(self) -> None:
        # Set once a call is under way.
        self.entered = trio.Event()
        # Of the last call: fd, mode, offset, length.
        self.arguments: tuple[int, ...] = ()
        # If set, an interrupted call still frees memory; else it ends at once.
        self.undoing: BlockedUndoing | None = None
        # The largest number of calls at the same time.
        self.most = 0
        self._running = 0
        # Whether a call ended because its caller no longer waited.
        self.cancelled = False
        self._error = 0
        self._let_go = trio.Event()

    def let_go(self, error: int = 0) -> None:
        """End the current calls, and all later ones."""
        self._error = error
        self._let_go.set()

    async def allocate(
        self, fd: int, mode: int, offset: int, length: int, interrupted: Event
    ) -> BlockedUndoing | None:
        self.arguments = (fd, mode, offset, length)
        self.entered.set()
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            await first_of(self._let_go.wait, interrupted.wait)
        except BaseException:
            self.cancelled = True
            raise
        finally:
            self._running -= 1
        error = errno.EINTR if interrupted.is_set() else self._error
        if error == errno.EINTR and self.undoing is not None:
            return self.undoing
        if error:
            raise OSError(error, os.strerror(error))
        return None
