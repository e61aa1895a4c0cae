"""What a peer is sent, and what waits until it reads."""

from __future__ import annotations

import os
import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.readiness import wait_writable
from inaccfs.shim.acktimeouts import in_time

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from inaccfs.control.limits import Policy

# So much goes into one send(2).
_JOINED_BYTES: Final = 1 << 16


class Backlog:
    """What waits for all peers to read it."""

    def __init__(self) -> None:
        self.bytes = 0
        # Those that something waits for.
        self.outlets: Final[set[Outlet]] = set()

    def largest(self) -> Outlet:
        """The one that has left the most unread."""
        return max(self.outlets, key=lambda outlet: outlet.waiting)


class Outlet:
    """The writing end of one connection, which is not blocking."""

    def __init__(
        self,
        connection: socket.socket,
        policy: Policy,
        backlog: Backlog,
        progressed: Callable[[], None],
        disconnect: Callable[[str], None],
        evict: Callable[[str, str], None],
    ) -> None:
        """*progressed* is called when something has been read.

        *disconnect* is called when the peer has gone, with the reason, and *evict* when
        it does not read, with the reason and a text for the log.
        """
        self._connection: Final = connection
        self._policy: Final = policy
        self._backlog: Final = backlog
        self._progressed: Final = progressed
        self._disconnect: Final = disconnect
        self.evict: Final = evict
        # Whose task writes what waits; None before there is one, and after.
        self.nursery: trio.Nursery | None = None
        # Bytes that the peer has not read yet, and an fd that goes with the first.
        self._unread: Final[deque[tuple[memoryview, int]]] = deque()
        # How many these are.
        self.waiting = 0
        self._writing = False
        # Whether nothing is sent any more.
        self._closed = False

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._unread)

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be read that no more shall be answered.

        That is so as well if it is too much for all peers together, for those of them
        that have not read all.
        """
        limits = self._policy.limits
        return self.waiting > limits.output or (
            self.waiting > 0 and self._backlog.bytes > limits.total_output
        )

    def send(self, data: bytes, fd: int = -1) -> None:
        """Send *data*, and *fd*, which is closed then. Never blocks, never raises."""
        if self._unread and not self._closed:
            self._keep(memoryview(data), fd)
        elif (rest := self._transmit(data, fd)) is not None:
            self._keep(*rest)

    def close(self) -> None:
        """Send nothing any more."""
        self._closed = True
        self.nursery = None
        self._wait_less(self.waiting)
        for _, fd in self._unread:
            if fd >= 0:
                os.close(fd)
        self._unread.clear()

    def _wait_more(self, count: int) -> None:
        self.waiting += count
        self._backlog.bytes += count
        self._backlog.outlets.add(self)

    def _wait_less(self, count: int) -> None:
        self.waiting -= count
        self._backlog.bytes -= count
        if not self.waiting:
            self._backlog.outlets.discard(self)

    def _transmit(
        self, data: bytes | memoryview, fd: int
    ) -> tuple[memoryview, int] | None:
        """Send what the socket takes; return what is left, and *fd* if that is left."""
        sent = len(data)
        if not self._closed:
            try:
                if fd < 0:
                    sent = self._connection.send(data)
                else:
                    sent = socket.send_fds(self._connection, [data], [fd])
            except BlockingIOError:
                return memoryview(data), fd
            except OSError:
                # Its end of reading will come, too; but this is sooner.
                self._disconnect("it hung up")
        if fd >= 0:
            os.close(fd)
        return None if sent == len(data) else (memoryview(data)[sent:], -1)

    def _keep(self, data: memoryview, fd: int) -> None:
        """Let *data* wait until it is read, if it may."""
        self._unread.append((data, fd))
        self._wait_more(len(data))
        # Replies wait for output to be read; only events can come to so much. The
        # first of all may be a reply that is as long as it likes.
        limits = self._policy.limits
        behind = self.waiting - len(self._unread[0][0])
        if behind > limits.output:
            self.evict("it does not read", f"{behind} bytes of events unread")
        elif self._backlog.bytes > 2 * limits.total_output:
            # More than the replies can be that were begun before.
            self._backlog.largest().evict(
                "it does not read", "peers leave too much unread, and this one the most"
            )
        if not self._writing and self.nursery is not None:
            self._writing = True
            self.nursery.start_soon(self._write)

    async def _write(self) -> None:
        while self._unread:
            waiting = self.waiting
            in_its_time = await in_time(
                self._policy.ack_seconds, partial(wait_writable, self._connection)
            )
            self._flush()
            if not in_its_time and self.waiting == waiting:
                self.evict("it does not read", "reads nothing")
                return
            self._progressed()
        self._writing = False
        self._progressed()

    def _flush(self) -> None:
        """Send as much as it takes."""
        while self._unread:
            data, fd = self._unread.popleft()
            self._wait_less(len(data))
            if fd < 0 and len(data) < _JOINED_BYTES:
                data = self._join(data)
            if (rest := self._transmit(data, fd)) is not None:
                self._unread.appendleft(rest)
                self._wait_more(len(rest[0]))
                return

    def _join(self, data: memoryview) -> memoryview:
        """*data* and what comes after it: of one punch there may be thousands."""
        parts = [data]
        length = len(data)
        while self._unread and self._unread[0][1] < 0 and length < _JOINED_BYTES:
            parts.append(self._unread.popleft()[0])
            length += len(parts[-1])
        self._wait_less(length - len(data))
        return memoryview(b"".join(parts)) if len(parts) > 1 else data
