"""What an actor needs, from the standard library only, so that it starts quickly."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PUNCH: Final = 3
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = [
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), without a retry after EINTR."""
    if _libc.fallocate64(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def name_of(exc: OSError) -> str:
    """The name of an errno."""
    return errno.errorcode.get(exc.errno or 0, str(exc))


def outcome(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """ "ok", or the name of the errno that a call fails with."""
    try:
        call(*args, **kwargs)
    except OSError as exc:
        return name_of(exc)
    return "ok"
