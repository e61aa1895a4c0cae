"""Rows that resize, allocate or free: truncate, fallocate, and their ioctls."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.probe import rings
from inaccfs.probe.attempts import Subject, rows
from inaccfs.probe.targets import KEEP_SIZE, PUNCH, UNITS

if TYPE_CHECKING:
    from collections.abc import Callable

# include/uapi/linux/falloc.h
_ZERO_RANGE: Final = syscalls.FALLOC_FL_ZERO_RANGE
_COLLAPSE_RANGE: Final = 0x08
_INSERT_RANGE: Final = 0x20
_UNSHARE_RANGE: Final = 0x40
_WRITE_ZEROES: Final = 0x80
_UNKNOWN_MODE: Final = 0x4000

# include/linux/falloc.h
_FS_IOC_RESVSP64: Final = 0x4030582A
_FS_IOC_UNRESVSP64: Final = 0x4030582B
_FS_IOC_ZERO_RANGE: Final = 0x40305839

# Not a multiple of any page size.
_ODD: Final = 100


def _first(size: Callable[[int], int]) -> Callable[[Subject], str]:
    """Set the first size of a new file, given as a function of the unit."""

    def call(subject: Subject) -> str:
        fd = subject.target.first_size(size(subject.unit))
        return f"ok, size {os.fstat(fd).st_size}"

    return call


def _resize(change: Callable[[Subject], int]) -> Callable[[Subject], None]:
    return lambda it: os.ftruncate(it.fd, change(it))


def _open_truncating(subject: Subject) -> None:
    os.open(subject.link, os.O_RDWR | os.O_TRUNC)


def _io_uring(
    operation: Callable[[Subject], rings.Operation],
) -> Callable[[Subject], None]:
    def call(subject: Subject) -> None:
        rings.Ring().submit(operation(subject))

    return call


def _space(command: int) -> Callable[[Subject], None]:
    def call(subject: Subject) -> None:
        # struct space_resv: l_type, l_whence (SEEK_SET), l_start, l_len, and the rest.
        request = struct.pack("=hh4xqq24x", 0, 0, 0, subject.unit)
        fcntl.ioctl(subject.fd, command, request)

    return call


def _fallocate(
    mode: int, offset: Callable[[Subject], int], length: Callable[[Subject], int]
) -> Callable[[Subject], None]:
    return lambda it: syscalls.fallocate(it.fd, mode, offset(it), length(it))


def _start(_subject: Subject) -> int:
    return 0


def _unit(subject: Subject) -> int:
    return subject.unit


def _end(subject: Subject) -> int:
    return subject.size


def _odd(_subject: Subject) -> int:
    return _ODD


def _last(subject: Subject) -> int:
    return subject.size - subject.unit


def _beyond(subject: Subject) -> int:
    return subject.size + subject.unit


def _ranges(name: str, mode: int) -> dict[str, Callable[[Subject], str | None]]:
    """Rows for one mode of fallocate(2), at places that may make a difference."""
    return {
        name: _fallocate(mode, _start, _unit),
        f"{name} whole file": _fallocate(mode, _start, _end),
        f"{name} across the end": _fallocate(mode, _last, lambda it: 2 * it.unit),
        f"{name} at the end": _fallocate(mode, _end, _unit),
        f"{name} past the end": _fallocate(mode, _beyond, _unit),
        f"{name} unaligned offset": _fallocate(mode, _odd, _unit),
        f"{name} unaligned length": _fallocate(mode, _start, _odd),
        f"{name} no length": _fallocate(mode, _start, _start),
        f"{name} negative offset": _fallocate(mode, lambda it: -it.unit, _unit),
    }


# If there is only one file, the order matters: calls that should fail come first.
ROWS: Final = [
    *rows(
        "first size",
        {
            "first size 0": _first(lambda _unit: 0),
            "first size negative": _first(lambda unit: -unit),
            "first size unaligned": _first(lambda _unit: _ODD),
            "first size": _first(lambda unit: UNITS * unit),
        },
        make_the_file=True,
    ),
    *rows(
        "size",
        {
            "ftruncate the same size": _resize(lambda it: it.size),
            "ftruncate larger": _resize(lambda it: 2 * it.size),
            "ftruncate smaller": _resize(lambda it: it.size - it.unit),
            "ftruncate 0": _resize(lambda _it: 0),
            "ftruncate unaligned": _resize(lambda it: it.size + _ODD),
            "ftruncate negative": _resize(lambda it: -it.unit),
            "truncate /proc/self/fd": lambda it: os.truncate(it.link, 2 * it.size),
            "open /proc/self/fd O_TRUNC": _open_truncating,
            "io_uring ftruncate": _io_uring(
                lambda it: rings.Operation(
                    opcode=rings.FTRUNCATE, fd=it.fd, offset=2 * it.size
                )
            ),
        },
    ),
    *rows(
        "fallocate",
        {
            **_ranges("fallocate mode 0", 0),
            **_ranges("fallocate KEEP_SIZE", KEEP_SIZE),
            **_ranges("fallocate PUNCH_HOLE|KEEP_SIZE", PUNCH),
            "fallocate PUNCH_HOLE|KEEP_SIZE a hole": _fallocate(PUNCH, _last, _unit),
            **{
                f"fallocate {name}": _fallocate(mode, _start, _unit)
                for name, mode in {
                    "PUNCH_HOLE": syscalls.FALLOC_FL_PUNCH_HOLE,
                    "ZERO_RANGE": _ZERO_RANGE,
                    "ZERO_RANGE|KEEP_SIZE": _ZERO_RANGE | KEEP_SIZE,
                    "PUNCH_HOLE|ZERO_RANGE|KEEP_SIZE": PUNCH | _ZERO_RANGE,
                    "COLLAPSE_RANGE": _COLLAPSE_RANGE,
                    "INSERT_RANGE": _INSERT_RANGE,
                    "UNSHARE_RANGE": _UNSHARE_RANGE,
                    "UNSHARE_RANGE|KEEP_SIZE": _UNSHARE_RANGE | KEEP_SIZE,
                    "WRITE_ZEROES": _WRITE_ZEROES,
                    "a mode bit that nobody knows": _UNKNOWN_MODE,
                }.items()
            },
            # IORING_OP_FALLOCATE takes the length in addr and the mode in len.
            "io_uring fallocate KEEP_SIZE": _io_uring(
                lambda it: rings.Operation(
                    opcode=rings.FALLOCATE, fd=it.fd, address=it.unit, length=KEEP_SIZE
                )
            ),
            "io_uring fallocate PUNCH_HOLE|KEEP_SIZE": _io_uring(
                lambda it: rings.Operation(
                    opcode=rings.FALLOCATE, fd=it.fd, address=it.unit, length=PUNCH
                )
            ),
            "FS_IOC_RESVSP64": _space(_FS_IOC_RESVSP64),
            "FS_IOC_UNRESVSP64": _space(_FS_IOC_UNRESVSP64),
            "FS_IOC_ZERO_RANGE": _space(_FS_IOC_ZERO_RANGE),
        },
    ),
]
