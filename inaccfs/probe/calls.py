"""System calls that only the probe needs, one thin function each.

As in `inaccfs.syscalls` each raises `OSError` with the kernel's errno; offsets, lengths
and addresses are bytes. A call that the C library or the architecture lacks raises
`NotHere`.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Any, Final

from inaccfs.mmcalls import MAP_FAILED
from inaccfs.probe.outcomes import NotHere
from inaccfs.syscalls import AT_EMPTY_PATH, last_error

if TYPE_CHECKING:
    _Type = ctypes._SimpleCData[Any]

# Python's mmap has the other flags.
MAP_SHARED_VALIDATE: Final = 0x03
MAP_LOCKED: Final = 0x2000
MAP_HUGETLB: Final = 0x40000
MAP_SYNC: Final = 0x80000

_MREMAP_MAYMOVE: Final = 1
_MS_SYNC: Final = 4

# The number is the same on every architecture.
_SYS_MEMFD_SECRET: Final = 447

# Calls older than Linux 5.0 have numbers of their own on x86-64; newer architectures
# share theirs: syscall_64.tbl and scripts/syscall.tbl of the kernel.
_X86_64: Final = {
    "io_setup": 206,
    "io_getevents": 208,
    "io_submit": 209,
    "userfaultfd": 323,
}
_GENERIC: Final = {
    "io_setup": 0,
    "io_submit": 2,
    "io_getevents": 4,
    "userfaultfd": 282,
}
_NUMBERS: Final = {"x86_64": _X86_64, "aarch64": _GENERIC, "riscv64": _GENERIC}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_size = ctypes.c_size_t
_offset = ctypes.c_int64
_address = ctypes.c_void_p


def _function(
    name: str, *argtypes: type[_Type], restype: type[_Type] = ctypes.c_int
) -> ctypes._NamedFuncPointer:
    """A function of the C library; raises `NotHere` if it lacks it."""
    try:
        function = _libc[name]
    except AttributeError:
        raise NotHere(f"the C library has no {name}") from None
    function.argtypes = argtypes
    function.restype = restype
    return function


def checked(result: int) -> int:
    """Return the *result* of a call; raise errno if it is negative."""
    if result < 0:
        raise last_error()
    return result


def syscall(number: int, *arguments: object) -> int:
    """syscall(2), for calls without a function of their own in the C library."""
    return checked(_libc.syscall(ctypes.c_long(number), *arguments))


def number_of(name: str) -> int:
    """The number of a system call that is not the same on every architecture."""
    machine = os.uname().machine
    numbers = _NUMBERS.get(machine)
    if numbers is None:
        raise NotHere(f"the number of {name} on {machine} is not known")
    return numbers[name]


# --- files ----------------------------------------------------------------------------


def memfd_secret() -> int:
    """memfd_secret(2)."""
    return syscall(_SYS_MEMFD_SECRET, ctypes.c_uint(os.O_CLOEXEC))


def readahead(fd: int, offset: int, count: int) -> None:
    """readahead(2)."""
    call = _function(
        "readahead", ctypes.c_int, _offset, _size, restype=ctypes.c_ssize_t
    )
    checked(call(fd, offset, count))


def sync_file_range(fd: int, offset: int, count: int, flags: int) -> None:
    """sync_file_range(2)."""
    call = _function("sync_file_range", ctypes.c_int, _offset, _offset, ctypes.c_uint)
    checked(call(fd, offset, count, flags))


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    checked(_function("syncfs", ctypes.c_int)(fd))


def execveat(fd: int) -> None:
    """Run the program that is in a file. execveat(2), AT_EMPTY_PATH."""
    vector = (ctypes.c_char_p * 2)(b"inaccfs-probe", None)
    nothing = (ctypes.c_char_p * 1)(None)
    call = _function("execveat")
    checked(call(fd, b"", vector, nothing, AT_EMPTY_PATH))


_MAX_HANDLE: Final = 128


def reopen_by_handle(fd: int, flags: int) -> int:
    """Open a file by name_to_handle_at(2) and open_by_handle_at(2); an fd."""
    # struct file_handle: handle_bytes, handle_type, f_handle[].
    handle = ctypes.create_string_buffer(
        struct.pack("=Ii", _MAX_HANDLE, 0), 8 + _MAX_HANDLE
    )
    mount_id = ctypes.c_int()
    call = _function("name_to_handle_at")
    checked(call(fd, b"", handle, ctypes.byref(mount_id), AT_EMPTY_PATH))
    return checked(_function("open_by_handle_at")(fd, handle, flags))


# --- memory ---------------------------------------------------------------------------


def mremap(address: int, length: int, new_length: int) -> int:
    """mremap(2), MREMAP_MAYMOVE; the new address."""
    call = _function("mremap", _address, _size, _size, ctypes.c_int, restype=_address)
    moved: int = call(address, length, new_length, _MREMAP_MAYMOVE)
    if moved == MAP_FAILED:
        raise last_error()
    return moved


def mprotect(address: int, length: int, protection: int) -> None:
    """mprotect(2)."""
    call = _function("mprotect", _address, _size, ctypes.c_int)
    checked(call(address, length, protection))


def msync(address: int, length: int) -> None:
    """msync(2), MS_SYNC."""
    call = _function("msync", _address, _size, ctypes.c_int)
    checked(call(address, length, _MS_SYNC))


def remap_file_pages(address: int, length: int, page: int) -> None:
    """Let a mapping show the file from *page* on. remap_file_pages(2)."""
    call = _function(
        "remap_file_pages", _address, _size, ctypes.c_int, _size, ctypes.c_int
    )
    checked(call(address, length, 0, page, 0))


_PTRACE_TRACEME: Final = 0
_PTRACE_PEEKDATA: Final = 2


def ptrace_me() -> None:
    """Let our parent trace us. ptrace(2), PTRACE_TRACEME."""
    checked(_function("ptrace")(_PTRACE_TRACEME, 0, None, None))


def ptrace_peek(pid: int, address: int) -> None:
    """Read a word of a process that we trace and that is stopped. PTRACE_PEEKDATA."""
    call = _function(
        "ptrace",
        ctypes.c_int,
        ctypes.c_int,
        _address,
        _address,
        restype=ctypes.c_long,
    )
    # The result is the word, which may be -1. Only errno shows an error.
    ctypes.set_errno(0)
    call(_PTRACE_PEEKDATA, pid, address, None)
    if ctypes.get_errno():
        checked(-1)


def vmsplice(fd: int, address: int, length: int) -> int:
    """Put a mapping's pages into a pipe. vmsplice(2); how many bytes."""
    vector = struct.pack("=QQ", address, length)
    call = _function(
        "vmsplice",
        ctypes.c_int,
        ctypes.c_char_p,
        _size,
        ctypes.c_uint,
        restype=ctypes.c_ssize_t,
    )
    return checked(call(fd, vector, 1, 0))


def write_from(fd: int, address: int, length: int) -> int:
    """write(2), with a buffer anywhere; how many bytes."""
    call = _function("write", ctypes.c_int, _address, _size, restype=ctypes.c_ssize_t)
    return checked(call(fd, address, length))


def read_to(fd: int, address: int, length: int) -> int:
    """read(2), with a buffer anywhere; how many bytes."""
    call = _function("read", ctypes.c_int, _address, _size, restype=ctypes.c_ssize_t)
    return checked(call(fd, address, length))
