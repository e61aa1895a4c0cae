"""The way to pyfuse3 and back: a SOCK_SEQPACKET pair, with flow control.

libfuse behind the pair drops a reply that does not fit into the socket, and whoever
waits for it would hang. So a request is sent only if its largest reply fits beside
those of the requests that are out.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING

import trio

from inaccfs.fuse import wire

if TYPE_CHECKING:
    from collections.abc import Callable


class Relay:
    """Our end of the pair."""

    def __init__(self, connection: socket.socket) -> None:
        """Take a non-blocking *connection*."""
        self._connection = connection
        # Bytes that the requests which are out may need for their replies, by unique,
        # and all together; and how many there may be. The kernel counts its own
        # overhead too, hence the half.
        self._reserved: dict[int, int] = {}
        self._reserved_sum = 0
        self._reservable = (
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        )
        # What waits for room: unique, bytes to reserve, message.
        self._waiting: deque[tuple[int, int, bytes]] = deque()

    def send(self, unique: int, message: bytes, largest_reply: int) -> None:
        """Send a request, or let it wait for room. Sizes are bytes."""
        self._waiting.append((unique, len(message) + largest_reply, message))
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            unique, room, message = self._waiting[0]
            if self._reserved and self._reserved_sum + room > self._reservable:
                return
            try:
                self._connection.send(message)
            except BlockingIOError:
                # The next reply makes room.
                if self._reserved:
                    return
                raise
            self._waiting.popleft()
            self._reserved[unique] = room
            self._reserved_sum += room

    async def run(self, deliver: Callable[[memoryview], None]) -> None:
        """Call *deliver* with each reply, until the other end is closed."""
        reply = bytearray(wire.REQUEST_BUFFER_SIZE)
        view = memoryview(reply)
        while True:
            try:
                size = self._connection.recv_into(reply)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._connection)
                continue
            if size == 0:
                return
            _, _, unique = wire.unpack_out_header(reply)
            self._reserved_sum -= self._reserved.pop(unique, 0)
            deliver(view[:size])
            self._send_waiting()
