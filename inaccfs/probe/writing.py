"""Rows that write: positioned or not, from memory, a pipe, a file or a clone."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from inaccfs.errnos import os_error
from inaccfs.probe import rings
from inaccfs.probe.attempts import Subject, in_bytes, rows
from inaccfs.probe.reading import BYTES, aio, io_uring

_PAGE: Final = bytes(BYTES)

# include/uapi/linux/fs.h
_FICLONE: Final = 0x40049409
_FICLONERANGE: Final = 0x4020940D
_FIDEDUPERANGE: Final = 0xC0189436


def _write(subject: Subject, page: bytes = _PAGE) -> str:
    return in_bytes(os.write(subject.fd, page))


def _write_at(subject: Subject, offset: int) -> str:
    return in_bytes(os.pwrite(subject.fd, _PAGE, offset))


def _pwritev(subject: Subject, flags: int = 0) -> str:
    return in_bytes(os.pwritev(subject.fd, [_PAGE], 0, flags))


def _append(subject: Subject) -> str:
    flags = fcntl.fcntl(subject.fd, fcntl.F_GETFL)
    fcntl.fcntl(subject.fd, fcntl.F_SETFL, flags | os.O_APPEND)
    return _write(subject)


def _splice(subject: Subject, offset: int | None = None) -> str:
    reader, writer = os.pipe()
    os.write(writer, _PAGE)
    return in_bytes(os.splice(reader, subject.fd, BYTES, offset_dst=offset))


def _memfd() -> int:
    memfd = os.memfd_create("inaccfs-probe-peer")
    os.write(memfd, _PAGE)
    return memfd


def _sendfile(subject: Subject) -> str:
    return in_bytes(os.sendfile(subject.fd, _memfd(), 0, BYTES))


def _copy_from_memfd(subject: Subject) -> str:
    return in_bytes(os.copy_file_range(_memfd(), subject.fd, BYTES, 0, 0))


def _copy_from_another(subject: Subject) -> str:
    another = subject.target.make_another()
    return in_bytes(os.copy_file_range(another, subject.fd, BYTES, 0, 0))


def _clone(subject: Subject) -> None:
    fcntl.ioctl(subject.fd, _FICLONE, subject.target.make_another())


def _clone_range(subject: Subject) -> None:
    # struct file_clone_range: src_fd, src_offset, src_length, dest_offset
    source = subject.target.make_another()
    fcntl.ioctl(
        subject.fd, _FICLONERANGE, struct.pack("=qQQQ", source, 0, subject.unit, 0)
    )


def _dedupe(subject: Subject) -> str:
    # struct file_dedupe_range: src_offset, src_length, dest_count; then of each
    # destination dest_fd, dest_offset, bytes_deduped, status.
    source = subject.target.make_another()
    request = struct.pack(
        "=QQHHI qQQiI", 0, subject.unit, 1, 0, 0, subject.fd, 0, 0, 0, 0
    )
    answer = bytearray(request)
    fcntl.ioctl(source, _FIDEDUPERANGE, answer)
    deduped, status = struct.unpack_from("=Qi", answer, 40)
    if status < 0:
        raise os_error(-status)
    return in_bytes(deduped)


ROWS: Final = rows(
    "write",
    {
        "write": _write,
        "write 0 bytes": lambda it: _write(it, b""),
        "write after F_SETFL O_APPEND": _append,
        "writev": lambda it: in_bytes(os.writev(it.fd, [_PAGE])),
        "pwrite": lambda it: _write_at(it, 0),
        "pwrite past the end": lambda it: _write_at(it, it.size),
        "pwritev": _pwritev,
        "pwritev2 RWF_NOWAIT": lambda it: _pwritev(it, os.RWF_NOWAIT),
        "pwritev2 RWF_APPEND": lambda it: _pwritev(it, os.RWF_APPEND),
        "splice from a pipe": _splice,
        "splice from a pipe, at an offset": lambda it: _splice(it, 0),
        "sendfile from a memfd": _sendfile,
        "copy_file_range from a memfd": _copy_from_memfd,
        "copy_file_range from another such file": _copy_from_another,
        "FICLONE": _clone,
        "FICLONERANGE": _clone_range,
        "FIDEDUPERANGE": _dedupe,
        "io_uring write": io_uring(rings.WRITE),
        "io_uring writev": io_uring(rings.WRITEV, vector=True),
        "io_uring write, fixed buffer": io_uring(rings.WRITE_FIXED),
        "AIO pwrite": aio(rings.AIO_PWRITE),
        "AIO pwritev": aio(rings.AIO_PWRITEV, vector=True),
    },
)
