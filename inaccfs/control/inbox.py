"""The input of a peer: parses bytes to commands, and receives their fds.

A recvmsg(2) with MSG_PEEK and without room for fds returns MSG_CTRUNC if there are fds.
So we know what comes before we read it. Fds that no command takes are left to the
kernel, which drops them without sending FLUSH. An fd that a command takes is received
by the helper process, which passes it on if it is of this mount.
"""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import nullcontext
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from inaccfs.control import qmp
from inaccfs.control.request import NO_FD, Passed, close_passed
from inaccfs.control.stream import Asked, Refused, Stream, TooLong
from inaccfs.errnos import os_error
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from inaccfs.control.closings import Received
    from inaccfs.control.messages import Command
    from inaccfs.control.serverparts import ServerParts
    from inaccfs.control.stream import Found

log = logging.getLogger(__name__)

# The peer has hung up.
_GONE: Final = (errno.ECONNRESET, errno.EPIPE)

# Small enough that a peer that floods us does not keep others waiting.
_READ_BYTES: Final = 4096

# Replies to more commands than this, which one read has brought, are sent together.
_FEW: Final = 4

# An int: the & of socket's own flags is slower than a system call.
_CTRUNC: Final = int(socket.MSG_CTRUNC)


def _busy() -> OSError:
    return OSError(
        errno.EBUSY,
        "fds of other file systems that this user has sent are still being closed: no "
        "fd is taken meanwhile",
    )


class Event(Enum):
    """The result of a read."""

    # Some data was read, and there may be more.
    READ = auto()
    NOTHING = auto()
    # The connection has ended, or the rest of its data cannot be parsed.
    END = auto()
    # There are fds: call `read_with_fds`, and `read` only after it.
    FDS = auto()


