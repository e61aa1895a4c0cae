"""System calls on addresses: mapping, locking, and counting a file's pages.

As in `inaccfs.syscalls` each is a thin function that raises `OSError` with the kernel's
errno. Addresses are integers, and offsets, lengths and sizes are bytes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from mmap import MAP_SHARED, PAGESIZE, PROT_READ, PROT_WRITE
from typing import Final

from inaccfs.syscalls import last_error

# See mman-common.h and mman.h of include/uapi/asm-generic. Python's mmap does not name
# them.
MADV_PAGEOUT: Final = 21
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
MADV_COLLAPSE: Final = 25
MAP_FIXED: Final = 0x10
MAP_NORESERVE: Final = 0x4000

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

_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    ]

# struct iovec: iov_base, iov_len.
_iovec = struct.Struct("=QQ")

MAP_FAILED: Final = ctypes.c_void_p(-1).value
"""What mmap(2) and mremap(2) return when they fail."""


def _lib_for(length: int) -> ctypes.CDLL:
    return _libc_gil if length <= KEEP_GIL_BYTES else _libc


def mmap(
    fd: int,
    offset: int,
    length: int,
    protection: int = PROT_READ | PROT_WRITE,
    flags: int = MAP_SHARED,
    at: int | None = None,
) -> int:
    """Map part of a file; the address. *at* is where, for MAP_FIXED. mmap(2).

    Python's mmap refuses mappings past the end of the file.
    """
    address: int | None = _libc_gil.mmap(at, length, protection, flags, fd, offset)
    # ctypes returns None for address 0, which the kernel never picks.
    if address is None or address == MAP_FAILED:
        raise last_error()
    return address


def munmap(address: int, length: int) -> None:
    """munmap(2)."""
    if _lib_for(length).munmap(address, length):
        raise last_error()


def madvise(address: int, length: int, advice: int) -> None:
    """madvise(2)."""
    if _lib_for(length).madvise(address, length, advice):
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


def mincore(address: int, pages: int) -> bytes:
    """mincore(2): a byte for each page from *address* on, odd if it is in memory.

    ENOMEM where nothing is mapped.
    """
    found = ctypes.create_string_buffer(pages)
    if pages and _libc.mincore(address, pages * PAGESIZE, found):
        raise last_error()
    return found.raw


def read_memory(address: int, size: int) -> bytes:
    """Read memory of this process, which may not be mapped. process_vm_readv(2).

    Returns fewer bytes if only the first ones can be read; EFAULT for none.
    """
    buffer = ctypes.create_string_buffer(size)
    done = _process_vm(_libc.process_vm_readv, buffer, address)
    return buffer.raw[:done]


def write_memory(address: int, data: bytes) -> int:
    """As `read_memory`, but write; how many bytes. process_vm_writev(2)."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return _process_vm(_libc.process_vm_writev, buffer, address)


def _process_vm(
    call: ctypes._NamedFuncPointer, buffer: ctypes.Array[ctypes.c_char], address: int
) -> int:
    own = _iovec.pack(ctypes.addressof(buffer), len(buffer))
    there = _iovec.pack(address, len(buffer))
    done: int = call(os.getpid(), own, 1, there, 1, 0)
    if done < 0:
        raise last_error()
    return done


def pages_there(fd: int, offset: int, length: int) -> int:
    """Count the pages of a range of a file that have memory or swap. cachestat(2).

    *length* 0 means up to the end. ENOSYS before Linux 6.5; EOPNOTSUPP on a hugetlbfs.
    """
    return sum(cachestat(fd, offset, length))


def cachestat(fd: int, offset: int = 0, length: int = 0) -> tuple[int, int]:
    """How many pages of a range of a file are in memory, and how many were evicted.

    Arguments and errors are those of `pages_there`. cachestat(2).
    """
    extent = _cachestat_range.pack(offset, length)
    answer = ctypes.create_string_buffer(_cachestat.size)
    if _lib_for(length).syscall(_SYS_CACHESTAT, fd, extent, answer, 0):
        raise last_error()
    cached, evicted = _cachestat.unpack(answer.raw)
    return cached, evicted


def cannot_count(exc: OSError) -> bool:
    """Whether `pages_there` has failed because the kernel or the file lacks it."""
    return exc.errno in (errno.EOPNOTSUPP, errno.ENOSYS)
