"""System calls that the standard library lacks, for tests; see their man pages.

They are not those of `inaccfs.syscalls` on purpose: a test with the same mistake as the
code finds nothing.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from contextlib import ExitStack
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

KEEP_SIZE: Final = 0x01
PUNCH_HOLE: Final = 0x02
COLLAPSE_RANGE: Final = 0x08
ZERO_RANGE: Final = 0x10
INSERT_RANGE: Final = 0x20
UNSHARE_RANGE: Final = 0x40

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

_AT_FDCWD: Final = -100
_AT_SYMLINK_FOLLOW: Final = 0x400

# x86-64 and arm64 differ in the old ones; since 424 all architectures agree.
_NUMBERS: Final = {
    "x86_64": {
        "io_setup": 206,
        "io_destroy": 207,
        "io_getevents": 208,
        "io_submit": 209,
    },
    "aarch64": {"io_setup": 0, "io_destroy": 1, "io_submit": 2, "io_getevents": 4},
}
_IO_URING_SETUP: Final = 425
_IO_URING_ENTER: Final = 426


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _syscall(number: int, *arguments: object) -> int:
    return _checked(int(_libc.syscall(ctypes.c_long(number), *arguments)))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), without glibc's emulation and without a retry after EINTR."""
    _checked(
        _libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    )


def punch(fd: int, offset: int, length: int) -> None:
    """fallocate(2) that makes a hole."""
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)


def renameat2(
    old: str | os.PathLike[str], new: str | os.PathLike[str], flags: int
) -> None:
    """renameat2(2)."""
    _checked(
        _libc.renameat2(
            _AT_FDCWD,
            os.fsencode(old),
            _AT_FDCWD,
            os.fsencode(new),
            ctypes.c_uint(flags),
        )
    )


def link_fd(fd: int, name: str | os.PathLike[str]) -> None:
    """Give the file of an fd a *name*, as open(2) describes under O_TMPFILE."""
    _checked(
        _libc.linkat(
            _AT_FDCWD,
            f"/proc/self/fd/{fd}".encode(),
            _AT_FDCWD,
            os.fsencode(name),
            _AT_SYMLINK_FOLLOW,
        )
    )


# --- AIO, see io_submit(2) ----------------------------------------------------

AIO_PREAD: Final = 0
AIO_PWRITE: Final = 1

# struct iocb: data, key, rw_flags, opcode, reqprio, fildes, buf, nbytes, offset, ...
_iocb = struct.Struct("=QIIHhIQQqQII")
_io_event = struct.Struct("=QQqq")


def aio(fd: int, opcode: int) -> None:
    """Read or write a page at 0 by AIO, and raise its error."""
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is None:
        raise NotImplementedError(os.uname().machine)
    context = ctypes.c_ulong()
    _syscall(numbers["io_setup"], ctypes.c_uint(1), ctypes.byref(context))
    try:
        page = ctypes.create_string_buffer(4096)
        packed = _iocb.pack(
            0, 0, 0, opcode, 0, fd, ctypes.addressof(page), len(page), 0, 0, 0, 0
        )
        block = ctypes.create_string_buffer(packed, len(packed))
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        _syscall(numbers["io_submit"], context, ctypes.c_long(1), blocks)
        event = ctypes.create_string_buffer(_io_event.size)
        _syscall(
            numbers["io_getevents"],
            context,
            ctypes.c_long(1),
            ctypes.c_long(1),
            event,
            None,
        )
        _, _, result, _ = _io_event.unpack(event.raw)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
    finally:
        _syscall(numbers["io_destroy"], context)


# --- io_uring, see io_uring_enter(2) ------------------------------------------

IORING_READV: Final = 1
IORING_WRITEV: Final = 2
IORING_READ: Final = 22
IORING_WRITE: Final = 23

_OFF_SQ_RING: Final = 0
_OFF_SQES: Final = 0x10000000
_ENTER_GETEVENTS: Final = 1
_FEAT_SINGLE_MMAP: Final = 1

# struct io_uring_params: sq_entries, cq_entries, flags, sq_thread_cpu,
# sq_thread_idle, features, wq_fd, resv[3]; then the offsets of both rings.
_PARAMS_SIZE: Final = 120
_sq_offsets = struct.Struct(
    "=8IQ"
)  # head, tail, ring_mask, entries, flags, dropped, array
_cq_offsets = struct.Struct(
    "=8IQ"
)  # head, tail, ring_mask, entries, overflow, cqes, flags
# struct io_uring_sqe: opcode, flags, ioprio, fd, off, addr, len
_sqe = struct.Struct("=BBHiQQI")
_cqe = struct.Struct("=QiI")
_u32 = struct.Struct("=I")


def has_io_uring() -> bool:
    """Whether the kernel lets us make a ring."""
    parameters = ctypes.create_string_buffer(_PARAMS_SIZE)
    try:
        os.close(_syscall(_IO_URING_SETUP, ctypes.c_uint(1), parameters))
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


