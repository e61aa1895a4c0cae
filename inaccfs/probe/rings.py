"""Do one operation by io_uring or by AIO, and wait for it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
from dataclasses import dataclass
from typing import Final

from inaccfs import errnos, uring
from inaccfs.errnos import os_error
from inaccfs.probe import calls
from inaccfs.probe.outcomes import NotHere

# --- io_uring, include/uapi/linux/io_uring.h ------------------------------------------

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

_OP_SUPPORTED: Final = 1

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
    """The fields of a submission queue entry that are not 0."""

    opcode: int
    fd: int
    offset: int = 0
    address: int = 0
    length: int = 0
    # Which fd SPLICE reads from.
    splice_fd: int = 0


class Ring:
    """An io_uring for one operation. It is closed when the process ends."""

    def __init__(self) -> None:
        """Raises `NotHere` where the kernel has no io_uring, or does not allow it."""
        try:
            self._fd, self._params = uring.setup()
        except OSError as exc:
            if exc.errno in (errno.ENOSYS, errno.EPERM):
                raise NotHere(f"no io_uring, {errnos.name(exc.errno)}") from exc
            raise

    def submit(self, operation: Operation) -> int:
        """Do *operation*; return its result, or raise it as an OSError."""
        self._need(operation.opcode)
        tail, array = uring.submission_offsets(self._params)
        cqes = uring.completion_offset(self._params)
        # Both rings are in one mapping since Linux 5.4, and with one entry in one page.
        rings = mmap.mmap(self._fd, mmap.PAGESIZE)
        entries = mmap.mmap(self._fd, mmap.PAGESIZE, offset=uring.OFF_SQES)
        _sqe.pack_into(
            entries,
            0,
            operation.opcode,
            0,
            0,
            operation.fd,
            operation.offset,
            operation.address,
            operation.length,
            0,
            0,
            0,
            0,
            operation.splice_fd,
        )
        _u32.pack_into(rings, array, 0)
        _u32.pack_into(rings, tail, 1)
        uring.enter(self._fd, 1, 1, uring.ENTER_GETEVENTS)
        _, result, _ = _cqe.unpack_from(rings, cqes)
        if result < 0:
            raise os_error(-result)
        return int(result)

    def register_buffer(self, address: int, length: int) -> None:
        """Pin memory for long (FOLL_LONGTERM). IORING_REGISTER_BUFFERS."""
        vector = struct.pack("=QQ", address, length)
        uring.register(self._fd, uring.REGISTER_BUFFERS, vector, 1)

    def _need(self, opcode: int) -> None:
        # EINVAL may mean an opcode that this kernel lacks, or that the file refuses it.
        size = _PROBE_HEAD + _PROBE_OPS * _PROBE_OP_BYTES
        found = ctypes.create_string_buffer(size)
        uring.register(self._fd, uring.REGISTER_PROBE, found, _PROBE_OPS)
        _, _, flags, _ = struct.unpack_from(
            "=BBHI", found, _PROBE_HEAD + opcode * _PROBE_OP_BYTES
        )
        if not flags & _OP_SUPPORTED:
            raise NotHere(f"io_uring has no operation {opcode}")


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
    """Do one operation at offset 0 by io_submit(2); its result, or an OSError."""
    context = ctypes.c_ulong()
    calls.syscall(calls.number_of("io_setup"), ctypes.c_uint(1), ctypes.byref(context))
    packed = _iocb.pack(0, 0, 0, opcode, 0, fd, address, length, 0, 0, 0, 0)
    block = ctypes.create_string_buffer(packed, len(packed))
    blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
    calls.syscall(calls.number_of("io_submit"), context, ctypes.c_long(1), blocks)
    event = ctypes.create_string_buffer(_io_event.size)
    calls.syscall(
        calls.number_of("io_getevents"),
        context,
        ctypes.c_long(1),
        ctypes.c_long(1),
        event,
        None,
    )
    _, _, result, _ = _io_event.unpack(event.raw)
    if result < 0:
        raise os_error(-result)
    return int(result)
