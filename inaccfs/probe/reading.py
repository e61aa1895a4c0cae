"""Rows that read: positioned or not, into memory, a pipe, a socket or a file."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from inaccfs.probe import rings
from inaccfs.probe.attempts import Subject, in_bytes, rows
from inaccfs.probe.outcomes import NotHere

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES: Final = 4096
"""How many bytes one call reads or writes."""

RWF_DONTCACHE: Final = 0x80


def _read(subject: Subject, length: int = BYTES) -> str:
    return in_bytes(len(os.read(subject.fd, length)))


def _read_at(subject: Subject, offset: int) -> str:
    return in_bytes(len(os.pread(subject.fd, BYTES, offset)))


def _preadv(subject: Subject, flags: int = 0) -> str:
    return in_bytes(os.preadv(subject.fd, [bytearray(BYTES)], 0, flags))


def _read_direct(subject: Subject) -> str:
    flags = fcntl.fcntl(subject.fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(subject.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError as exc:
        raise NotHere("no O_DIRECT") from exc
    # A mapping, because O_DIRECT needs aligned memory.
    with mmap.mmap(-1, BYTES) as page:
        return in_bytes(os.readv(subject.fd, [page]))


def _splice(subject: Subject, offset: int | None = None) -> str:
    _, writer = os.pipe()
    return in_bytes(os.splice(subject.fd, writer, BYTES, offset))


def _sendfile_to_socket(subject: Subject) -> str:
    near, _far = socket.socketpair()
    return in_bytes(os.sendfile(near.fileno(), subject.fd, 0, BYTES))


def _sendfile_to_pipe(subject: Subject) -> str:
    _, writer = os.pipe()
    return in_bytes(os.sendfile(writer, subject.fd, None, BYTES))


def _copy_to_memfd(subject: Subject) -> str:
    memfd = os.memfd_create("inaccfs-probe-peer")
    return in_bytes(os.copy_file_range(subject.fd, memfd, BYTES, 0, 0))


def _copy_to_another(subject: Subject) -> str:
    another = subject.target.make_another()
    return in_bytes(os.copy_file_range(subject.fd, another, BYTES, 0, 0))


def _copy_within(subject: Subject) -> str:
    half = subject.size // 2
    return in_bytes(os.copy_file_range(subject.fd, subject.fd, BYTES, 0, half))


def io_uring(opcode: int, *, vector: bool = False) -> Callable[[Subject], str]:
    """Moves bytes at offset 0 between the file and memory."""

    def call(subject: Subject) -> str:
        page = ctypes.create_string_buffer(BYTES)
        address, length = ctypes.addressof(page), BYTES
        ring = rings.Ring()
        if opcode in (rings.READ_FIXED, rings.WRITE_FIXED):
            ring.register_buffer(address, length)
        # The name keeps the vector alive during the call.
        vectors = ctypes.create_string_buffer(struct.pack("=QQ", address, length), 16)
        if vector:
            address, length = ctypes.addressof(vectors), 1
        operation = rings.Operation(
            opcode=opcode, fd=subject.fd, address=address, length=length
        )
        return in_bytes(ring.submit(operation))

    return call


def _io_uring_splice(subject: Subject) -> str:
    _, writer = os.pipe()
    operation = rings.Operation(
        opcode=rings.SPLICE,
        fd=writer,
        # -1: no offset at either end.
        offset=(1 << 64) - 1,
        address=(1 << 64) - 1,
        length=BYTES,
        splice_fd=subject.fd,
    )
    return in_bytes(rings.Ring().submit(operation))


def aio(opcode: int, *, vector: bool = False) -> Callable[[Subject], str]:
    """Moves bytes at offset 0 between the file and memory."""

    def call(subject: Subject) -> str:
        page = ctypes.create_string_buffer(BYTES)
        address, length = ctypes.addressof(page), BYTES
        vectors = ctypes.create_string_buffer(struct.pack("=QQ", address, length), 16)
        if vector:
            address, length = ctypes.addressof(vectors), 1
        return in_bytes(rings.aio(opcode, subject.fd, address, length))

    return call


ROWS: Final = rows(
    "read",
    {
        "read": _read,
        "read 0 bytes": lambda it: _read(it, 0),
        "readv": lambda it: in_bytes(os.readv(it.fd, [bytearray(BYTES)])),
        "pread": lambda it: _read_at(it, 0),
        "pread of a hole": lambda it: _read_at(it, it.size - it.unit),
        "pread past the end": lambda it: _read_at(it, it.size),
        "preadv": _preadv,
        "preadv2 RWF_NOWAIT": lambda it: _preadv(it, os.RWF_NOWAIT),
        "preadv2 RWF_HIPRI": lambda it: _preadv(it, os.RWF_HIPRI),
        "preadv2 RWF_DONTCACHE": lambda it: _preadv(it, RWF_DONTCACHE),
        "read after F_SETFL O_DIRECT": _read_direct,
        "splice to a pipe": _splice,
        "splice to a pipe, at an offset": lambda it: _splice(it, 0),
        "sendfile to a socket": _sendfile_to_socket,
        "sendfile to a pipe": _sendfile_to_pipe,
        "copy_file_range to a memfd": _copy_to_memfd,
        "copy_file_range to another such file": _copy_to_another,
        "copy_file_range within the file": _copy_within,
        "io_uring read": io_uring(rings.READ),
        "io_uring readv": io_uring(rings.READV, vector=True),
        "io_uring read, fixed buffer": io_uring(rings.READ_FIXED),
        "io_uring splice to a pipe": _io_uring_splice,
        "AIO pread": aio(rings.AIO_PREAD),
        "AIO preadv": aio(rings.AIO_PREADV, vector=True),
    },
)
