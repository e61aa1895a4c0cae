"""The file itself: a few of its system calls.

`inaccfs probe` has two hundred more, on a real guest_memfd and on a mount.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.kvm.probe import words
from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import SIZE
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.kvm.probe.asking import Steps
    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("file")

_KEEP: Final = syscalls.FALLOC_FL_KEEP_SIZE


def _mmap(fd: int, flags: int, protection: int) -> None:
    mmap.mmap(fd, PAGE_SIZE, flags, protection).close()


_CALLS: Final[dict[str, tuple[str, Callable[[int], object]]]] = {
    "read": ("read(2)", lambda fd: os.read(fd, 16)),
    "pread": ("pread(2)", lambda fd: os.pread(fd, 16, 0)),
    "write": ("write(2)", lambda fd: os.write(fd, b"x")),
    "pwrite": ("pwrite(2)", lambda fd: os.pwrite(fd, b"x", 0)),
    "lseek-set": ("lseek(2) to 0", lambda fd: os.lseek(fd, 0, os.SEEK_SET)),
    "lseek-end": ("lseek(2) to the end", lambda fd: os.lseek(fd, 0, os.SEEK_END)),
    "lseek-data": ("lseek(2) to data", lambda fd: os.lseek(fd, 0, os.SEEK_DATA)),
    "mmap-shared": (
        "mmap(2), MAP_SHARED, to read and write",
        lambda fd: _mmap(fd, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    ),
    "mmap-private": (
        "mmap(2), MAP_PRIVATE, to read",
        lambda fd: _mmap(fd, mmap.MAP_PRIVATE, mmap.PROT_READ),
    ),
    "grow": ("ftruncate(2) to twice the size", lambda fd: os.ftruncate(fd, 2 * SIZE)),
    "shrink": ("ftruncate(2) to a page", lambda fd: os.ftruncate(fd, PAGE_SIZE)),
    "same-size": (
        "ftruncate(2) to the size it has",
        lambda fd: os.ftruncate(fd, SIZE),
    ),
    "fchmod": ("fchmod(2)", lambda fd: os.fchmod(fd, 0o600)),
    "fsync": ("fsync(2)", os.fsync),
    "seals": ("F_GET_SEALS of fcntl(2)", lambda fd: fcntl.fcntl(fd, fcntl.F_GET_SEALS)),
    "reopen": (
        "open(2) by its link in /proc/self/fd",
        lambda fd: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR)),
    ),
    "link": (
        "link(2) by its link in /proc/self/fd",
        lambda fd: os.link(f"/proc/self/fd/{fd}", "/dev/shm/inaccfs-kvm-probe"),
    ),
    "getxattr": ("fgetxattr(2)", lambda fd: os.getxattr(fd, "user.x")),
}

# Mode, offset and length, bytes.
_FALLOCATES: Final = {
    "allocate": (_KEEP, 0, PAGE_SIZE),
    "allocate-mode-0": (0, 0, PAGE_SIZE),
    "allocate-all": (_KEEP, 0, SIZE),
    "allocate-beyond": (_KEEP, SIZE, PAGE_SIZE),
    "allocate-across-end": (_KEEP, SIZE - PAGE_SIZE, 2 * PAGE_SIZE),
    "allocate-unaligned-offset": (_KEEP, 100, PAGE_SIZE),
    "allocate-unaligned-length": (_KEEP, 0, 100),
    "allocate-nothing": (_KEEP, 0, 0),
    "allocate-negative": (_KEEP, -PAGE_SIZE, PAGE_SIZE),
    "allocate-to-2-63": (_KEEP, (1 << 63) - PAGE_SIZE, PAGE_SIZE),
    "punch": (syscalls.PUNCH, 0, PAGE_SIZE),
    "punch-all": (syscalls.PUNCH, 0, SIZE),
    "punch-beyond": (syscalls.PUNCH, SIZE, PAGE_SIZE),
    "punch-across-end": (syscalls.PUNCH, SIZE - PAGE_SIZE, 2 * PAGE_SIZE),
    "punch-unaligned-offset": (syscalls.PUNCH, 100, PAGE_SIZE),
    "punch-unaligned-length": (syscalls.PUNCH, 0, 100),
    "punch-without-keep-size": (syscalls.FALLOC_FL_PUNCH_HOLE, 0, PAGE_SIZE),
    "zero-range": (syscalls.FALLOC_FL_ZERO_RANGE | _KEEP, 0, PAGE_SIZE),
    "collapse-range": (0x08, 0, PAGE_SIZE),
}


def _call(call: Callable[[int], object]) -> Steps:
    def steps(machine: Machine) -> Iterator[object]:
        yield words.of(call, machine.create())

    return steps


for _name, (_what, _function) in _CALLS.items():
    ROWS.add(_name, f"{_what} of a new file of 16 pages.", _call(_function), low=False)


def _fallocate(mode: int, offset: int, length: int) -> Steps:
    def steps(machine: Machine) -> Iterator[object]:
        fd = machine.create()
        yield words.of(syscalls.fallocate, fd, mode, offset, length)
        yield machine.cached(fd)

    return steps


for _name, (_mode, _offset, _length) in _FALLOCATES.items():
    ROWS.add(
        _name,
        f"fallocate(2), mode {_mode:#x}, offset {_offset:#x}, length {_length:#x}, of "
        "a new file of 16 pages; how many pages it has then.",
        _fallocate(_mode, _offset, _length),
        low=False,
    )


@ROWS.row("fstat(2) of a new file: type, mode, links, size and blocks.", low=False)
def fstat(machine: Machine) -> Iterator[object]:
    found = os.fstat(machine.create())
    yield "regular" if stat.S_ISREG(found.st_mode) else f"{found.st_mode:#o}"
    yield f"{stat.S_IMODE(found.st_mode):#o}"
    yield f"{found.st_nlink} links"
    yield f"{found.st_size:#x} bytes"
    yield f"{found.st_blocks} blocks"


@ROWS.row("F_GETFL and F_GETFD of a new file's descriptor.", low=False)
def descriptor_flags(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    yield f"access mode {flags & os.O_ACCMODE}"
    close = fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    yield "close-on-exec" if close else "kept on exec"


@ROWS.row(
    "Pages and st_blocks of a file: new, 4 allocated, again, one punched, again, all.",
    low=False,
)
def pages(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    yield machine.cached(fd)
    for call, first, count in (
        (machine.allocate, 0, 4),
        (machine.allocate, 0, 4),
        (machine.punch, 1, 1),
        (machine.punch, 1, 1),
        (machine.punch, 0, 32),
    ):
        yield call(fd, first, count)
        yield machine.cached(fd)
    yield f"{os.fstat(fd).st_blocks} blocks"