class Inbox:
    """The reading end of one non-blocking connection."""

    def __init__(
        self,
        connection: socket.socket,
        uid: int,
        parts: ServerParts,
        take: Callable[[Command, qmp.RequestId, Passed], None],
        refuse: Callable[[bytes], None],
        joined: AbstractContextManager[None],
        wait_room: Callable[[], Awaitable[None]],
    ) -> None:
        """*take* gets each command, and *refuse* the reply to anything else.

        In a *joined* block, replies are sent together. *wait_room* waits until the peer
        has read enough of its replies and events.
        """
        self._connection: Final = connection
        self._uid: Final = uid
        # The most bytes of a message.
        self._limit: Final = parts.policy.limits.message
        self._closings: Final = parts.closings
        self._receiver: Final = parts.receiver
        # The number of the mount whose fds are accepted.
        self._device: Final = parts.device
        self._take: Final = take
        self._refuse: Final = refuse
        self._joined: Final = joined
        self._wait_room: Final = wait_room
        self._stream: Final = Stream(self._limit)
        # The fd for an incomplete object.
        self._early = NO_FD
        # Whether a foreign fd of this peer is being closed.
        self._is_closing = False

    def read(self) -> Event:
        """Read and process the available data, unless fds come with it."""
        connection = self._connection
        try:
            data, _, flags, _ = connection.recvmsg(_READ_BYTES, 0, socket.MSG_PEEK)
            if flags & _CTRUNC:
                return Event.FDS
            connection.recv(len(data))
        except BlockingIOError:
            return Event.NOTHING
        except OSError:
            # ECONNRESET, usually; in any case no more can be read.
            return Event.END
        if not data:
            return Event.END
        # The usual case: one command, with one line end, at its end.
        if (
            data.find(b"\n", 0, -1) < 0
            and self._stream.is_between
            and len(data) <= self._limit
        ):
            try:
                command, request_id = qmp.decode_request(data)
            except qmp.BadRequestError:
                pass
            else:
                self._take(command, request_id, NO_FD)
                return Event.READ
        # The first of few replies wakes the peer while the next one is made: a fault's
        # put-pfn, and the get-pfn of the next fault.
        with self._joined if data.count(b"\n") > _FEW else nullcontext():
            for found in self._stream.feed(data):
                if not self._deal(found):
                    return Event.END
        return Event.READ

    async def read_with_fds(self) -> Event:
        """Read the data that `read` has found, with its fds."""
        connection = self._connection
        slices = Slices()
        try:
            # Enough to reach the end of the message with the fds: the kernel reads no
            # further. See unix(7).
            data = connection.recv(max(self._limit, _READ_BYTES), socket.MSG_PEEK)
            all_found = []
            for found in self._stream.feed(data):
                all_found.append(found)
                await slices.give()
            begins = [
                found.begin
                for found in all_found
                if type(found) is Asked and found.command.takes_fd and found.begin >= 0
            ]
            # An incomplete object may become a command that takes an fd.
            begun = len(data) - self._stream.begun
            if 0 <= begun < len(data):
                begins.append(begun)
            owner, passed = await self._receive(len(data), begins)
        except OSError as exc:
            if exc.errno not in _GONE:
                log.error("no fd can be received: %s", exc.strerror)  # noqa: TRY400
            return Event.END
        try:
            for found in all_found:
                its, passed = (
                    (passed, NO_FD) if found.begin == owner else (NO_FD, passed)
                )
                if not self._deal(found, its):
                    return Event.END
                await slices.give()
                await self._wait_room()
            if owner == begun:
                self._early, passed = passed, NO_FD
        finally:
            close_passed(passed)
        return Event.READ

    async def _receive(self, size: int, begins: list[int]) -> tuple[int, Passed]:
        """Read *size* bytes and an fd, for one of the objects that begin at *begins*.

        The fd is for the first object that begins in the bytes that the fd came with.
        Returns where that object begins, or -1 if there is none, and the fd.
        """
        if not begins:
            await self._closings.drop(self._connection, self._uid, size)
            return -1, NO_FD
        async with self._closings.receiving(self._uid) as allowed:
            if allowed and not self._is_closing:
                return await self._receive_for(size, begins)
        await self._closings.drop(self._connection, self._uid, size)
        return begins[0], Passed(refusal=_busy())

    async def _receive_for(self, size: int, begins: list[int]) -> tuple[int, Passed]:
        at = 0
        for begin in begins:
            # The object gets an fd that comes before it, or with its first byte.
            for end in (begin, begin + 1):
                while at < end:
                    received = await self._receiver.receive_fd(
                        self._connection, end - at, self._device
                    )
                    if not received.size:
                        raise os_error(errno.ECONNRESET)
                    at += received.size
                    if received.fd >= 0 or received.foreign:
                        # The rest of these bytes has no fd.
                        while at < size and (rest := self._connection.recv(size - at)):
                            at += len(rest)
                        return begin, self._passed(received)
        await self._closings.drop(self._connection, self._uid, size - at)
        return -1, NO_FD

    def _passed(self, received: Received) -> Passed:
        if received.closing is not None:
            self._is_closing = True
            self._closings.count(self._uid, received.closing, self._closed)
        if received.foreign:
            return Passed(
                refusal=OSError(errno.EINVAL, "the fd is no file of this mount")
            )
        return Passed(received.fd)

    def _closed(self) -> None:
        self._is_closing = False

    def close(self) -> None:
        """Close the fd of a command that was never completed."""
        close_passed(self._early)
        self._early = NO_FD

    def _deal(self, found: Found, passed: Passed = NO_FD) -> bool:
        """Pass on what was parsed; return False if the rest cannot be parsed."""
        if found.begin < 0:
            passed, self._early = self._early, NO_FD
        if type(found) is Asked:
            self._take(found.command, found.id, passed)
            return True
        close_passed(passed)
        if type(found) is Refused:
            self._refuse(found.reply)
            return True
        assert type(found) is TooLong
        self._refuse(
            qmp.encode_error(
                "GenericError",
                f"EMSGSIZE: a message can have {self._limit} bytes (--limit message=N)",
                qmp.NO_ID,
            )
        )
        return False
