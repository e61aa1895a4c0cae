"""How much memory the daemon may still take in its memory cgroups.

At the limit of a memory cgroup an allocation does not fail: the OOM killer ends a
process of the cgroup, which may be the daemon. So an allocation that would exceed the
limit fails with ENOMEM. The estimate is not certain: other processes take memory
meanwhile, and memory that can be swapped out counts as used. So near the limit a worker
allocates: the OOM killer kills it first, and then the caller gets ENOMEM. (Memory of a
tmpfs is charged to the process that allocates it, see cgroup-v2.rst, and a worker is in
the same cgroups as the daemon.)
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from inaccfs import mmcalls
from inaccfs.errnos import os_error

if TYPE_CHECKING:
    from collections.abc import Iterator

# Read the limits again after so many bytes, because other processes take memory, too.
# That takes a tenth of a millisecond, and the kernel needs more than five to clear so
# much.
_BETWEEN_LOOKS: Final = 32 << 20

# The part of a limit that is not for files; a sixteenth of the limit, if that is less.
_RESERVE: Final = 8 << 20

_UNLIMITED: Final = 1 << 62

# For version 2 and for version 1: the files of the limit, and of the memory in use.
_FILES: Final = {
    "cgroup2": ("memory.max", "memory.current"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


class Headroom:
    """How much may be allocated without risk. In bytes."""

    def __init__(self, proc: str = "") -> None:
        """*proc* is the kernel's directory of a process; without it, no limits."""
        self._proc: Final = proc
        # How much may be allocated before the limits are read again.
        self.left = 0
        # Hierarchies stay mounted; but the daemon may be moved to other cgroups.
        self._tops: Final = self._find_tops()

    def allows(self, length: int) -> bool:
        """Whether *length* bytes may be allocated here; if so, they are counted."""
        if length > self.left and not self.look(length):
            return False
        self.left -= length
        return True

    def look(self, length: int) -> bool:
        """Read the limits again; returns whether *left* is at least *length* now."""
        # Other processes take memory meanwhile, and so does the daemon for its own
        # data.
        safe = self.free() // 2
        self.left = max(length, min(safe, _BETWEEN_LOOKS)) if length <= safe else 0
        return length <= safe

    def check(self, fd: int, offset: int, length: int) -> None:
        """Refuse to fill a part of a file, in bytes, if that would exceed a limit.

        Raises:
            OSError: ENOMEM.
        """
        if length <= (spare := self.spare()) or _can_swap():
            return
        if length - _present(fd, offset, length) > spare:
            raise os_error(errno.ENOMEM)

    def take(self, length: int) -> None:
        """Count *length* bytes that the daemon is about to take for its own use.

        Raises:
            OSError: ENOMEM, that would exceed a limit.
        """
        if not (self.allows(length) or length <= self.spare() or _can_swap()):
            raise os_error(errno.ENOMEM)

    def free(self) -> int:
        """How much all limits leave for files. Reclaimable memory counts as used."""
        return min((free for _, free in self._levels()), default=_UNLIMITED)

    def spare(self) -> int:
        """How much all limits leave for files. Reclaimable memory counts as free."""
        return min(
            (free + _reclaimable(directory) for directory, free in self._levels()),
            default=_UNLIMITED,
        )

    def _levels(self) -> Iterator[tuple[str, int]]:
        """Each cgroup that has a limit: its directory, and what that leaves for files.

        That is negative if the reserve is in use.
        """
        if not self._tops:
            return
        try:
            hierarchies = list(self._directories())
        except OSError:
            # No /proc.
            return
        for kind, top, directory in hierarchies:
            limit_name, usage_name = _FILES[kind]
            at = directory
            while True:
                limit = _number(f"{at}/{limit_name}")
                if limit < _UNLIMITED:
                    usage = _number(f"{at}/{usage_name}")
                    yield at, limit - usage - min(_RESERVE, limit // 16)
                if at == top:
                    break
                at = os.path.dirname(at)

    def _directories(self) -> Iterator[tuple[str, str, str]]:
        """The kind of each hierarchy, its mountpoint, and the path of our cgroup."""
        with open(f"{self._proc}/cgroup", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                number, controllers, path = line.rstrip("\n").split(":", 2)
                if number == "0":
                    kind = "cgroup2"
                elif "memory" in controllers.split(","):
                    kind = "cgroup"
                else:
                    continue
                root, top = self._tops.get(kind, ("", ""))
                # Otherwise our cgroup is outside of the hierarchy that is mounted here.
                if top and (path + "/").startswith(root):
                    yield kind, top, f"{top}/{path[len(root) :]}".rstrip("/")

    def _find_tops(self) -> dict[str, tuple[str, str]]:
        """For each kind the mounted cgroup, ending in a slash, and its mountpoint."""
        found: dict[str, tuple[str, str]] = {}
        if not self._proc:
            return found
        with suppress(OSError), open(f"{self._proc}/mountinfo", "rb") as lines:
            for line in lines:
                # See proc(5): the type comes after " - ", the options last.
                fields = line.split()
                kind = os.fsdecode(fields[fields.index(b"-") + 1])
                if kind == "cgroup2" or (
                    kind == "cgroup" and b"memory" in fields[-1].split(b",")
                ):
                    root, top = (os.fsdecode(field) for field in fields[3:5])
                    found[kind] = (root.rstrip("/") + "/", top)
        return found


def _number(path: str) -> int:
    """The number in a file of a cgroup; the root of a hierarchy has no such file."""
    try:
        with open(path, "rb", buffering=0) as file:
            text = file.read(64).strip()
    except OSError:
        return _UNLIMITED
    return _UNLIMITED if text == b"max" else int(text)


def _reclaimable(directory: str) -> int:
    """How much of a cgroup's memory is page cache, without that of tmpfs files."""
    wanted = (
        {b"total_inactive_file", b"total_active_file"}
        if os.path.exists(f"{directory}/memory.limit_in_bytes")
        else {b"inactive_file", b"active_file"}
    )
    with suppress(OSError), open(f"{directory}/memory.stat", "rb") as lines:
        return sum(int(line.split()[1]) for line in lines if line.split()[0] in wanted)
    return 0


def _can_swap() -> bool:
    with suppress(OSError), open("/proc/meminfo", "rb") as lines:
        return any(
            line.startswith(b"SwapFree:") and int(line.split()[1]) for line in lines
        )
    return False


def _present(fd: int, offset: int, length: int) -> int:
    """How many bytes of a part of a file have memory, or may have."""
    try:
        return mmcalls.pages_there(fd, offset, length) * mmap.PAGESIZE
    except OSError:
        # A hugetlbfs, or a kernel before 6.5.
        return os.fstat(fd).st_blocks * 512
