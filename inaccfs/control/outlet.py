"""The writing end of a connection: bytes, and fds that go with some of them.

For the daemon and its clients. Data without room waits, in order; or it is dropped and
counted, if a loss does no harm.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

# The most bytes for one send(2): a punch may have thousands of events.
_JOINED_BYTES: Final = 1 << 16


class Sink(Protocol):
    """The output of a trace."""

    def offer(self, data: bytes) -> bool:
        """Send *data* if there is room now; otherwise return False. Never raises."""


class Outbound(Sink, Protocol):
    """The output of a session; see peeroutlet.PeerOutlet."""

    def send(self, data: bytes, fd: int = -1) -> None:
        """Send *data* and *fd*, and close *fd*. Never blocks, never raises."""

    def evict(self, reason: str, text: str) -> None:
        """Disconnect the peer. *reason* says why; *text* has more for the log."""


class Outlet:
    """Sends messages in order. Never blocks if its connection does not."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: Final = connection
        # Messages, or the rest of one, each with the fd that its first byte carries.
        self._unsent: Final[deque[tuple[bytes | memoryview, int]]] = deque()
        # How many bytes wait.
        self.waiting = 0
        # How many messages `offer` has dropped.
        self.lost = 0

    def __len__(self) -> int:
        """How many messages wait; the rest of one counts, too."""
        return len(self._unsent)

    @property
    def waiting_after_first(self) -> int:
        """How many bytes wait besides the first message."""
        return self.waiting - len(self._unsent[0][0]) if self._unsent else 0

    def send(self, data: bytes, fd: int = -1) -> bool:
        """Send *data* and *fd* after all that waits, and close *fd*.

        Data without room waits for `flush`. Returns whether nothing waits any more.

        Raises:
            OSError: the other end is closed, or the fd cannot be sent. The fd is
                closed.
        """
        rest: bytes | memoryview = data
        if not self._unsent:
            sent = self._transmit(data, fd)
            if sent == len(data):
                return True
            if sent:
                rest, fd = memoryview(data)[sent:], -1
        self._unsent.append((rest, fd))
        self.waiting += len(rest)
        return False

    def extend(self, messages: Iterable[tuple[bytes, int]]) -> None:
        """Queue messages, each with its fd or -1, until `flush`."""
        for data, fd in messages:
            self._unsent.append((data, fd))
            self.waiting += len(data)

    def offer(self, data: bytes) -> bool:
        """Send *data* if there is room now; otherwise drop it, count it, return False.

        Offered data never waits, so no peer is disconnected for not reading it: the
        kernel takes up to 32 KiB as a whole or not at all (unix_stream_sendmsg() in
        net/unix/af_unix.c). If it takes a part of a longer message, the rest waits,
        because a message must not be cut.

        Raises:
            OSError: the other end is closed.
        """
        if not self._unsent and (sent := self._transmit(data, -1)):
            if sent < len(data):
                self._unsent.append((memoryview(data)[sent:], -1))
                self.waiting += len(data) - sent
            return True
        self.lost += 1
        return False

    def flush(self) -> bool:
        """Send what waits, as far as there is room; return whether that was all.

        Raises:
            OSError: as for `send`.
        """
        while self._unsent:
            data, fd = self._take()
            self.waiting -= len(data)
            sent = self._transmit(data, fd)
            if sent < len(data):
                self._unsent.appendleft(
                    (memoryview(data)[sent:], -1) if sent else (data, fd)
                )
                self.waiting += len(data) - sent
                if not sent:
                    return False
        return True

    def _take(self) -> tuple[bytes | memoryview, int]:
        """Remove the first message, with all that fits in the same send(2)."""
        data, fd = self._unsent.popleft()
        if fd >= 0 or len(data) >= _JOINED_BYTES or not self._unsent:
            return data, fd
        parts = [data]
        length = len(data)
        while self._unsent and self._unsent[0][1] < 0 and length < _JOINED_BYTES:
            part, _ = self._unsent.popleft()
            parts.append(part)
            length += len(part)
        return (b"".join(parts) if len(parts) > 1 else data), -1

    def close(self) -> None:
        """Drop all that waits, and close its fds. The connection stays open."""
        self.waiting = 0
        while self._unsent:
            _, fd = self._unsent.popleft()
            if fd >= 0:
                os.close(fd)

    def _transmit(self, data: bytes | memoryview, fd: int) -> int:
        """Send as much as the socket takes; return how many bytes.

        The fd goes with the first byte: it is closed unless the result is 0.
        """
        try:
            if fd < 0:
                return self._connection.send(data)
            sent = socket.send_fds(self._connection, [data], [fd])
        except BlockingIOError:
            return 0
        except OSError:
            if fd >= 0:
                os.close(fd)
            raise
        os.close(fd)
        return sent
