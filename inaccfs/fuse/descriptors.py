"""The daemon's fds: the last ones are its own.

Each open file and each directory that is read costs one, so callers can use them up.
The daemon needs some for itself: to reach directories, to let peers in, to keep a file
whose name goes. The kernel gives the lowest number that is free, so an fd with one of
the last numbers tells that no others are left.
"""

from __future__ import annotations

import resource
from typing import Final

# For 256 directories, as many peers, and what has no name and is not open.
_RESERVE: Final = 1024

_NR_OPEN: Final = "/proc/sys/fs/nr_open"


def raise_limit() -> None:
    """Have as many fds as there can be: each file that is open costs one.

    That is the hard limit; and with CAP_SYS_RESOURCE what the kernel allows anybody.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with open(_NR_OPEN, encoding="ascii") as file:
            most = max(hard, int(file.read()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        # Not permitted; setrlimit(2) says so in Python by a ValueError, too.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def in_reserve(fd: int, share: int = 1) -> bool:
    """Whether *fd* is one of the last. With a *share* of 2 half as many are."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return fd >= limit - min(_RESERVE, limit // 4) // share
