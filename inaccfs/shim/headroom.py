"""How much memory the daemon may still take, by the memory cgroups that it is in.

At the limit of a memory cgroup an allocation does not fail: the OOM killer ends a
process of the cgroup, and the daemon is one. So near the limit memory is allocated by a
worker, which the OOM killer takes first, and whose end is ENOMEM to the caller. (Memory
of a tmpfs is charged to who allocates it, see memory.max in cgroup-v2.rst, and a worker
is where the daemon is.)
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Another look is due after so many bytes, for others take memory, too. A look takes a
# tenth of a millisecond, and the kernel needs more than five to clear so much.
_BETWEEN_LOOKS: Final = 32 << 20

_UNLIMITED: Final = 1 << 62

# Of version 2 and of version 1: the limit, and what is in use.
_FILES: Final = {
    "cgroup2": ("memory.max", "memory.current"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


class Headroom:
    """What may be allocated without risk. In bytes."""

    def __init__(self, proc: str = "/proc/self") -> None:
        """*proc* is where the kernel tells of a process."""
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
        free = self.free()
        # Others take memory meanwhile, and the daemon itself, for what it remembers.
        safe = free // 2
        self.left = max(length, min(safe, _BETWEEN_LOOKS)) if length <= safe else 0
        return length <= safe

    def free(self) -> int:
        """What all the limits leave. Memory that could be reclaimed is not counted."""
        try:
            return min(self._frees(), default=_UNLIMITED)
        except OSError:
            # No /proc, or a cgroup that has just gone.
            return _UNLIMITED

    def _frees(self) -> Iterator[int]:
        for kind, top, directory in self._directories():
            limit_name, usage_name = _FILES[kind]
            while True:
                limit = _number(f"{directory}/{limit_name}")
                if limit < _UNLIMITED:
                    yield max(0, limit - _number(f"{directory}/{usage_name}"))
                if directory == top:
                    break
                directory = os.path.dirname(directory)

    def _directories(self) -> Iterator[tuple[str, str, str]]:
        """Of each hierarchy: its kind, where it is mounted, and where our cgroup is."""
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
                # Else our cgroup is outside of what is mounted here.
                if top and (path + "/").startswith(root):
                    yield kind, top, f"{top}/{path[len(root) :]}".rstrip("/")

    def _find_tops(self) -> dict[str, tuple[str, str]]:
        """Of each kind: which cgroup is mounted, with a slash at its end, and where."""
        found = {}
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
    """What a file of a cgroup says; the root of a hierarchy has none of them."""
    try:
        with open(path, "rb", buffering=0) as file:
            text = file.read(64).strip()
    except OSError:
        return _UNLIMITED
    return _UNLIMITED if text == b"max" else int(text)
