"""The transport of /dev/fuse: reads requests, calls their handlers, writes replies."""

from __future__ import annotations

import errno
import io
import logging
import os
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.fuse import wire
from inaccfs.fuse.requests import Request, errno_of
from inaccfs.readiness import wait_readable
from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from inaccfs.fuse.requests import Handler, Pending

log = logging.getLogger(__name__)

# After so many requests in a row the other tasks get a turn. Fewer than one request in
# a hundred then pays for a round of the trio loop.
_REQUESTS_IN_A_ROW: Final = 128

_TRY_AGAIN_SECONDS: Final = 0.01

# write(2) fails with these if nothing waits for the reply any more. ENOENT: the
# connection, and so the request, was aborted. The others: the mount was unmounted, and
# the next read fails, too.
_NOBODY_WAITS: Final = (errno.ENOENT, errno.ENODEV, errno.EPIPE, errno.ECONNRESET)


class Device:
    """An open /dev/fuse. Each read gives one request, each write takes one reply."""

    def __init__(self, fd: int, pending: Pending) -> None:
        """Use *fd*, which does not block; it is the caller's to close."""
        self._fd: Final = fd
        # One request at a time is read into this and handled before the next.
        self._request: Final = Request(pending, self.send)

    async def serve(self, handlers: list[Handler]) -> None:
        """Answer requests until the file system is unmounted."""
        # Every request pays for every line of this loop. A FileIO reads and writes
        # with less overhead than the os module, and returns None for EAGAIN.
        device = io.FileIO(self._fd, "r+", closefd=False)
        readinto, write = device.readinto, device.write
        request, buffer = self._request, self._request.buffer
        unpack_header, pack_reply = wire.unpack_header, wire.pack_reply
        in_a_row = 0
        trouble = Trouble()
        while True:
            try:
                size = readinto(buffer)
                if size is None:
                    # The reply has just woken the caller, which may be about to make
                    # the next call. If both share a CPU, the caller needs that CPU
                    # first: yield it, and save a round of epoll. Otherwise this costs
                    # half a microsecond.
                    os.sched_yield()
                    size = readinto(buffer)
            except OSError as exc:
                if exc.errno in (errno.ENODEV, errno.ECONNABORTED):
                    # Unmounted, or aborted (fusectl, umount -f): no more will come.
                    return
                if exc.errno == errno.ENOENT:
                    # The request was interrupted before we could read it.
                    continue
                # ENOMEM: the kernel has failed that one request.
                trouble.met(f"a request could not be read: {exc.strerror}")
                await trio.sleep(_TRY_AGAIN_SECONDS)
                continue
            if size is None:
                in_a_row = 0
                await wait_readable(self._fd)
                continue
            if size < wire.IN_HEADER_SIZE:
                if size == 0:
                    return
                log.error("request of %d bytes has no header: dropped", size)
                continue
            length, op, unique, request.nodeid = unpack_header(buffer)
            request.size = size
            answer: bytes | int | None
            try:
                if length > size:
                    wire.need(size, length)
                answer = handlers[op if op < wire.OP_TABLE_SIZE else 0](request)
            except Exception as exc:
                answer = errno_of(exc, op)
            if answer is not None:
                if not answer:
                    reply = pack_reply(wire.OUT_HEADER_SIZE, 0, unique)
                elif isinstance(answer, int):
                    reply = pack_reply(wire.OUT_HEADER_SIZE, -answer, unique)
                else:
                    length = wire.OUT_HEADER_SIZE + len(answer)
                    reply = pack_reply(length, 0, unique) + answer
                try:
                    write(reply)
                except OSError as exc:
                    self._refused(unique, reply, exc)
            in_a_row += 1
            if in_a_row >= _REQUESTS_IN_A_ROW:
                in_a_row = 0
                await trio.lowlevel.checkpoint()

    def send(self, unique: int, number: int, payload: bytes | memoryview) -> None:
        """Write a late reply: errno *number* if it is not 0, otherwise *payload*."""
        if number:
            payload = b""
        header = wire.pack_reply(wire.OUT_HEADER_SIZE + len(payload), -number, unique)
        try:
            os.writev(self._fd, (header, payload))
        except OSError as exc:
            self._refused(unique, header + bytes(payload), exc)

    def _refused(self, unique: int, reply: bytes, exc: OSError) -> None:
        """The kernel refused a reply: its caller no longer waits, or it was wrong.

        Or the kernel had no memory to read it: then it is sent once more, because the
        call was executed.
        """
        others = [reply] if exc.errno == errno.ENOMEM else []
        instead = wire.pack_reply(wire.OUT_HEADER_SIZE, -errno.EIO, unique)
        if reply != instead:
            # The caller must not wait for ever.
            others.append(instead)
        while exc.errno not in _NOBODY_WAITS:
            log.error("the kernel refused a reply: %s", exc.strerror)
            if not others:
                return
            try:
                os.writev(self._fd, (others.pop(0),))
            except OSError as again:
                exc = again
            else:
                return
