"""Rows about the whole file: reopen, execute, seal, lock, sync, set attributes."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from inaccfs.probe import calls, rings
from inaccfs.probe.attempts import Subject, rows
from inaccfs.probe.outcomes import NotHere

if TYPE_CHECKING:
    from collections.abc import Callable

# include/uapi/linux/fcntl.h
_F_SEALS: Final = {
    "F_SEAL_SHRINK": 0x02,
    "F_SEAL_GROW": 0x04,
    "F_SEAL_WRITE": 0x08,
    "F_SEAL_FUTURE_WRITE": 0x10,
    "F_SEAL_EXEC": 0x20,
    "F_SEAL_SEAL": 0x01,
}

_XATTR: Final = "user.inaccfs-probe"


# --- opening --------------------------------------------------------------------------


def _open(flags: int) -> Callable[[Subject], None]:
    def call(subject: Subject) -> None:
        os.open(subject.link, flags)

    return call


def _set_direct(subject: Subject) -> None:
    flags = fcntl.fcntl(subject.fd, fcntl.F_GETFL)
    fcntl.fcntl(subject.fd, fcntl.F_SETFL, flags | os.O_DIRECT)


def _open_by_handle(subject: Subject) -> None:
    calls.reopen_by_handle(subject.fd, os.O_RDWR)


def _become_read_only(subject: Subject) -> None:
    """Make the fd read-only if possible: one for writing would be ETXTBSY."""
    with suppress(OSError):
        again = os.open(subject.link, os.O_RDONLY)
        os.dup2(again, subject.fd, inheritable=False)
        os.close(again)


# --- running --------------------------------------------------------------------------


def _run(execute: Callable[[Subject], None]) -> Callable[[Subject], None]:
    """Try to execute the file, after removing everything else that could forbid it."""

    def call(subject: Subject) -> None:
        if _content(subject).strip(b"\0"):
            raise NotHere("is not empty")
        _become_read_only(subject)
        mode = stat.S_IMODE(os.fstat(subject.fd).st_mode)
        with suppress(OSError):
            os.fchmod(subject.fd, mode | stat.S_IXUSR)
        try:
            execute(subject)
        finally:
            with suppress(OSError):
                os.fchmod(subject.fd, mode)

    return call


def _content(subject: Subject) -> bytes:
    """The first bytes of the file; empty if it cannot be read, nor then executed."""
    try:
        return os.pread(subject.fd, mmap.PAGESIZE, 0)
    except OSError:
        return b""


def _execveat(subject: Subject) -> None:
    calls.execveat(subject.fd)


def _execve(subject: Subject) -> None:
    os.execve(subject.link, ["inaccfs-probe"], {})


# --- seals, locks, leases -------------------------------------------------------------


def _add_seal(seal: int) -> Callable[[Subject], None]:
    def call(subject: Subject) -> None:
        fcntl.fcntl(subject.fd, fcntl.F_ADD_SEALS, seal)

    return call


def _get_seals(subject: Subject) -> str:
    return f"ok {fcntl.fcntl(subject.fd, fcntl.F_GET_SEALS):#x}"


def _lease(kind: int) -> Callable[[Subject], None]:
    def call(subject: Subject) -> None:
        if kind == fcntl.F_RDLCK:
            _become_read_only(subject)
        fcntl.fcntl(subject.fd, fcntl.F_SETLEASE, kind)

    return call


def _record_lock(subject: Subject) -> None:
    fcntl.lockf(subject.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _description_lock(subject: Subject) -> None:
    # struct flock: l_type, l_whence, l_start, l_len, l_pid
    lock = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(subject.fd, fcntl.F_OFD_SETLK, lock)


# --- sync -----------------------------------------------------------------------------


def _aio_fsync(subject: Subject) -> None:
    rings.aio(rings.AIO_FSYNC, subject.fd, 0, 0)


def _io_uring_fsync(subject: Subject) -> None:
    rings.Ring().submit(rings.Operation(opcode=rings.FSYNC, fd=subject.fd))


# --- attributes -----------------------------------------------------------------------
# They are set to their own values: a file that the user has named keeps them.


def _chmod(subject: Subject) -> None:
    os.fchmod(subject.fd, stat.S_IMODE(os.fstat(subject.fd).st_mode))


def _chown(subject: Subject) -> None:
    found = os.fstat(subject.fd)
    os.fchown(subject.fd, found.st_uid, found.st_gid)


def _set_times(subject: Subject) -> None:
    found = os.fstat(subject.fd)
    os.utime(subject.fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def _set_xattr(subject: Subject) -> None:
    os.setxattr(subject.fd, _XATTR, b"1")
    os.removexattr(subject.fd, _XATTR)


def _get_xattr(subject: Subject) -> None:
    os.getxattr(subject.fd, _XATTR)


def _list_xattrs(subject: Subject) -> None:
    os.listxattr(subject.fd)


ROWS: Final = [
    *rows(
        "open",
        {
            "open /proc/self/fd O_RDONLY": _open(os.O_RDONLY),
            "open /proc/self/fd O_WRONLY": _open(os.O_WRONLY),
            "open /proc/self/fd O_RDWR": _open(os.O_RDWR),
            "open /proc/self/fd O_RDWR|O_DIRECT": _open(os.O_RDWR | os.O_DIRECT),
            "open /proc/self/fd O_PATH": _open(os.O_PATH),
            "open_by_handle_at O_RDWR": _open_by_handle,
            "F_SETFL O_DIRECT": _set_direct,
        },
    ),
    *rows("exec", {"execveat": _run(_execveat), "execve /proc/self/fd": _run(_execve)}),
    *rows(
        "locks and leases",
        {
            "flock": lambda it: fcntl.flock(it.fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
            "F_SETLK": _record_lock,
            "F_OFD_SETLK": _description_lock,
            "F_SETLEASE F_RDLCK": _lease(fcntl.F_RDLCK),
            "F_SETLEASE F_WRLCK": _lease(fcntl.F_WRLCK),
        },
    ),
    *rows(
        "sync",
        {
            "fsync": lambda it: os.fsync(it.fd),
            "fdatasync": lambda it: os.fdatasync(it.fd),
            "syncfs": lambda it: calls.syncfs(it.fd),
            "sync_file_range": lambda it: calls.sync_file_range(it.fd, 0, it.unit, 7),
            "AIO fsync": _aio_fsync,
            "io_uring fsync": _io_uring_fsync,
        },
    ),
    *rows(
        "attributes",
        {
            "fchmod": _chmod,
            "fchown": _chown,
            "futimens": _set_times,
            "fsetxattr": _set_xattr,
            "fgetxattr": _get_xattr,
            "flistxattr": _list_xattrs,
        },
    ),
]

SEALS: Final = rows(
    "seals",
    {
        "F_GET_SEALS": _get_seals,
        **{f"F_ADD_SEALS {name}": _add_seal(seal) for name, seal in _F_SEALS.items()},
    },
)
