"""io_uring(7): its system calls, its layout, and registered buffers as long-term pins.

As in `inaccfs.syscalls` each call is a thin function that raises `OSError` with the
kernel's errno. Addresses are integers; offsets and lengths are bytes. Names and numbers
are those of include/uapi/linux/io_uring.h.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from itertools import chain
from typing import TYPE_CHECKING, Final

from inaccfs.mmcalls import KEEP_GIL_BYTES
from inaccfs.syscalls import last_error

if TYPE_CHECKING:
    Params = ctypes.Array[ctypes.c_char]

SLOTS: Final = 16384
"""How many buffers a ring can have: IORING_MAX_REG_BUFFERS, io_uring/rsrc.h."""

OFF_SQES: Final = 0x10000000
"""Where in a ring's fd the submission queue entries are mapped: IORING_OFF_SQES."""

ENTER_GETEVENTS: Final = 1

REGISTER_BUFFERS: Final = 0
REGISTER_PROBE: Final = 8
_REGISTER_BUFFERS2: Final = 15
_REGISTER_BUFFERS_UPDATE: Final = 16
_RSRC_REGISTER_SPARSE: Final = 1

# struct io_uring_params: ten words, then the offsets of the fields of both rings.
_PARAMS_BYTES: Final = 120
_SQ_OFFSETS: Final = 40  # head, tail, ring_mask, entries, flags, dropped, array
_CQ_OFFSETS: Final = 80  # head, tail, ring_mask, entries, overflow, cqes
_offsets = struct.Struct("=8I")

_rsrc_register = struct.Struct("=IIQQQ")  # nr, flags, resv2, data, tags
_rsrc_update2 = struct.Struct("=IIQQII")  # offset, resv, data, tags, nr, resv2

# The numbers of these calls are the same on every architecture.
_SYS_IO_URING_SETUP: Final = 425
_SYS_IO_URING_ENTER: Final = 426
_SYS_IO_URING_REGISTER: Final = 427

_libc = ctypes.CDLL(None, use_errno=True)
# Calls through this one keep the GIL.
_libc_gil = ctypes.PyDLL(None, use_errno=True)
for _lib in (_libc, _libc_gil):
    _lib.syscall.restype = ctypes.c_long


def _checked(result: int) -> int:
    if result < 0:
        raise last_error()
    return result


# --- the calls ----------------------------------------------------------------


def setup() -> tuple[int, Params]:
    """Make a ring with one entry; return its fd and parameters. io_uring_setup(2)."""
    params = ctypes.create_string_buffer(_PARAMS_BYTES)
    return _checked(_libc_gil.syscall(_SYS_IO_URING_SETUP, 1, params)), params


def enter(ring: int, submit: int, wait_for: int, flags: int) -> int:
    """Submit entries and wait for completions. io_uring_enter(2)."""
    return _checked(
        _libc.syscall(
            _SYS_IO_URING_ENTER,
            ring,
            submit,
            wait_for,
            flags,
            None,
            ctypes.c_size_t(0),
        )
    )


def register(
    ring: int,
    opcode: int,
    argument: bytes | Params,
    count: int,
    *,
    keep_gil: bool = False,
) -> int:
    """io_uring_register(2). *argument* has *count* elements."""
    lib = _libc_gil if keep_gil else _libc
    return _checked(lib.syscall(_SYS_IO_URING_REGISTER, ring, opcode, argument, count))


# --- the layout ---------------------------------------------------------------


def submission_offsets(params: Params) -> tuple[int, int]:
    """Where the ring's mapping has the tail and the array of the submission queue."""
    _, tail, _, _, _, _, indexes, _ = _offsets.unpack_from(params, _SQ_OFFSETS)
    return tail, indexes


def completion_offset(params: Params) -> int:
    """Where the ring's mapping has the first completion queue entry."""
    _, _, _, _, _, entries, _, _ = _offsets.unpack_from(params, _CQ_OFFSETS)
    return int(entries)


# --- registered buffers -------------------------------------------------------


def register_sparse(ring: int) -> None:
    """Give a ring a table of `SLOTS` empty slots. Linux 5.19.

    IORING_REGISTER_BUFFERS2 with IORING_RSRC_REGISTER_SPARSE.
    """
    request = _rsrc_register.pack(SLOTS, _RSRC_REGISTER_SPARSE, 0, 0, 0)
    # For this opcode and the next one, the count is the size of the argument.
    register(ring, _REGISTER_BUFFERS2, request, len(request), keep_gil=True)


def update_buffers(ring: int, slot: int, buffers: list[tuple[int, int]]) -> int:
    """Fill slots from *slot* on with *buffers*; return how many were filled.

    Each buffer is (address, length); (0, 0) empties its slot. The pages of a new buffer
    are pinned (FOLL_LONGTERM) before those of the buffer that it replaces are unpinned.
    The call stops at the first buffer that the kernel refuses.
    IORING_REGISTER_BUFFERS_UPDATE.

    Raises:
        OSError: the kernel refused the first buffer. ENOMEM: over RLIMIT_MEMLOCK.
            EFAULT: nothing is mapped there.
    """
    # struct iovec is two words. The array must stay alive during the call.
    vector = array("Q", chain.from_iterable(buffers))
    data, _ = vector.buffer_info()
    request = _rsrc_update2.pack(slot, 0, data, 0, len(buffers), 0)
    keep_gil = sum([length for _, length in buffers]) <= KEEP_GIL_BYTES
    return register(
        ring, _REGISTER_BUFFERS_UPDATE, request, len(request), keep_gil=keep_gil
    )
