"""Closing what may never be closed: fds that peers send, and connections with some.

close(2) of an fd sends FLUSH to the fd's file system, whose daemon may not answer. So
the daemon never receives an fd that could be of another mount: a helper process does,
and the fds that it is closing are counted here. The kernel drops fds that nobody has
received without a FLUSH. But if one is a socket that lingers, or the last fd of
gigabytes of memory, that takes long: threads do it, of which each user has few.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
import termios
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

import trio

from inaccfs import threads
from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

log = logging.getLogger(__name__)

# For each user: how many fds of other file systems may be in the course of being
# closed, and how many threads may drop unread fds.
_FOREIGN: Final = 4
_THREADS: Final = 2

STRANGERS: Final = -1
"""Stands for the uids of all users who are not admitted."""

_int: Final = struct.Struct("i")


class Closing(Protocol):
    """An fd of another file system that the helper process closes."""

    async def wait(self) -> None:
        """Return when it is closed."""


class Received(Protocol):
    """The fd and data that the helper process has received for us."""

    @property
    def size(self) -> int:
        """How many bytes were read from the connection."""

    @property
    def fd(self) -> int:
        """An fd of the mount, ours to close; or -1."""

    @property
    def foreign(self) -> bool:
        """Whether an fd came that is not of this mount. The helper keeps it."""

    @property
    def closing(self) -> Closing | None:
        """The closing of that fd; None if it has ended."""


class Receiver(Protocol):
    """The helper process: it receives fds, and hands on those of the mount."""

    async def receive_fd(
        self, connection: socket.socket, wanted: int, device: str
    ) -> Received:
        """Receive *wanted* bytes at most, and the fds that come with them.

        *device* is the mount's number. Of several fds the first counts.

        Raises:
            OSError: there is nothing to be read, or no helper.
        """


class _User:
    """The closings for one user, or for all users who are not admitted."""

    __slots__ = ("foreign", "receiving", "threads")

    def __init__(self) -> None:
        self.foreign = 0
        # Each fd that is received may turn out to be foreign: receive one at a time.
        self.receiving: Final = trio.Lock()
        self.threads: Final = trio.CapacityLimiter(_THREADS)


class Closings:
    """The closings in progress, by user. Nothing here raises, except `Cancelled`."""

    def __init__(self) -> None:
        # The server's: a closing counts even after its peer has disconnected.
        self.nursery: trio.Nursery | None = None
        self._users: Final[defaultdict[int, _User]] = defaultdict(_User)
        # Connections that wait for a thread, or are being closed by one.
        self.connections = 0
        self._trouble: Final = Trouble()

    # --- fds of other file systems ------------------------------------------------

    @asynccontextmanager
    async def receiving(self, uid: int) -> AsyncIterator[bool]:
        """Whether an fd of this user may be received in an async with block.

        If it turns out to be of another mount, tell `count` before the block ends.
        """
        user = self._users[uid]
        async with user.receiving:
            yield user.foreign < _FOREIGN

    def count(self, uid: int, closing: Closing, closed: Callable[[], None]) -> None:
        """Count *closing* for its user; call *closed* when it is over."""
        assert self.nursery is not None
        self._users[uid].foreign += 1
        self.nursery.start_soon(self._wait, uid, closing, closed)

    async def _wait(
        self, uid: int, closing: Closing, closed: Callable[[], None]
    ) -> None:
        try:
            await closing.wait()
        except Exception:
            log.exception("bug in closing an fd of uid %d", uid)
        finally:
            self._users[uid].foreign -= 1
            closed()

    # --- what the kernel drops ----------------------------------------------------

    async def drop(self, connection: socket.socket, uid: int, size: int) -> None:
        """Read *size* bytes that a MSG_PEEK has seen, and drop their fds."""

        def read() -> None:
            left = size
            with suppress(OSError):
                while left and (data := connection.recv(left)):
                    left -= len(data)

        await self._in_thread(read, uid)

    async def close(self, connection: socket.socket, uid: int) -> None:
        """Close a connection. There may be bytes and fds that have not been read."""
        if not _has_fds(connection):
            connection.close()
            return
        self.connections += 1
        try:
            await self._in_thread(connection.close, uid)
        finally:
            self.connections -= 1

    def close_soon(self, connection: socket.socket, uid: int) -> None:
        """The same in a task, if it has to wait."""
        if not _has_fds(connection):
            connection.close()
            return
        assert self.nursery is not None
        self.nursery.start_soon(self.close, connection, uid)

    async def _in_thread(self, work: Callable[[], None], uid: int) -> None:
        """Do what may take for ever in one of the user's threads."""
        await threads.do(
            *(work, self._users[uid].threads, self._trouble, "closing for peers"),
            abandon=True,
        )


def _has_fds(connection: socket.socket) -> bool:
    """Whether there are unreceived fds. Shuts the connection down."""
    try:
        with suppress(OSError):
            # Else the peer may send some between this look and the close.
            connection.shutdown(socket.SHUT_RDWR)
        unread = bytearray(_int.size)
        fcntl.ioctl(connection, termios.FIONREAD, unread)
        (size,) = _int.unpack(unread)
        if not size:
            return False
        _, _, flags, _ = connection.recvmsg(
            size, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT
        )
    except OSError:
        # Assume that there are.
        return True
    return bool(flags & socket.MSG_CTRUNC)
