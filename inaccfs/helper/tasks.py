"""`Helper`: the work that the daemon gives to workers.

Long allocations are in `inaccfs.shim.allocator`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from inaccfs.errnos import os_error
from inaccfs.helper import wire
from inaccfs.helper.pool import Pool, Worker, WorkerGoneError

if TYPE_CHECKING:
    import socket

# The longest time for closing a file of a file system that does not hang.
_CLOSE_SECONDS: Final = 0.01


class Closing:
    """A worker that closes a peer's fd, which may take for ever."""

    def __init__(self, helper: Helper, worker: Worker) -> None:
        self._helper: Final = helper
        self._worker: Worker | None = worker
        self._lock: Final = trio.Lock()

    @property
    def has_ended(self) -> bool:
        """Whether the close has ended."""
        if self._worker is not None and self._worker.has_answered:
            self._end(self._worker)
        return self._worker is None

    async def wait(self) -> None:
        """Wait until it has ended. Any number of tasks may wait."""
        async with self._lock:
            if self._worker is not None:
                await self._worker.wait_answer()
                self._end(self._worker)

    def _end(self, worker: Worker) -> None:
        self._worker = None
        try:
            worker.take_answer()
        except (WorkerGoneError, OSError):
            self._helper.dismiss(worker)
        else:
            self._helper.give_back(worker)


class Received(NamedTuple):
    """The data that a worker has read from a peer's connection."""

    # The number of bytes; 0 at the end of the stream.
    size: int
    # An fd of the mount, now the caller's to close; or -1.
    fd: int
    # Whether a foreign fd came; the daemon does not receive it.
    foreign: bool
    # The close of the foreign fd; None if that has ended.
    closing: Closing | None


class Helper(Pool):
    """Does work for the daemon that must go through the mount, or may hang."""

    async def receive_fd(
        self, connection: socket.socket, wanted: int, device: str
    ) -> Received:
        """Read up to *wanted* bytes of a peer's socket, with at most one fd.

        An fd of the mount *device* ("major:minor") is returned. A foreign fd never
        reaches the daemon: close(2) of a file of a FUSE file system may take for ever,
        and a thread in it could not be killed. The bytes are not returned: the caller
        has read them with MSG_PEEK. All fds of a message but one are dropped.

        Raises:
            BlockingIOError: there is nothing to read.
            OSError: recvmsg(2) failed; EIO, if the worker was killed: bytes may be
                lost, so the connection cannot be used any more; EAGAIN and the like, if
                no process can be started.
        """
        request = wire.pack_request(wire.RECEIVE, wanted, device)
        worker = await self.lease()
        try:
            worker.ask(request, connection.fileno())
            await worker.wait_answer()
            answer, fd = worker.take_answer()
            if not answer.foreign:
                self.give_back(worker)
                return Received(answer.size, fd, foreign=False, closing=None)
            with trio.move_on_after(_CLOSE_SECONDS):
                await worker.wait_answer()
        except OSError:
            self.give_back(worker)
            raise
        except WorkerGoneError:
            self.dismiss(worker)
            raise OSError(errno.EIO, "the helper's worker was killed") from None
        except BaseException:
            self.dismiss(worker)
            raise
        closing = Closing(self, worker)
        left = None if closing.has_ended else closing
        return Received(answer.size, -1, foreign=True, closing=left)

    async def open_tmpfile(self, directory: str, device: str) -> int:
        """Open a new file without a name through the mount *device*; its fd is O_RDWR.

        Raises:
            OSError: what open(2) failed with; ESTALE, when *directory* leads to
                another file system; EIO, when the worker was killed.
        """
        request = wire.pack_request(wire.OPEN_TMPFILE, os.fsencode(directory), device)
        try:
            return await self._open(request)
        except WorkerGoneError:
            if not await self.lost_helper():
                raise OSError(errno.EIO, "the helper's worker was killed") from None
        try:
            return await self._open(request)
        except WorkerGoneError:
            raise OSError(errno.EIO, "the helper was killed") from None

    async def _open(self, request: bytes) -> int:
        worker = await self.lease()
        try:
            worker.ask(request)
            await worker.wait_answer()
            _, fd = worker.take_answer()
        except OSError:
            self.give_back(worker)
            raise
        except BaseException:
            # The worker may wait for a reply that never comes, so do not wait for its
            # end.
            self.dismiss(worker)
            raise
        self.give_back(worker)
        if fd < 0:
            raise os_error(errno.EMFILE)
        return fd
