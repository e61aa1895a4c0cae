"""Rows that would map: mmap(2) in all modes, and what can be done with a mapping.

A mapping that could be made is touched: "ok, read zeros", or "ok, read SIGBUS". Rows
"of a mapping" use a shared one that can be written, and say "no mapping" with the errno
if there is none.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from inaccfs import errnos, mmcalls, syscalls
from inaccfs.children import fork
from inaccfs.probe import calls, rings
from inaccfs.probe.attempts import Subject, in_bytes, rows
from inaccfs.probe.outcomes import NotHere

if TYPE_CHECKING:
    from collections.abc import Callable

    # Called with the address of the mapping.
    _Use = Callable[[Subject, int], str | None]

_R: Final = mmap.PROT_READ
_W: Final = mmap.PROT_WRITE
_X: Final = mmap.PROT_EXEC
_RW: Final = _R | _W

_PROTECTIONS: Final = {
    "PROT_NONE": 0,
    "PROT_READ": _R,
    "PROT_WRITE": _W,
    "PROT_READ|PROT_WRITE": _RW,
    "PROT_READ|PROT_EXEC": _R | _X,
}
_SHARES: Final = {"MAP_SHARED": mmap.MAP_SHARED, "MAP_PRIVATE": mmap.MAP_PRIVATE}

_MADV: Final = {
    "MADV_WILLNEED": mmap.MADV_WILLNEED,
    "MADV_DONTNEED": mmap.MADV_DONTNEED,
    "MADV_REMOVE": mmap.MADV_REMOVE,
    "MADV_DONTFORK": mmap.MADV_DONTFORK,
    "MADV_PAGEOUT": mmcalls.MADV_PAGEOUT,
    "MADV_POPULATE_READ": mmcalls.MADV_POPULATE_READ,
    "MADV_POPULATE_WRITE": mmcalls.MADV_POPULATE_WRITE,
    "MADV_COLLAPSE": mmcalls.MADV_COLLAPSE,
}


# --- mappings -------------------------------------------------------------------------


def _read(subject: Subject, address: int) -> str:
    subject.say("ok, read")
    byte = ctypes.string_at(address, 1)
    return "ok, read zeros" if byte == b"\0" else "ok, read data"


def _write(subject: Subject, address: int) -> str:
    subject.say("ok, write")
    ctypes.memset(address, 1, 1)
    return "ok, write ok"


def _touch(protection: int) -> _Use | None:
    """The accesses to try on a mapping of this protection."""
    if protection & _W:
        return _write
    return _read if protection & _R else None


def _mmap(
    protection: int, flags: int, *, offset: Callable[[Subject], int] | None = None
) -> Callable[[Subject], str | None]:
    def call(subject: Subject) -> str | None:
        at = offset(subject) if offset is not None else 0
        address = mmcalls.mmap(subject.fd, at, subject.unit, protection, flags)
        touch = _touch(protection)
        return touch(subject, address) if touch is not None else None

    return call


# --- what a mapping is used for -------------------------------------------------------


def _of_a_mapping(use: _Use) -> Callable[[Subject], str | None]:
    def call(subject: Subject) -> str | None:
        try:
            address = mmcalls.mmap(subject.fd, 0, subject.unit, _RW, mmap.MAP_SHARED)
        except OSError as exc:
            return f"no mapping, {errnos.name(exc.errno)}"
        return use(subject, address)

    return call


def _madvise(advice: int) -> _Use:
    return lambda it, address: mmcalls.madvise(address, it.unit, advice)


def _process_vm_readv(_subject: Subject, address: int) -> str:
    return in_bytes(len(mmcalls.read_memory(address, mmap.PAGESIZE)))


def _process_vm_writev(_subject: Subject, address: int) -> str:
    return in_bytes(mmcalls.write_memory(address, bytes(mmap.PAGESIZE)))


def _proc_mem(_subject: Subject, address: int) -> str:
    fd = os.open("/proc/self/mem", os.O_RDONLY)
    return in_bytes(len(os.pread(fd, mmap.PAGESIZE, address)))


def _write_proc_mem(_subject: Subject, address: int) -> str:
    fd = os.open("/proc/self/mem", os.O_RDWR)
    return in_bytes(os.pwrite(fd, bytes(mmap.PAGESIZE), address))


def _ptrace(_subject: Subject, address: int) -> None:
    """Read the mapping of a traced child, which has it too."""
    try:
        pid = fork()
    except BlockingIOError:
        # It would look like the errno of the call.
        raise NotHere("no process") from None
    if pid == 0:
        try:
            syscalls.die_with_parent()
            calls.ptrace_me()
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        # It has ended, and its pid may be another process's by now.
        raise NotHere("no ptrace")
    try:
        calls.ptrace_peek(pid, address)
    finally:
        os.kill(pid, signal.SIGKILL)


def _write_to_pipe(_subject: Subject, address: int) -> str:
    _, writer = os.pipe()
    return in_bytes(calls.write_from(writer, address, mmap.PAGESIZE))


def _read_from_pipe(_subject: Subject, address: int) -> str:
    reader, writer = os.pipe()
    os.write(writer, bytes(mmap.PAGESIZE))
    return in_bytes(calls.read_to(reader, address, mmap.PAGESIZE))


def _vmsplice(_subject: Subject, address: int) -> str:
    _, writer = os.pipe()
    return in_bytes(calls.vmsplice(writer, address, mmap.PAGESIZE))


def _pin(subject: Subject, address: int) -> None:
    rings.Ring().register_buffer(address, subject.unit)


def _mincore(subject: Subject, address: int) -> str:
    found = mmcalls.mincore(address, subject.unit // mmap.PAGESIZE)
    return f"ok {sum(byte & 1 for byte in found)} in memory"


def _mlock(subject: Subject, address: int) -> None:
    mmcalls.mlock(address, subject.unit)


def _mprotect(protection: int) -> _Use:
    return lambda it, address: calls.mprotect(address, it.unit, protection)


def _mremap(subject: Subject, address: int) -> str:
    moved = calls.mremap(address, subject.unit, 2 * subject.unit)
    return _read(subject, moved + subject.unit)


def _remap_file_pages(subject: Subject, address: int) -> str:
    calls.remap_file_pages(address, subject.unit, subject.unit // mmap.PAGESIZE)
    return _read(subject, address)


def _open_map_files(subject: Subject, address: int) -> None:
    path = f"/proc/self/map_files/{address:x}-{address + subject.unit:x}"
    os.open(path, os.O_RDWR)


# --- other ways to the pages ----------------------------------------------------------

# include/uapi/linux/userfaultfd.h
_UFFD_USER_MODE_ONLY: Final = 1
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_COPY: Final = 0xC028AA03
_UFFD_API: Final = 0xAA
_UFFD_MISSING: Final = 1


def _userfaultfd(subject: Subject, address: int) -> str:
    """Register a mapping and fill a hole of it, as post-copy migration does."""
    flags = os.O_CLOEXEC | _UFFD_USER_MODE_ONLY
    try:
        fd = calls.syscall(calls.number_of("userfaultfd"), flags)
    except OSError as exc:
        raise NotHere(f"no userfaultfd, {errnos.name(exc.errno)}") from exc
    # struct uffdio_api: api, features, ioctls
    fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("=QQQ", _UFFD_API, 0, 0)))
    mmcalls.madvise(address, subject.unit, mmap.MADV_REMOVE)
    # struct uffdio_register: start, len, mode, ioctls
    request = struct.pack("=QQQQ", address, subject.unit, _UFFD_MISSING, 0)
    fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(request))
    subject.say("ok, UFFDIO_COPY")
    source = mmap.mmap(-1, subject.unit)
    start = ctypes.addressof(ctypes.c_char.from_buffer(source))
    # struct uffdio_copy: dst, src, len, mode, copy
    copy = struct.pack("=QQQQq", address, start, subject.unit, 0, 0)
    fcntl.ioctl(fd, _UFFDIO_COPY, bytearray(copy))
    return "ok, UFFDIO_COPY ok"


# include/uapi/linux/udmabuf.h
_UDMABUF_CREATE: Final = 0x40187542


def _udmabuf(subject: Subject) -> None:
    """Make a dma-buf of the file's pages, as QEMU does for virtio-gpu."""
    try:
        device = os.open("/dev/udmabuf", os.O_RDWR)
    except OSError as exc:
        raise NotHere(f"no /dev/udmabuf, {errnos.name(exc.errno)}") from exc
    # A memfd without this seal gets EINVAL. A file that takes no seals is tried anyway.
    with suppress(OSError):
        fcntl.fcntl(subject.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    # struct udmabuf_create: memfd, flags, offset, size
    fcntl.ioctl(
        device, _UDMABUF_CREATE, struct.pack("=IIQQ", subject.fd, 0, 0, subject.unit)
    )


ROWS: Final = [
    *rows(
        "mmap",
        {
            **{
                f"mmap {share} {protection}": _mmap(bits, flags)
                for share, flags in _SHARES.items()
                for protection, bits in _PROTECTIONS.items()
            },
            **{
                f"mmap {share} PROT_READ of a hole": _mmap(
                    _R, flags, offset=lambda it: it.size - it.unit
                )
                for share, flags in _SHARES.items()
            },
            **{
                f"mmap {share} PROT_READ past the end": _mmap(
                    _R, flags, offset=lambda it: it.size
                )
                for share, flags in _SHARES.items()
            },
            "mmap MAP_SHARED|MAP_POPULATE": _mmap(
                _RW, mmap.MAP_SHARED | mmap.MAP_POPULATE
            ),
            "mmap MAP_PRIVATE|MAP_POPULATE": _mmap(
                _R, mmap.MAP_PRIVATE | mmap.MAP_POPULATE
            ),
            "mmap MAP_SHARED|MAP_LOCKED": _mmap(
                _RW, mmap.MAP_SHARED | calls.MAP_LOCKED
            ),
            "mmap MAP_SHARED_VALIDATE|MAP_SYNC": _mmap(
                _RW, calls.MAP_SHARED_VALIDATE | calls.MAP_SYNC
            ),
            "mmap MAP_SHARED|MAP_HUGETLB": _mmap(
                _RW, mmap.MAP_SHARED | calls.MAP_HUGETLB
            ),
        },
    ),
    *rows(
        "a mapping",
        {
            name: _of_a_mapping(use)
            for name, use in {
                "write of a mapping to a pipe": _write_to_pipe,
                "read into a mapping from a pipe": _read_from_pipe,
                "vmsplice of a mapping": _vmsplice,
                "process_vm_readv of a mapping": _process_vm_readv,
                "process_vm_writev of a mapping": _process_vm_writev,
                "read of a mapping by /proc/self/mem": _proc_mem,
                "write to a mapping by /proc/self/mem": _write_proc_mem,
                "ptrace PEEKDATA of a mapping": _ptrace,
                "IORING_REGISTER_BUFFERS of a mapping": _pin,
                **{
                    f"{name} of a mapping": _madvise(advice)
                    for name, advice in _MADV.items()
                },
                "mlock of a mapping": _mlock,
                "msync of a mapping": lambda it, address: calls.msync(address, it.unit),
                "mincore of a mapping": _mincore,
                "mprotect PROT_READ of a mapping": _mprotect(_R),
                "mprotect PROT_READ|PROT_EXEC of a mapping": _mprotect(_R | _X),
                "mremap of a mapping": _mremap,
                "remap_file_pages of a mapping": _remap_file_pages,
                "UFFDIO_REGISTER of a mapping": _userfaultfd,
                "open /proc/self/map_files O_RDWR": _open_map_files,
            }.items()
        },
    ),
    *rows("other ways to the pages", {"UDMABUF_CREATE": _udmabuf}),
]
