"""System calls on mounts: making and unmounting them, and finding that of an fd.

As in `inaccfs.syscalls` each is a thin function that raises `OSError` with the kernel's
errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

from inaccfs.syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_STATX_DONT_SYNC,
    last_error,
)

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

# The numbers of the mount API are the same on every architecture since Linux 5.2.
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432

_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
# stx_mask is at 0, stx_mnt_id at 144.
_statx_mount = struct.Struct("=I140xQ")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.syscall.restype = ctypes.c_long


# --- making and unmounting ----------------------------------------------------------


def mount(source: str, target: str, fstype: str, flags: int, options: str) -> None:
    """mount(2)."""
    if _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode(),
        flags,
        os.fsencode(options),
    ):
        raise last_error(target)


def umount(target: str, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags):
        raise last_error(target)


class FsConfigError(OSError):
    """fsconfig(2) refused an option, or the file system did when it was made."""


def detached_tmpfs(options: dict[str, str], flags: int = 0) -> int:
    """Mount a tmpfs in no mount namespace; return an O_PATH fd of its root.

    The mount is nosuid, nodev and noexec, and ends with the last fd of it. Of *flags*,
    MS_* as for mount(2), it uses those about times of access. See fsopen(2),
    fsconfig(2), fsmount(2).

    Raises:
        FsConfigError: an option was refused; `filename` is the option.
        OSError: the kernel has no such calls (ENOSYS), or does not allow them
            (EPERM).
    """
    context = _libc.syscall(_SYS_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)
    if context < 0:
        raise last_error("tmpfs")
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
            raise last_error("tmpfs")
        attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC
        attributes |= _access_attributes(flags)
        root: int = _libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
        if root < 0:
            raise last_error("tmpfs")
        return root
    finally:
        os.close(context)


def _access_attributes(flags: int) -> int:
    """MOUNT_ATTR_* about times of access for MS_*, combined as by path_mount().

    Without any of them the mount is relatime.
    """
    found = _MOUNT_ATTR_NODIRATIME if flags & MS_NODIRATIME else 0
    if flags & MS_STRICTATIME:
        return found | _MOUNT_ATTR_STRICTATIME
    return found | (_MOUNT_ATTR_NOATIME if flags & MS_NOATIME else 0)


# --- which mount it is --------------------------------------------------------------


def mount_number(fd: int) -> int | None:
    """The number of the mount that *fd* is on, as mountinfo has it.

    None before Linux 5.8. Sends no request. See statx(2), STATX_MNT_ID.
    """
    return _mount_number(fd, b"", _STATX_MNT_ID)


def unique_mount_number(path: str) -> int | None:
    """A number of the topmost mount at *path*, given to no other mount until a reboot.

    None before Linux 6.8. Sends no request. See statx(2), STATX_MNT_ID_UNIQUE.
    """
    return _mount_number(AT_FDCWD, os.fsencode(path), _STATX_MNT_ID_UNIQUE)


def _mount_number(fd: int, path: bytes, wanted: int) -> int | None:
    flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, path, flags, wanted, buffer):
        raise last_error()
    mask, number = _statx_mount.unpack_from(buffer)
    return number if mask & wanted else None


_STATMOUNT: Final = 457
_statmount_request = struct.Struct("=IIQQ")  # size, spare, mnt_id, param


def is_mount_gone(unique: int) -> bool | None:
    """Whether this mount namespace has no mount of that unique number any more.

    None without statmount(2), which Linux 6.8 has. Sends no request.
    """
    size = _statmount_request.size
    request = ctypes.create_string_buffer(_statmount_request.pack(size, 0, unique, 0))
    buffer = ctypes.create_string_buffer(512)
    number = ctypes.c_long(_STATMOUNT)
    length = ctypes.c_size_t(len(buffer))
    if _libc.syscall(number, request, buffer, length, ctypes.c_uint(0)) == 0:
        return False
    return True if ctypes.get_errno() == errno.ENOENT else None
