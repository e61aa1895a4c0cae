"""The way to pyfuse3 and back: a SOCK_SEQPACKET pair, with flow control.

libfuse drops a reply that does not fit into the socket, and its caller would hang. So a
request is sent only when there is room for its largest reply, in addition to the
largest replies of all requests that pyfuse3 has not answered yet.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from inaccfs.fuse import wire
from inaccfs.fuse.requests import safe_errno
from inaccfs.readiness import wait_readable
from inaccfs.trouble import Trouble

_TRY_AGAIN_SECONDS: Final = 0.01

Deliver = Callable[[int, memoryview], None]
"""Takes pyfuse3's reply: an errno or 0, and the payload, valid only during the call."""


class _Relayed(NamedTuple):
    """A request on its way through pyfuse3."""

    # Bytes that request and reply may need in the socket.
    room: int
    deliver: Deliver


class Relay:
    """Our end of the pair."""

    def __init__(self, connection: socket.socket) -> None:
        """Take a non-blocking *connection*."""
        self._connection: Final = connection
        # The unanswered requests, by unique; and the sum of their rooms, which must not
        # exceed `_most`. The kernel counts its own overhead, too, hence the half.
        self._sent: Final[dict[int, _Relayed]] = {}
        self._room_taken = 0
        self._most: Final = (
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        )
        # Requests that wait for room.
        self._waiting: Final[deque[tuple[bytes, _Relayed]]] = deque()

    def send(self, message: bytes, largest_reply: int, deliver: Deliver) -> None:
        """Send a request now, or when there is room; *deliver* gets its reply.

        If the request cannot be sent, it gets the errno. *largest_reply* is in bytes.
        """
        relayed = _Relayed(len(message) + largest_reply, deliver)
        self._waiting.append((message, relayed))
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            message, relayed = self._waiting[0]
            if self._sent and self._room_taken + relayed.room > self._most:
                return
            try:
                self._connection.send(message)
            except OSError as exc:
                if isinstance(exc, BlockingIOError) and self._sent:
                    # The next reply makes room.
                    return
                # ENOBUFS, ENOMEM: this call fails, and no other.
                self._waiting.popleft()
                relayed.deliver(safe_errno(exc.errno or errno.EIO), memoryview(b""))
                continue
            self._waiting.popleft()
            _, _, unique, _ = wire.unpack_header(message)
            self._sent[unique] = relayed
            self._room_taken += relayed.room

    async def run(self) -> None:
        """Deliver replies until the other end is closed."""
        buffer = bytearray(wire.REQUEST_BUFFER_SIZE)
        view = memoryview(buffer)
        trouble = Trouble()
        while True:
            try:
                size = self._connection.recv_into(buffer)
            except BlockingIOError:
                await wait_readable(self._connection)
                continue
            except OSError as exc:
                # ENOMEM: the data can be received later.
                trouble.met(f"no reply from pyfuse3: {exc.strerror}")
                await trio.sleep(_TRY_AGAIN_SECONDS)
                continue
            if size == 0:
                return
            _, error, unique = wire.unpack_out_header(buffer)
            relayed = self._sent.pop(unique, None)
            if relayed is not None:
                self._room_taken -= relayed.room
                number = safe_errno(-error) if error else 0
                relayed.deliver(number, view[wire.OUT_HEADER_SIZE : size])
            self._send_waiting()
