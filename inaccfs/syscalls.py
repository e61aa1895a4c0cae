"""System calls that the standard library lacks, one thin function each.

A test can replace one of them, to see what happens when the kernel refuses the call.
Each raises `OSError` with the kernel's errno. Offsets, lengths and sizes are bytes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
PUNCH: Final = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
"""The mode of a punch: the kernel allows no other."""

AT_FDCWD: Final = -100
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOATIME: Final = 1 << 10
MS_NODIRATIME: Final = 1 << 11
MS_STRICTATIME: Final = 1 << 24

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

TMPFS_MAGIC: Final = 0x01021994
HUGETLBFS_MAGIC: Final = 0x958458F6

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

Time: TypeAlias = tuple[int, int]
"""Seconds and nanoseconds, or `UTIME_NOW` or `UTIME_OMIT` for nanoseconds."""

_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4
_MOUNT_ATTR_NOEXEC: Final = 8
_MOUNT_ATTR_NOATIME: Final = 0x10
_MOUNT_ATTR_STRICTATIME: Final = 0x20
_MOUNT_ATTR_NODIRATIME: Final = 0x80
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4

# The numbers of the mount API are the same on every architecture since Linux 5.2.
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432

_libc = ctypes.CDLL(None, use_errno=True)
# Calls through this one keep the GIL: for those known to be over in microseconds.
_libc_gil = ctypes.PyDLL(None, use_errno=True)

_libc.fallocate64.argtypes = [
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int64,
]
_libc.getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.syscall.restype = ctypes.c_long


def _error(path: object = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


# --- allocation -------------------------------------------------------------

_fallocate_now = _libc_gil.fallocate64
# Ready-made arguments: converting Python integers to 64 bits anew costs more than
# the rest of the call. The GIL, which _libc_gil does not give up, guards them.
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
        raise _error()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), for a worker thread: gives up the GIL, EINTR is not retried."""
    if _libc.fallocate64(fd, mode, offset, length):
        raise _error()


# --- identity -----------------------------------------------------------------

_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_INO: Final = 0x100
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
# struct statx: stx_ino is at 32, stx_dev_major and stx_dev_minor at 136.
_statx_buffer = ctypes.create_string_buffer(256)
_statx_ino = struct.Struct("=32xQ96xII")
# stx_mask is at 0, stx_mnt_id at 144.
_statx_mount = struct.Struct("=I140xQ")


def identity(fd: int) -> tuple[str, int]:
    """The device number of an fd's file system, as "major:minor", and the inode number.

    Asks no file system: neither this daemon's own, which would wait for itself, nor
    one that hangs. See statx(2), AT_STATX_DONT_SYNC.
    """
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _libc.statx(fd, b"", flags, _STATX_INO, _statx_buffer):
        raise _error()
    ino, major, minor = _statx_ino.unpack_from(_statx_buffer)
    return f"{major}:{minor}", ino


_STATX_BASIC_STATS: Final = 0x7FF
_STATX_BTIME: Final = 0x800


def statx(fd: int) -> bytes:
    """struct statx of what *fd*, perhaps O_PATH, leads to, as statx(2) tells it."""
    mask = _STATX_BASIC_STATS | _STATX_BTIME
    if _libc_gil.statx(fd, b"", _AT_EMPTY_PATH, mask, _statx_buffer):
        raise _error()
    return _statx_buffer.raw


def mount_number(fd: int) -> int | None:
    """The number of the mount that *fd* is on, as mountinfo has it.

    None before Linux 5.8. Asks no file system. See statx(2), STATX_MNT_ID.
    """
    return _mount_number(fd, b"", _STATX_MNT_ID)


def unique_mount_number(path: str) -> int | None:
    """A number of the topmost mount at *path*, given to no other mount until a reboot.

    None before Linux 6.8. Asks no file system. See statx(2), STATX_MNT_ID_UNIQUE.
    """
    return _mount_number(AT_FDCWD, os.fsencode(path), _STATX_MNT_ID_UNIQUE)


def _mount_number(fd: int, path: bytes, wanted: int) -> int | None:
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, path, flags, wanted, buffer):
        raise _error()
    mask, number = _statx_mount.unpack_from(buffer)
    return number if mask & wanted else None


_STATMOUNT: Final = 457
_statmount_request = struct.Struct("=IIQQ")  # size, spare, mnt_id, param


def is_mount_gone(unique: int) -> bool | None:
    """Whether this mount namespace has no mount of that unique number any more.

    None where statmount(2) (Linux 6.8) is not to be had. Asks no file system.
    """
    size = _statmount_request.size
    request = ctypes.create_string_buffer(_statmount_request.pack(size, 0, unique, 0))
    buffer = ctypes.create_string_buffer(512)
    number = ctypes.c_long(_STATMOUNT)
    length = ctypes.c_size_t(len(buffer))
    if _libc.syscall(number, request, buffer, length, ctypes.c_uint(0)) == 0:
        return False
    return True if ctypes.get_errno() == errno.ENOENT else None


