"""System calls that the standard library lacks, one thin function each.

A test can replace one of them, to see what happens when the kernel refuses the call.
Each raises `OSError` with the kernel's errno. Offsets, lengths and sizes are bytes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10
PUNCH: Final = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
"""The mode of a punch: the kernel allows no other."""

AT_FDCWD: Final = -100
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

TMPFS_MAGIC: Final = 0x01021994
HUGETLBFS_MAGIC: Final = 0x958458F6

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000

# Bits of capabilities(7).
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_IPC_LOCK: Final = 14
CAP_SYS_ADMIN: Final = 21

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

Time: TypeAlias = tuple[int, int]
"""Seconds and nanoseconds, or `UTIME_NOW` or `UTIME_OMIT` for nanoseconds."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)
# Calls through this library keep the GIL: for calls that take only microseconds.
_libc_gil = ctypes.PyDLL(None, use_errno=True)

_libc.fallocate64.argtypes = [
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int64,
]
_libc.getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.getdents64.restype = ctypes.c_ssize_t


def last_error(path: object = None) -> OSError:
    """The error of the last failed call through ctypes; *path* is what it was about."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


# --- allocation -------------------------------------------------------------

_fallocate_now = _libc_gil.fallocate64
# Ready-made arguments: converting Python integers to 64 bits costs more than the rest
# of the call. The GIL, which _libc_gil does not release, guards them.
_now_offset = ctypes.c_int64()
_now_length = ctypes.c_int64()


def fallocate_now(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) for a range so small that it takes microseconds."""
    if mode == 0:
        # The same call without the cost of ctypes, a third of it. It would fall back
        # to writing where fallocate is not supported; every backing supports this.
        os.posix_fallocate(fd, offset, length)
        return
    _now_offset.value = offset
    _now_length.value = length
    if _fallocate_now(fd, mode, _now_offset, _now_length):
        raise last_error()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), for a worker thread: releases the GIL, and does not retry EINTR."""
    if _libc.fallocate64(fd, mode, offset, length):
        raise last_error()


# --- identity -----------------------------------------------------------------

AT_EMPTY_PATH: Final = 0x1000
AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_INO: Final = 0x100
# struct statx: stx_ino is at 32, stx_dev_major and stx_dev_minor at 136.
_statx_buffer = ctypes.create_string_buffer(256)
_statx_ino = struct.Struct("=32xQ96xII")


def identity(fd: int) -> tuple[str, int]:
    """The device number of an fd's file system, as "major:minor", and the inode number.

    Sends no request to any file system: neither to this mount, where the daemon would
    wait for itself, nor to one that hangs. See statx(2), AT_STATX_DONT_SYNC.
    """
    flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC
    if _libc.statx(fd, b"", flags, _STATX_INO, _statx_buffer):
        raise last_error()
    ino, major, minor = _statx_ino.unpack_from(_statx_buffer)
    return f"{major}:{minor}", ino


_STATX_BASIC_STATS: Final = 0x7FF
_STATX_BTIME: Final = 0x800


def statx(fd: int) -> bytes:
    """The struct statx of an fd, perhaps an O_PATH one, by statx(2)."""
    mask = _STATX_BASIC_STATS | _STATX_BTIME
    if _libc_gil.statx(fd, b"", AT_EMPTY_PATH, mask, _statx_buffer):
        raise last_error()
    return _statx_buffer.raw


def fstatfs_magic(fd: int) -> int:
    """f_type of fstatfs(2): which file system *fd* is on."""
    # struct statfs is 120 bytes on 64-bit Linux; f_type is its first word.
    buffer = (ctypes.c_long * 32)()
    if _libc.fstatfs(fd, buffer):
        raise last_error()
    return buffer[0] & 0xFFFFFFFF


# --- names ------------------------------------------------------------------


class DirectoryEntry(NamedTuple):
    """An entry of getdents64(2); the next one is at *offset*."""

    name: bytes
    ino: int
    offset: int


_dirent = struct.Struct("<QqHB")  # d_ino, d_off, d_reclen, d_type; then d_name
_dirent_buffer = ctypes.create_string_buffer(16384)


def getdents(fd: int) -> list[DirectoryEntry]:
    """The next entries of an open directory; empty at its end. See getdents64(2)."""
    size = _libc_gil.getdents64(fd, _dirent_buffer, len(_dirent_buffer))
    if size < 0:
        raise last_error()
    data = _dirent_buffer.raw[:size]
    entries = []
    at = 0
    while at < size:
        ino, offset, length, _ = _dirent.unpack_from(data, at)
        start = at + _dirent.size
        entries.append(
            DirectoryEntry(data[start : data.index(b"\0", start)], ino, offset)
        )
        at += length
    return entries


def renameat2(
    old_dir: int, old_name: bytes, new_dir: int, new_name: bytes, flags: int
) -> None:
    """renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE."""
    if _libc.renameat2(old_dir, old_name, new_dir, new_name, ctypes.c_uint(flags)):
        raise last_error()


def utimensat(path: str, atime: Time, mtime: Time) -> None:
    """utimensat(2), following *path*."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if _libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0):
        raise last_error()


