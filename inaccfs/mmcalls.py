"""System calls on addresses: mapping, locking, and counting a file's pages.

As in `inaccfs.syscalls` each is a thin function that raises `OSError` with the kernel's
errno. Addresses are integers, and offsets, lengths and sizes are bytes.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import Final

from inaccfs.syscalls import last_error

PROT_READ: Final = 1
PROT_WRITE: Final = 2
MAP_SHARED: Final = 1

MADV_POPULATE_READ: Final = 22

KEEP_GIL_BYTES: Final = 2 << 20
"""A call on at most this much keeps the GIL.

It takes microseconds; getting the GIL back from a busy thread would take longer.
"""

# The number is the same on every architecture.
_SYS_CACHESTAT: Final = 451

# struct cachestat_range: off, len. struct cachestat: nr_cache, two counts that are not
# used here, nr_evicted, nr_recently_evicted. include/uapi/linux/mman.h
_cachestat_range = struct.Struct("=QQ")
_cachestat = struct.Struct("=Q16xQ8x")

_libc = ctypes.CDLL(None, use_errno=True)
# Calls through this one keep the GIL.
_libc_gil = ctypes.PyDLL(None, use_errno=True)

for _lib in (_libc, _libc_gil):
    _lib.mmap.restype = ctypes.c_void_p
    _lib.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    for _call in (_lib.munmap, _lib.mlock, _lib.munlock):
        _call.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _lib.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    _lib.syscall.restype = ctypes.c_long

_MAP_FAILED: Final = ctypes.c_void_p(-1).value


def _lib_for(length: int) -> ctypes.CDLL:
    return _libc_gil if length <= KEEP_GIL_BYTES else _libc


def mmap(fd: int, offset: int, length: int) -> int:
    """Map part of a file, shared, readable and writable; its address. mmap(2)."""
    protection = PROT_READ | PROT_WRITE
    address: int | None = _libc_gil.mmap(
        None, length, protection, MAP_SHARED, fd, offset
    )
    # ctypes returns None for address 0, which the kernel never picks.
    if address is None or address == _MAP_FAILED:
        raise last_error()
    return address


def munmap(address: int, length: int) -> None:
    """munmap(2)."""
    if _lib_for(length).munmap(address, length):
        raise last_error()


def populate(address: int, length: int) -> None:
    """Fill the page table as if the pages were read. madvise(2), MADV_POPULATE_READ.

    On a shared mapping of a memory file this maps them writable, too, and fills the
    holes of the file. EFAULT is what a read would get as SIGBUS: the page is past the
    end of the file, or its file system is full.
    """
    if _lib_for(length).madvise(address, length, MADV_POPULATE_READ):
        raise last_error()


def mlock(address: int, length: int) -> None:
    """mlock(2): keep pages in memory. Compaction may still move them."""
    if _lib_for(length).mlock(address, length):
        raise last_error()


def munlock(address: int, length: int) -> None:
    """munlock(2)."""
    if _lib_for(length).munlock(address, length):
        raise last_error()


def pages_there(fd: int, offset: int, length: int) -> int:
    """Count the pages of a range of a file that have memory or swap. cachestat(2).

    *length* 0 means up to the end. ENOSYS before Linux 6.5; EOPNOTSUPP on a hugetlbfs.
    """
    extent = _cachestat_range.pack(offset, length)
    answer = ctypes.create_string_buffer(_cachestat.size)
    if _lib_for(length).syscall(_SYS_CACHESTAT, fd, extent, answer, 0):
        raise last_error()
    cached, evicted = _cachestat.unpack(answer.raw)
    return int(cached + evicted)


def cannot_count(exc: OSError) -> bool:
    """Whether `pages_there` has failed because the kernel or the file lacks it."""
    return exc.errno in (errno.EOPNOTSUPP, errno.ENOSYS)
