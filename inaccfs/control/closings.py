"""Closes fds whose close(2) may hang: fds that peers send, and connections with some.

close(2) of an fd sends FLUSH to the fd's file system, whose daemon may not answer. So
the daemon never receives an fd that may be of another mount: a helper process receives
it, and the fds that the helper is closing are counted here. The kernel drops fds that
nobody has received without a FLUSH. But that takes long for a socket that lingers, or
for the last fd of gigabytes of memory: threads do it, and each user has few of them.
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

# Limits for each user: of fds of other file systems that are being closed, and of
# threads that drop unread fds.
_FOREIGN: Final = 4
_THREADS: Final = 2

STRANGERS: Final = -1
"""Represents the uids of all users who are not admitted."""

_int: Final = struct.Struct("i")


class Closing(Protocol):
    """An fd of another file system that the helper process closes."""

    async def wait(self) -> None:
        """Wait until it is closed."""


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
    """The helper process: it receives fds, and passes on those of the mount."""

    async def receive_fd(
        self, connection: socket.socket, wanted: int, device: str
    ) -> Received:
        """Receive *wanted* bytes at most, and the fds that come with them.

        *device* is the mount's number. Of several fds the first counts.

        Raises:
            OSError: there is nothing to read, or no helper.
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
        # The server's nursery: a closing counts even after its peer has disconnected.
        self.nursery: trio.Nursery | None = None
        self._users: Final[defaultdict[int, _User]] = defaultdict(_User)
        # The number of connections that wait for a thread, or that a thread is closing.
        self.connections = 0
        self._trouble: Final = Trouble()

    # --- fds of other file systems ------------------------------------------------

    @asynccontextmanager
    async def receiving(self, uid: int) -> AsyncIterator[bool]:
        """Whether an fd may be received in an async with block. One at a time may.

        If the fd is of another mount, call `count` before the block ends.
        """
        user = self._users[uid]
        async with user.receiving:
            yield user.foreign < _FOREIGN

    def count(self, uid: int, closing: Closing, closed: Callable[[], None]) -> None:
        """Count *closing* for its user; call *closed* when it has ended."""
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
        """Read *size* bytes, which MSG_PEEK has found, and drop their fds."""

        def read() -> None:
            left = size
            with suppress(OSError):
                while left and (data := connection.recv(left)):
                    left -= len(data)

        await self._in_thread(read, uid)

    async def close(self, connection: socket.socket, uid: int) -> None:
        """Close a connection, which may have unread bytes and fds."""
        if not _has_fds(connection):
            connection.close()
            return
        self.connections += 1
        try:
            await self._in_thread(connection.close, uid)
        finally:
            self.connections -= 1

    def close_soon(self, connection: socket.socket, uid: int) -> None:
        """As `close`; in a task, if it has to wait."""
        if not _has_fds(connection):
            connection.close()
            return
        assert self.nursery is not None
        self.nursery.start_soon(self.close, connection, uid)

    async def _in_thread(self, work: Callable[[], None], uid: int) -> None:
        """Run *work*, which may never return, in one of the user's threads.

        A thread that hangs is abandoned when the caller is cancelled.
        """
        await threads.do(
            work,
            self._users[uid].threads,
            self._trouble,
            "closing for peers",
            abandon=True,
        )


def _has_fds(connection: socket.socket) -> bool:
    """Whether there are unreceived fds. Shuts the connection down."""
    try:
        with suppress(OSError):
            # Otherwise the peer may send some between this check and the close.
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