# --- the process ------------------------------------------------------------


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(flags):
        raise last_error()


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace of *kind*, CLONE_NEW..., that *fd* leads to."""
    if _libc.setns(fd, kind):
        raise last_error()


def set_dumpable(dumpable: bool) -> None:
    """Allow or forbid /proc/PID/fd and ptrace(2) to the same user. prctl(2)."""
    if _libc.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0):
        raise last_error()


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Get this signal when the thread that forked us ends. prctl(2), PR_SET_PDEATHSIG.

    If that thread's process goes on, another thread of it becomes the parent, and the
    signal comes again when that ends. The setting survives execve(2).
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0):
        raise last_error()


_ucred: Final = struct.Struct("=iII")


class Credentials(NamedTuple):
    """struct ucred of unix(7). Ids are in our namespaces."""

    # 0 if the process is not in our PID namespace.
    pid: int
    uid: int
    gid: int


def peer_credentials(connection: socket.socket) -> Credentials:
    """The process that made the other end, by connect(2) or listen(2). SO_PEERCRED."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _ucred.size)
    return Credentials._make(_ucred.unpack(found))


class OomScore:
    """The OOM score of this process: how early the OOM killer kills it. proc(5).

    Make it while the process is dumpable: otherwise /proc/self belongs to root, and a
    plain user cannot open it.
    """

    def __init__(self) -> None:
        """If /proc refuses the open, the score does not change."""
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)

    @contextmanager
    def raised(self, adjustment: int) -> Iterator[None]:
        """Raise the score in a with block. Forks made in it keep it. Use it once."""
        if self._fd < 0:
            yield
            return
        try:
            before = os.read(self._fd, 16)
            os.pwrite(self._fd, b"%d" % adjustment, 0)
            try:
                yield
            finally:
                os.pwrite(self._fd, before, 0)
        finally:
            os.close(self._fd)
            self._fd = -1


class _MessageQueueAttributes(ctypes.Structure):
    _fields_ = (
        ("mq_flags", ctypes.c_long),
        ("mq_maxmsg", ctypes.c_long),
        ("mq_msgsize", ctypes.c_long),
        ("mq_curmsgs", ctypes.c_long),
        ("reserved", ctypes.c_long * 4),
    )


def anonymous_message_queue(name: str) -> int:
    """The fd of a POSIX message queue of one byte, which has no name any more.

    *name* begins with a slash, and exists for a moment. See mq_open(3).
    """
    attributes = _MessageQueueAttributes(mq_maxmsg=1, mq_msgsize=1)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd: int = _libc.mq_open(name.encode(), flags, 0o600, ctypes.byref(attributes))
    if fd < 0:
        raise last_error(name)
    _libc.mq_unlink(name.encode())
    return fd
