"""System calls that only the hard tests need; see their man pages."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_EMPTY_PATH: Final = 0x1000

STATX_BTIME: Final = 0x800
_STATX_ALL: Final = 0xFFF

IN_ACCESS: Final = 0x1
IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_OPEN: Final = 0x20
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_NONBLOCK: Final = os.O_NONBLOCK


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def statx(path: str) -> tuple[int, int, int]:
    """stx_mask, stx_attributes and stx_btime (ns) of a path. statx(2)."""
    buffer = ctypes.create_string_buffer(256)
    _checked(
        _libc.statx(
            _AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_ALL, buffer
        )
    )
    mask, attributes = struct.unpack_from("=I4xQ", buffer.raw)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer.raw, 80)
    return mask, attributes, seconds * 10**9 + nanoseconds


def file_handle(path: str) -> bytes:
    """A struct file_handle. name_to_handle_at(2)."""
    buffer = ctypes.create_string_buffer(struct.pack("=Ii128x", 128, 0), 136)
    mount = ctypes.c_int()
    _checked(
        _libc.name_to_handle_at(
            _AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount), 0
        )
    )
    return buffer.raw


def open_by_handle(directory: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2)."""
    return _checked(_libc.open_by_handle_at(directory, handle, flags))


def link_empty(fd: int, name: str) -> None:
    """linkat(2) with AT_EMPTY_PATH."""
    _checked(_libc.linkat(fd, b"", _AT_FDCWD, os.fsencode(name), _AT_EMPTY_PATH))


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    _checked(_libc.syncfs(fd))


def inotify(path: str, mask: int) -> int:
    """A new fd that reports what happens to a path. inotify(7)."""
    fd = _checked(_libc.inotify_init1(IN_NONBLOCK))
    try:
        _checked(_libc.inotify_add_watch(fd, os.fsencode(path), mask))
    except OSError:
        os.close(fd)
        raise
    return fd


def events(fd: int) -> list[tuple[int, str]]:
    """The mask and the name of each event."""
    found = []
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        return []
    at = 0
    while at < len(data):
        _, mask, _, length = struct.unpack_from("=iIII", data, at)
        name = data[at + 16 : at + 16 + length].rstrip(b"\0").decode()
        found.append((mask, name))
        at += 16 + length
    return found
