"""System calls on addresses: mapping, locking, and the long-term pins of io_uring.

As in `inaccfs.syscalls` each is a thin function that raises `OSError` with the kernel's
errno. Addresses are integers, and offsets, lengths and sizes are bytes.
"""

from __future__ import annotations

import ctypes
import os
import struct
from array import array
from itertools import chain
from typing import Final

PROT_READ: Final = 1
PROT_WRITE: Final = 2
MAP_SHARED: Final = 1

MADV_POPULATE_READ: Final = 22

RING_SLOTS: Final = 16384
"""How many buffers a ring can have: IORING_MAX_REG_BUFFERS, io_uring/rsrc.h."""

# Up to so many bytes a call is over in microseconds, and it would take longer to get
# the GIL back from a busy thread.
_QUICK_BYTES: Final = 2 << 20

# The numbers of these calls are the same on every architecture.
_SYS_CACHESTAT: Final = 451
_SYS_IO_URING_SETUP: Final = 425
_SYS_IO_URING_REGISTER: Final = 427

# struct cachestat_range: off, len; struct cachestat: nr_cache, two that do not
# matter here, and then nr_evicted, nr_recently_evicted. include/uapi/linux/mman.h
_cachestat_range = struct.Struct("=QQ")
_cachestat = struct.Struct("=Q16xQ8x")

# include/uapi/linux/io_uring.h
_IORING_REGISTER_BUFFERS2: Final = 15
_IORING_REGISTER_BUFFERS_UPDATE: Final = 16
_IORING_RSRC_REGISTER_SPARSE: Final = 1
_PARAMS_BYTES: Final = 120  # struct io_uring_params
_rsrc_register = struct.Struct("=IIQQQ")  # nr, flags, resv2, data, tags
_rsrc_update2 = struct.Struct("=IIQQII")  # offset, resv, data, tags, nr, resv2

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


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _lib_for(length: int) -> ctypes.CDLL:
    return _libc_gil if length <= _QUICK_BYTES else _libc


# --- mappings -----------------------------------------------------------------


def mmap(fd: int, offset: int, length: int) -> int:
    """Map part of a file, shared, to be read and written; its address. mmap(2)."""
    protection = PROT_READ | PROT_WRITE
    address: int | None = _libc_gil.mmap(
        None, length, protection, MAP_SHARED, fd, offset
    )
    # ctypes gives None for the address 0, which the kernel never picks.
    if address is None or address == _MAP_FAILED:
        raise _error()
    return address


def munmap(address: int, length: int) -> None:
    """munmap(2)."""
    if _lib_for(length).munmap(address, length):
        raise _error()


def populate(address: int, length: int) -> None:
    """Fill the page table as if the pages were read. madvise(2), MADV_POPULATE_READ.

    On a shared mapping of a memory file they can be written after that too. Holes of
    the file are filled. EFAULT stands for what would be SIGBUS: past the end of the
    file, or no memory in its file system.
    """
    if _lib_for(length).madvise(address, length, MADV_POPULATE_READ):
        raise _error()


def mlock(address: int, length: int) -> None:
    """mlock(2): keep pages in memory, which compaction may still move."""
    if _lib_for(length).mlock(address, length):
        raise _error()


def munlock(address: int, length: int) -> None:
    """munlock(2)."""
    if _lib_for(length).munlock(address, length):
        raise _error()


def pages_there(fd: int, offset: int, length: int) -> int:
    """How many pages of a range of a file are in memory or swapped out. cachestat(2).

    A *length* of 0 is all from *offset* on. Linux 6.5. A hugetlbfs has no answer
    (EOPNOTSUPP).
    """
    extent = _cachestat_range.pack(offset, length)
    answer = ctypes.create_string_buffer(_cachestat.size)
    if _lib_for(length).syscall(_SYS_CACHESTAT, fd, extent, answer, 0):
        raise _error()
    cached, evicted = _cachestat.unpack(answer.raw)
    return int(cached + evicted)


# --- buffers of a ring --------------------------------------------------------


def io_uring_setup() -> int:
    """A ring that is there for its buffers only; its fd. io_uring_setup(2)."""
    params = ctypes.create_string_buffer(_PARAMS_BYTES)
    fd: int = _libc_gil.syscall(_SYS_IO_URING_SETUP, 1, params)
    if fd < 0:
        raise _error()
    return fd


def register_sparse(ring: int, slots: int) -> None:
    """Give a ring a table of empty slots. io_uring_register(2), Linux 5.19.

    IORING_REGISTER_BUFFERS2 with IORING_RSRC_REGISTER_SPARSE.
    """
    request = _rsrc_register.pack(slots, _IORING_RSRC_REGISTER_SPARSE, 0, 0, 0)
    if _register(_libc_gil, ring, _IORING_REGISTER_BUFFERS2, request) < 0:
        raise _error()


def update_buffers(ring: int, slot: int, buffers: list[tuple[int, int]]) -> int:
    """Fill slots from *slot* on with buffers; return how many were.

    Each is (address, length), and (0, 0) empties its slot. Pages of a buffer are pinned
    for long before those of the buffer in whose place it comes are let go. The first
    that the kernel refuses ends the call; if it is the first of all, that is an error:
    ENOMEM past RLIMIT_MEMLOCK, EFAULT where nothing is mapped. io_uring_register(2),
    IORING_REGISTER_BUFFERS_UPDATE.
    """
    # struct iovec is two words; the array stays where it is while we have it.
    vector = array("Q", chain.from_iterable(buffers))
    data, _ = vector.buffer_info()
    request = _rsrc_update2.pack(slot, 0, data, 0, len(buffers), 0)
    lib = _lib_for(sum([length for _, length in buffers]))
    done = _register(lib, ring, _IORING_REGISTER_BUFFERS_UPDATE, request)
    if done < 0:
        raise _error()
    return done


def _register(lib: ctypes.CDLL, ring: int, opcode: int, request: bytes) -> int:
    # For these opcodes the count of arguments is the size of the one that there is.
    result: int = lib.syscall(
        _SYS_IO_URING_REGISTER, ring, opcode, request, len(request)
    )
    return result
