"""The daemon's fds: a reserve that callers cannot use up.

Each open file and each directory that is being read costs one fd. The daemon needs some
for itself: to reach directories, to accept peers, to keep a file whose name is removed.
The kernel gives the lowest free number, so an fd with one of the last numbers shows
that only the reserve is left.
"""

from __future__ import annotations

import resource
from typing import Final

from inaccfs.errors import MountError

# For 256 directories, as many peers, and files without a name that are not open.
_RESERVE: Final = 1024

# The limit is read at least once in so many opens, because prlimit(1) may change it. So
# at most so many fds of the reserve are taken before the change is noticed.
_BETWEEN_LOOKS: Final = 64

# The daemon's own fds, before the first file is opened.
_LEAST: Final = 64

_NR_OPEN: Final = "/proc/sys/fs/nr_open"


def raise_limit() -> None:
    """Raise RLIMIT_NOFILE as far as possible: each open file costs an fd.

    That is to the hard limit, or with CAP_SYS_RESOURCE to the kernel's fs.nr_open.

    Raises:
        MountError: it is not enough for a daemon.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with open(_NR_OPEN, encoding="ascii") as file:
            most = max(hard, int(file.read()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        # Not permitted, for which Python may also raise a ValueError.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if hard < _LEAST:
            raise MountError(
                f"the daemon may have {hard} open files only, and needs {_LEAST} for "
                "itself: raise the hard limit (ulimit -Hn)"
            ) from None


class Reserve:
    """Tells which fds are in the reserve.

    It remembers a number that is not in the reserve, because prlimit(2) takes as long
    as the rest of an open's bookkeeping.
    """

    __slots__ = ("_free", "_look_after")

    def __init__(self) -> None:
        # No number up to this was in the reserve when the limit was last looked up.
        self._free = -1
        # After how many more opens the limit is read again.
        self._look_after = 0

    def has(self, fd: int, share: int = 1) -> bool:
        """Whether *fd* is in the reserve. With a *share* of 2, in its last half."""
        if fd <= self._free and self._look_after:
            self._look_after -= 1
            return False
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        reserve = min(_RESERVE, limit // 4)
        self._look_after = _BETWEEN_LOOKS
        self._free = min(fd, limit - reserve - 1)
        return fd >= limit - reserve // share
