"""One operation by io_uring or by AIO, waited for."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Final

from inaccfs.probe import calls
from inaccfs.probe.outcomes import NotHere, errno_name

# --- io_uring, include/uapi/linux/io_uring.h ------------------------------------------

_SYS_IO_URING_SETUP: Final = 425
_SYS_IO_URING_ENTER: Final = 426
_SYS_IO_URING_REGISTER: Final = 427

READV: Final = 1
WRITEV: Final = 2
FSYNC: Final = 3
READ_FIXED: Final = 4
WRITE_FIXED: Final = 5
FALLOCATE: Final = 17
READ: Final = 22
WRITE: Final = 23
SPLICE: Final = 30
FTRUNCATE: Final = 55

_REGISTER_BUFFERS: Final = 0
_REGISTER_PROBE: Final = 8
_OP_SUPPORTED: Final = 1

_OFF_SQES: Final = 0x10000000
_ENTER_GETEVENTS: Final = 1

# struct io_uring_params: ten words, then the offsets of what is in either ring.
_PARAMS_BYTES: Final = 120
_SQ_OFFSETS: Final = 40  # head, tail, ring_mask, entries, flags, dropped, array
_CQ_OFFSETS: Final = 80  # head, tail, ring_mask, entries, overflow, cqes
_offsets = struct.Struct("=8I")

# opcode, flags, ioprio, fd, off, addr, len, op_flags, user_data, buf_index,
# personality, splice_fd_in
_sqe = struct.Struct("=BBHiQQIIQHHi16x")
_cqe = struct.Struct("=QiI")
_u32 = struct.Struct("=I")

# struct io_uring_probe: last_op, ops_len, then reserved; struct io_uring_probe_op: op,
# reserved, flags, reserved.
_PROBE_OPS: Final = 256
_PROBE_HEAD: Final = 16
_PROBE_OP_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What goes into a submission queue entry; what is 0 there is left out."""

    opcode: int
    fd: int
    offset: int = 0
    address: int = 0
    length: int = 0
    # Which fd SPLICE reads from.
    splice_fd: int = 0


class Ring:
    """An io_uring for one operation; it goes with the process."""

    def __init__(self) -> None:
        """Raises `NotHere` where the kernel has no io_uring, or does not allow it."""
        self._params = ctypes.create_string_buffer(_PARAMS_BYTES)
        try:
            self._fd = calls.syscall(
                _SYS_IO_URING_SETUP, ctypes.c_uint(1), self._params
            )
        except OSError as exc:
            if exc.errno in (errno.ENOSYS, errno.EPERM):
                raise NotHere(f"no io_uring, {errno_name(exc)}") from exc
            raise

    def submit(self, operation: Operation) -> int:
        """Carry *operation* out, and return or raise what it comes to."""
        self._need(operation.opcode)
        _, tail, _, _, _, _, array, _ = _offsets.unpack_from(self._params, _SQ_OFFSETS)
        _, _, _, _, _, cqes, _, _ = _offsets.unpack_from(self._params, _CQ_OFFSETS)
        # Both rings are in one mapping since Linux 5.4, and with one entry in one page.
        rings = mmap.mmap(self._fd, mmap.PAGESIZE)
        entries = mmap.mmap(self._fd, mmap.PAGESIZE, offset=_OFF_SQES)
        _sqe.pack_into(
            *(entries, 0),
            *(operation.opcode, 0, 0, operation.fd),
            *(operation.offset, operation.address, operation.length),
            *(0, 0, 0, 0, operation.splice_fd),
        )
        _u32.pack_into(rings, array, 0)
        _u32.pack_into(rings, tail, 1)
        calls.syscall(
            *(_SYS_IO_URING_ENTER, ctypes.c_uint(self._fd)),
            *(ctypes.c_uint(1), ctypes.c_uint(1), ctypes.c_uint(_ENTER_GETEVENTS)),
            *(None, ctypes.c_size_t(0)),
        )
        _, result, _ = _cqe.unpack_from(rings, cqes)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return int(result)

    def register_buffer(self, address: int, length: int) -> None:
        """Pin memory for long. IORING_REGISTER_BUFFERS."""
        vector = struct.pack("=QQ", address, length)
        self._register(_REGISTER_BUFFERS, vector, 1)

    def _need(self, opcode: int) -> None:
        # An opcode that the kernel has not is EINVAL, as much that a file refuses is.
        size = _PROBE_HEAD + _PROBE_OPS * _PROBE_OP_BYTES
        found = ctypes.create_string_buffer(size)
        self._register(_REGISTER_PROBE, found, _PROBE_OPS)
        _, _, flags, _ = struct.unpack_from(
            "=BBHI", found, _PROBE_HEAD + opcode * _PROBE_OP_BYTES
        )
        if not flags & _OP_SUPPORTED:
            raise NotHere(f"io_uring has no operation {opcode}")

    def _register(self, opcode: int, argument: object, count: int) -> None:
        calls.syscall(
            *(_SYS_IO_URING_REGISTER, ctypes.c_uint(self._fd), ctypes.c_uint(opcode)),
            *(argument, ctypes.c_uint(count)),
        )


# --- AIO, include/uapi/linux/aio_abi.h ------------------------------------------------

AIO_PREAD: Final = 0
AIO_PWRITE: Final = 1
AIO_FSYNC: Final = 2
AIO_PREADV: Final = 7
AIO_PWRITEV: Final = 8

# struct iocb, on a little-endian machine: data, key, rw_flags, lio_opcode, reqprio,
# fildes, buf, nbytes, offset, reserved2, flags, resfd
_iocb = struct.Struct("=QIIHhIQQqQII")
_io_event = struct.Struct("=QQqq")  # data, obj, res, res2


def aio(opcode: int, fd: int, address: int, length: int) -> int:
    """One operation at offset 0 by io_submit(2); return or raise what it comes to."""
    context = ctypes.c_ulong()
    calls.syscall(calls.number_of("io_setup"), ctypes.c_uint(1), ctypes.byref(context))
    packed = _iocb.pack(0, 0, 0, opcode, 0, fd, address, length, 0, 0, 0, 0)
    block = ctypes.create_string_buffer(packed, len(packed))
    blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
    calls.syscall(calls.number_of("io_submit"), context, ctypes.c_long(1), blocks)
    event = ctypes.create_string_buffer(_io_event.size)
    calls.syscall(
        *(calls.number_of("io_getevents"), context, ctypes.c_long(1)),
        *(ctypes.c_long(1), event, None),
    )
    _, _, result, _ = _io_event.unpack(event.raw)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return int(result)