# --- names ------------------------------------------------------------------


class DirectoryEntry(NamedTuple):
    """One entry as getdents64(2) tells it; *offset* leads to the entry after it."""

    name: bytes
    ino: int
    offset: int


_dirent = struct.Struct("<QqHB")  # d_ino, d_off, d_reclen, d_type; then d_name
_dirent_buffer = ctypes.create_string_buffer(16384)


def getdents(fd: int) -> list[DirectoryEntry]:
    """The next entries of an open directory; empty at its end. See getdents64(2)."""
    size = _libc_gil.getdents64(fd, _dirent_buffer, len(_dirent_buffer))
    if size < 0:
        raise _error()
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
        raise _error()


def utimensat(path: str, atime: Time, mtime: Time) -> None:
    """utimensat(2), following *path*."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if _libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0):
        raise _error()


# --- mounting ---------------------------------------------------------------


def mount(source: str, target: str, fstype: str, flags: int, options: str) -> None:
    """mount(2)."""
    if _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode(),
        flags,
        os.fsencode(options),
    ):
        raise _error(target)


def umount(target: str, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags):
        raise _error(target)


class FsConfigError(OSError):
    """fsconfig(2) refused an option, or the file system did when it was made."""


def detached_mount(fstype: str, options: dict[str, str], flags: int = 0) -> int:
    """Mount *fstype* where no path leads; return an O_PATH fd of its root.

    The mount is nosuid, nodev and noexec, and goes with the last fd that leads
    to it. Of *flags*, MS_* as for mount(2), it has those about times of access. See
    fsopen(2), fsconfig(2), fsmount(2).

    Raises:
        FsConfigError: an option was refused; `filename` is the option.
        OSError: the kernel has no such calls (ENOSYS), or does not allow them
            (EPERM).
    """
    context = _libc.syscall(_SYS_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC)
    if context < 0:
        raise _error(fstype)
    try:
        for key, value in options.items():
            if (
                _libc.syscall(
                    _SYS_FSCONFIG,
                    context,
                    _FSCONFIG_SET_STRING,
                    key.encode(),
                    value.encode(),
                    0,
                )
                < 0
            ):
                number = ctypes.get_errno()
                raise FsConfigError(number, os.strerror(number), f"{key}={value}")
        if _libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0):
            raise _error(fstype)
        attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC
        attributes |= _access_attributes(flags)
        root: int = _libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
        if root < 0:
            raise _error(fstype)
        return root
    finally:
        os.close(context)


def _access_attributes(flags: int) -> int:
    """MOUNT_ATTR_* about times of access for MS_*; as path_mount() puts them together.

    None of them is relatime.
    """
    found = _MOUNT_ATTR_NODIRATIME if flags & MS_NODIRATIME else 0
    if flags & MS_STRICTATIME:
        return found | _MOUNT_ATTR_STRICTATIME
    return found | (_MOUNT_ATTR_NOATIME if flags & MS_NOATIME else 0)


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(flags):
        raise _error()


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace of *kind*, CLONE_NEW..., that *fd* leads to."""
    if _libc.setns(fd, kind):
        raise _error()


def fstatfs_magic(fd: int) -> int:
    """f_type of fstatfs(2): which file system *fd* is on."""
    # struct statfs is 120 bytes on 64-bit Linux; f_type is its first word.
    buffer = (ctypes.c_long * 32)()
    if _libc.fstatfs(fd, buffer):
        raise _error()
    return buffer[0] & 0xFFFFFFFF


# --- the process ------------------------------------------------------------


def set_dumpable(dumpable: bool) -> None:
    """Open or close /proc/PID/fd and ptrace(2) to others of the same user. prctl(2)."""
    if _libc.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0):
        raise _error()


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Get this signal when the thread that forked us ends. prctl(2), PR_SET_PDEATHSIG.

    A program that is run keeps it.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0):
        raise _error()


class OomScore:
    """How much sooner than others the OOM killer takes this process. proc(5).

    Make it while the process is dumpable: a plain user's /proc/self is root's then.
    """

    def __init__(self) -> None:
        """Where /proc does not let us, the score stays as it is."""
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)

    @contextmanager
    def raised(self, adjustment: int) -> Iterator[None]:
        """For a with block; what is forked in it keeps it for good. Once."""
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
    """A POSIX message queue of one byte that has no name any more; its fd.

    *name* begins with a slash and is taken for a moment. See mq_open(3).
    """
    attributes = _MessageQueueAttributes(mq_maxmsg=1, mq_msgsize=1)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd: int = _libc.mq_open(name.encode(), flags, 0o600, ctypes.byref(attributes))
    if fd < 0:
        raise _error(name)
    _libc.mq_unlink(name.encode())
    return fd
