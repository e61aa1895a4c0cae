"""Rows that query the file, or give the kernel advice about it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from inaccfs import mmcalls, syscalls
from inaccfs.kvmcalls import KVM_GET_API_VERSION
from inaccfs.probe import calls
from inaccfs.probe.attempts import Subject, in_bytes, rows
from inaccfs.probe.targets import PUNCH

if TYPE_CHECKING:
    from collections.abc import Callable

_INT: Final = struct.calcsize("i")

# include/uapi/linux/fs.h, fiemap.h, and asm-generic/ioctls.h
_IOCTLS: Final = {
    "FS_IOC_GETFLAGS": 0x80086601,
    "FS_IOC_GETVERSION": 0x80087601,
    "FS_IOC_FSGETXATTR": 0x801C581F,
    "FS_IOC_MEASURE_VERITY": 0xC0046686,
    "FIBMAP": 1,
    "FIGETBSZ": 2,
    "FIONREAD": 0x541B,
    "TCGETS": 0x5401,
    "BLKGETSIZE64": 0x80081272,
    "KVM_GET_API_VERSION": KVM_GET_API_VERSION,
    "an ioctl that nobody knows": 0x4004EEEE,
}
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_IOC_FIEMAP: Final = 0xC020660B

# Kinds of advice that posix_fadvise(2) takes.
_ADVICE: Final = {
    "POSIX_FADV_NORMAL": os.POSIX_FADV_NORMAL,
    "POSIX_FADV_RANDOM": os.POSIX_FADV_RANDOM,
    "POSIX_FADV_SEQUENTIAL": os.POSIX_FADV_SEQUENTIAL,
    "POSIX_FADV_WILLNEED": os.POSIX_FADV_WILLNEED,
    "POSIX_FADV_DONTNEED": os.POSIX_FADV_DONTNEED,
    "POSIX_FADV_NOREUSE": os.POSIX_FADV_NOREUSE,
}


def _seek(whence: int) -> Callable[[Subject], str]:
    return lambda it: f"ok {os.lseek(it.fd, 0, whence)}"


def _ioctl(command: int) -> Callable[[Subject], str]:
    def call(subject: Subject) -> str:
        answer = bytearray(64)
        fcntl.ioctl(subject.fd, command, answer)
        return f"ok {int.from_bytes(answer[:_INT], 'little'):#x}"

    return call


def _fadvise(advice: int) -> Callable[[Subject], None]:
    return lambda it: os.posix_fadvise(it.fd, 0, 0, advice)


def _set_flags(subject: Subject) -> None:
    """Set the flags that are set already, so that nothing changes."""
    flags = bytearray(8)
    with suppress(OSError):
        fcntl.ioctl(subject.fd, _IOCTLS["FS_IOC_GETFLAGS"], flags)
    fcntl.ioctl(subject.fd, _FS_IOC_SETFLAGS, flags)


def _fiemap(subject: Subject) -> str:
    # struct fiemap: fm_start, fm_length, fm_flags, fm_mapped_extents, fm_extent_count,
    # reserved. There is no room for extents, so they are only counted.
    answer = bytearray(struct.pack("=QQIIII", 0, subject.size, 0, 0, 0, 0))
    fcntl.ioctl(subject.fd, _FS_IOC_FIEMAP, answer)
    _, _, _, extents, _, _ = struct.unpack("=QQIIII", answer)
    return f"ok {extents} extents"


def _epoll(subject: Subject) -> None:
    with select.epoll() as poll:
        poll.register(subject.fd)


def _blocks(subject: Subject) -> str:
    return in_bytes(os.fstat(subject.fd).st_blocks * 512)


def _blocks_after_a_punch(subject: Subject) -> str:
    # If the punch fails, the file keeps its blocks. Another row shows the error.
    with suppress(OSError):
        syscalls.fallocate(subject.fd, PUNCH, 0, subject.unit)
    return _blocks(subject)


ROWS: Final = [
    *rows(
        "seek",
        {
            "lseek SEEK_SET": _seek(os.SEEK_SET),
            "lseek SEEK_CUR": _seek(os.SEEK_CUR),
            "lseek SEEK_END": _seek(os.SEEK_END),
            "lseek SEEK_DATA": _seek(os.SEEK_DATA),
            "lseek SEEK_HOLE": _seek(os.SEEK_HOLE),
        },
    ),
    *rows(
        "what is where",
        {
            "FS_IOC_FIEMAP": _fiemap,
            "cachestat": lambda it: f"ok {mmcalls.cachestat(it.fd)[0]} in memory",
            "fstat st_blocks": _blocks,
            "fstat st_blocks after a punch": _blocks_after_a_punch,
            "fstat st_blksize": lambda it: f"ok {os.fstat(it.fd).st_blksize}",
            "fstatfs f_type": lambda it: f"ok {syscalls.fstatfs_magic(it.fd):#x}",
            "epoll_ctl EPOLL_CTL_ADD": _epoll,
        },
    ),
    *rows(
        "ioctl",
        {
            **{name: _ioctl(command) for name, command in _IOCTLS.items()},
            "FS_IOC_SETFLAGS": _set_flags,
        },
    ),
    *rows(
        "advice",
        {
            **{
                f"posix_fadvise {name}": _fadvise(kind)
                for name, kind in _ADVICE.items()
            },
            "readahead": lambda it: calls.readahead(it.fd, 0, it.unit),
        },
    ),
]
