"""The writing end of a connection: bytes, and fds that go with some of them.

For the daemon and its clients. What there is no room for waits, in order; or it is
dropped and counted, where losing it does no harm.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# So much goes into one send(2): of one punch there may be thousands of events.
_JOINED_BYTES: Final = 1 << 16


class Outlet:
    """Never blocks if its connection does not."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: Final = connection
        # Messages, or the rest of one, each with the fd that goes with its first byte.
        self._unsent: Final[deque[tuple[bytes | memoryview, int]]] = deque()
        # How many bytes these are.
        self.waiting = 0
        # How many messages `offer` has dropped.
        self.lost = 0

    def __len__(self) -> int:
        """How many messages wait, the rest of one included."""
        return len(self._unsent)

    @property
    def waiting_after_first(self) -> int:
        """How many bytes wait besides the first message."""
        return self.waiting - len(self._unsent[0][0]) if self._unsent else 0

    def send(self, data: bytes, fd: int = -1) -> bool:
        """Send *data*, and *fd* with it, which is closed then; after all that waits.

        Data without room waits for `flush`. Returns whether nothing waits now.

        Raises:
            OSError: the other end is closed, or the fd cannot be sent. It is closed.
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
        """Let messages, each with its fd or -1, wait for `flush`."""
        for data, fd in messages:
            self._unsent.append((data, fd))
            self.waiting += len(data)

    def offer(self, data: bytes) -> bool:
        """Send *data* if there is room now; else drop it, count it and return false.

        Offered data never waits, so no peer is disconnected for not reading it: the
        kernel takes up to 32 KiB whole or not at all (unix_stream_sendmsg() in
        net/unix/af_unix.c). If it takes a part of more, the rest waits, because a
        message that has begun must not be cut.

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
        """Send what waits, as far as there is room; return whether nothing waits now.

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
        """The first that waits, with all that can go in the same send(2)."""
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
        """Drop what waits, and close its fds. The connection stays open."""
        self.waiting = 0
        while self._unsent:
            _, fd = self._unsent.popleft()
            if fd >= 0:
                os.close(fd)

    def _transmit(self, data: bytes | memoryview, fd: int) -> int:
        """Send what the socket takes; return how many bytes.

        The fd goes with the first of them: it is closed unless that is 0.
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
