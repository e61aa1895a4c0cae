"""The packets between the daemon and its workers, on SOCK_SEQPACKET sockets.

A request is a packet of fields with NUL between them; the first says what to do. An
answer is `Answer`, and text after it where there is a bug to log. Each packet can have
one fd.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final, NamedTuple

ALLOCATE: Final = b"allocate"
"""Fields: mode, offset, length. Carries an fd of the file."""

OPEN_TMPFILE: Final = b"open-tmpfile"
"""Fields: the directory's path, the device. The answer carries an fd."""

RECEIVE: Final = b"receive"
"""Fields: how many bytes, the device. Carries the socket; the answer may have an fd.

If `Answer.foreign` is set, a second answer follows when the fd has been closed.
"""

WORKER: Final = b"worker"
"""To the helper: fork a worker. Carries the worker's end of a socket.

The first packet on that socket is an `Answer` with a pidfd of the worker; or, if
fork(2) failed, with its errno and without a pidfd.
"""

READY: Final = b"ready"
"""From a helper in a new interpreter. Carries the socket for requests."""

# More than a path, which can have PATH_MAX bytes, or a traceback.
_PACKET_BYTES: Final = 65536
TEXT_BYTES: Final = 32768

# Room for one fd. CMSG_SPACE() of one would be room for two.
_ONE_FD: Final = socket.CMSG_LEN(4)

_answer: Final = struct.Struct("=iq?")

A_BUG: Final = -1
"""Not an errno of the kernel: a traceback follows."""


class Answer(NamedTuple):
    """The outcome of a request."""

    # The errno of a call that failed, `A_BUG`, or 0.
    number: int = 0
    # How many bytes were received.
    size: int = 0
    # Whether an fd was received that is not of the mount.
    foreign: bool = False

    def packed(self) -> bytes:
        """The bytes of the packet."""
        return _answer.pack(*self)


def unpack_answer(packet: bytes) -> tuple[Answer, str]:
    """An answer, and the text after it."""
    text = packet[_answer.size :].decode(errors="replace")
    return Answer(*_answer.unpack_from(packet)), text


def pack_request(kind: bytes, *fields: int | str | bytes) -> bytes:
    """One packet. A path may be sent as bytes; no field has a NUL."""
    texts = (at if isinstance(at, bytes) else str(at).encode() for at in fields)
    return b"\0".join((kind, *texts))


def unpack_request(packet: bytes) -> list[bytes]:
    """The operation of a request, and its fields."""
    return packet.split(b"\0")


def receive(
    connection: socket.socket, size: int = _PACKET_BYTES, flags: int = 0
) -> tuple[bytes, int]:
    """A message, and one fd or -1. The kernel drops further fds without a request."""
    flags |= socket.MSG_CMSG_CLOEXEC
    packet, ancillary, _, _ = connection.recvmsg(size, _ONE_FD, flags)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return packet, int.from_bytes(payload[:4], sys.byteorder)
    return packet, -1


def send(connection: socket.socket, packet: bytes, fd: int | None = None) -> None:
    """Send a packet, and an fd, which stays open here."""
    socket.send_fds(connection, [packet], [] if fd is None else [fd])