def io_uring(fd: int, opcode: int) -> None:
    """Execute one operation on a page at 0 in a new ring, and raise its error."""
    parameters = ctypes.create_string_buffer(_PARAMS_SIZE)
    ring = _syscall(_IO_URING_SETUP, ctypes.c_uint(1), parameters)
    with ExitStack() as stack:
        stack.callback(os.close, ring)
        _, _, _, _, _, features = struct.unpack_from("=6I", parameters)
        assert features & _FEAT_SINGLE_MMAP
        (_, tail, _, entries, _, _, array, _, _) = _sq_offsets.unpack_from(
            parameters, 40
        )
        (_, _, _, cq_entries, _, cqes, _, _, _) = _cq_offsets.unpack_from(
            parameters, 80
        )
        del entries, cq_entries
        rings = stack.enter_context(mmap.mmap(ring, 4096, offset=_OFF_SQ_RING))
        entry = stack.enter_context(mmap.mmap(ring, 4096, offset=_OFF_SQES))

        page = ctypes.create_string_buffer(4096)
        address, length = ctypes.addressof(page), len(page)
        vector = struct.pack("=QQ", address, length)
        vectors = ctypes.create_string_buffer(vector, len(vector))
        if opcode in (IORING_READV, IORING_WRITEV):
            address, length = ctypes.addressof(vectors), 1
        _sqe.pack_into(entry, 0, opcode, 0, 0, fd, 0, address, length)
        _u32.pack_into(rings, array, 0)
        _u32.pack_into(rings, tail, 1)
        _syscall(
            _IO_URING_ENTER,
            ctypes.c_int(ring),
            ctypes.c_uint(1),
            ctypes.c_uint(1),
            ctypes.c_uint(_ENTER_GETEVENTS),
            None,
            ctypes.c_size_t(0),
        )
        _, result, _ = _cqe.unpack_from(rings, cqes)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


# --- directories and extended attributes --------------------------------------

_GETDENTS64: Final = {"x86_64": 217, "aarch64": 61}
_dirent = struct.Struct("=QqHB")  # d_ino, d_off, d_reclen, d_type; then d_name


def getdents(fd: int, size: int = 32768) -> list[tuple[bytes, int]]:
    """Names, each with the offset of the next one. getdents64(2)."""
    buffer = ctypes.create_string_buffer(size)
    number = _GETDENTS64[os.uname().machine]
    end = _syscall(number, ctypes.c_uint(fd), buffer, ctypes.c_size_t(size))
    found = []
    at = 0
    while at < end:
        _, offset, length, _ = _dirent.unpack_from(buffer, at)
        name = buffer.raw[at + _dirent.size : at + length].partition(b"\0")[0]
        found.append((name, offset))
        at += length
    return found


def getxattr(path: str | os.PathLike[str], name: str, size: int) -> int:
    """The length of a value, read into *size* bytes; 0 only asks. getxattr(2)."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _checked(
        _libc.getxattr(os.fsencode(path), name.encode(), buffer, ctypes.c_size_t(size))
    )


def listxattr(path: str | os.PathLike[str], size: int) -> int:
    """The length of the names, read into *size* bytes; 0 only asks. listxattr(2)."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _checked(_libc.listxattr(os.fsencode(path), buffer, ctypes.c_size_t(size)))


# --- file handles, see open_by_handle_at(2) -------------------------------------

# struct file_handle: handle_bytes, handle_type; then f_handle
_HANDLE_HEADER: Final = struct.Struct("=Ii")
_MAX_HANDLE: Final = 128


def name_to_handle(path: str | os.PathLike[str]) -> bytes:
    """The struct file_handle of a name, which is not followed."""
    buffer = ctypes.create_string_buffer(_HANDLE_HEADER.size + _MAX_HANDLE)
    _HANDLE_HEADER.pack_into(buffer, 0, _MAX_HANDLE, 0)
    mount_id = ctypes.c_int()
    _checked(
        _libc.name_to_handle_at(
            _AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount_id), 0
        )
    )
    size, _ = _HANDLE_HEADER.unpack_from(buffer)
    return buffer.raw[: _HANDLE_HEADER.size + size]


def open_handle(mount: str | os.PathLike[str], handle: bytes, flags: int) -> int:
    """An fd of what a handle leads to, on the file system of *mount*."""
    root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        buffer = ctypes.create_string_buffer(handle, len(handle))
        return _checked(_libc.open_by_handle_at(root, buffer, flags | os.O_CLOEXEC))
    finally:
        os.close(root)


# --- idmapped mounts, see mount_setattr(2) ----------------------------------------

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_MOUNT_SETATTR: Final = 442
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_AT_EMPTY_PATH: Final = 0x1000
_MOUNT_ATTR_IDMAP: Final = 0x100000


def mount_idmapped(
    source: str | os.PathLike[str], target: str | os.PathLike[str], user_namespace: int
) -> None:
    """Mount *source* at *target*, too, with the mapping of a user namespace's fd."""
    tree = _syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE)
    try:
        # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
        _syscall(
            _MOUNT_SETATTR,
            tree,
            b"",
            _AT_EMPTY_PATH,
            ctypes.c_char_p(attributes),
            ctypes.c_size_t(len(attributes)),
        )
        _syscall(
            _MOVE_MOUNT,
            tree,
            b"",
            _AT_FDCWD,
            os.fsencode(target),
            _MOVE_MOUNT_F_EMPTY_PATH,
        )
    finally:
        os.close(tree)
