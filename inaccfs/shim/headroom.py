"""How much memory the daemon may still take, by the memory cgroups that it is in.

At the limit of a memory cgroup an allocation does not fail: the OOM killer ends a
process of the cgroup, and the daemon is one. So what would exceed the limit is refused
with ENOMEM. Whether it would is not certain: others take memory meanwhile, and what can
be swapped out counts as used. So near the limit memory is allocated by a worker, which
the OOM killer takes first, and whose end is ENOMEM to the caller. (Memory of a tmpfs is
charged to the process that allocates it, see cgroup-v2.rst, and a worker is in the same
cgroups as the daemon.)
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

# Another look is due after so many bytes, for others take memory, too. A look takes a
# tenth of a millisecond, and the kernel needs more than five to clear so much.
_BETWEEN_LOOKS: Final = 32 << 20

# What files leave of a limit to everything else, or a sixteenth of it, if that is less.
_RESERVE: Final = 8 << 20

_UNLIMITED: Final = 1 << 62

# Of version 2 and of version 1: the limit, and the memory in use.
_FILES: Final = {
    "cgroup2": ("memory.max", "memory.current"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


class Headroom:
    """How much may be allocated without risk. In bytes."""

    def __init__(self, proc: str = "") -> None:
        """*proc* is the kernel's directory of a process; without it, no limits."""
        self._proc: Final = proc
        # So much may be allocated before there is another look.
        self.left = 0
        # Hierarchies stay where they are mounted; the daemon may be moved in them.
        self._tops: Final = self._find_tops()

    def allows(self, length: int) -> bool:
        """Whether *length* bytes may be allocated here; if so, they are counted."""
        if length > self.left and not self.look(length):
            return False
        self.left -= length
        return True

    def look(self, length: int) -> bool:
        """Look again; whether *left* is *length* or more now."""
        # Others take memory meanwhile, and the daemon itself, for what it remembers.
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

        Less than nothing, where the reserve is being used.
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
                # Else our cgroup is outside of the hierarchy mounted here.
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
    """How much of a cgroup's memory is cache of files, but for those of a tmpfs."""
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
