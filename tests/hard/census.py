"""Counts the resources of a mount, so that a test can assert that nothing is left.

`Census` counts the resources of a running daemon, `Ground` those outside it. A test
compares a census from before with one from after; at the end of each hard test its
ground must be empty (see conftest.py).
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# By then background closes are done, and idle threads have ended, of any daemon.
_SETTLED_SECONDS: Final = 60.0

_CONNECTIONS: Final = "/sys/fs/fuse/connections"


def settle(question: Callable[[], object], answer: object, what: str) -> None:
    """Ask until *question* has *answer*, because background closes take time.

    A failure shows both, so the difference shows what is left.
    """
    deadline = time.monotonic() + _SETTLED_SECONDS
    while (found := question()) != answer:
        assert time.monotonic() < deadline, f"{what}: {found}, wanted {answer}"
        time.sleep(0.02)


def _fds(pid: int | str) -> Counter[str]:
    """How many fds of each kind a process has."""
    kinds: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            # "socket:[123]", "/memfd:x (deleted)", "anon_inode:[io_uring]"
            kinds[re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{fd}"))] += 1
    return kinds


def children(pid: int) -> list[int]:
    """The processes that a process has forked."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            words = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            found += map(int, words)
    return found


def _descendants(pid: int) -> list[int]:
    below = children(pid)
    return below + [one for child in below for one in _descendants(child)]


@dataclass(frozen=True)
class Census:
    """The resources of a daemon and its mount at one moment."""

    # By the file that they refer to, with numbers written as N.
    fds: dict[str, int]
    # Of the daemon itself. Idle worker threads end after ten seconds: see lean_daemon.
    threads: int
    # Below the daemon: its helpers and their workers.
    processes: int
    # Of the file system, in bytes and in files.
    memory: int
    inodes: int
    # Lines of mountinfo that name the mountpoint.
    mounts: int

    @classmethod
    def of(cls, pid: int, path: Path) -> Census:
        """Count. Only root can read /proc of an undumpable daemon."""
        room = os.statvfs(path)
        return cls(
            fds=dict(sorted(_fds(pid).items())),
            threads=len(os.listdir(f"/proc/{pid}/task")),
            processes=len(_descendants(pid)),
            memory=(room.f_blocks - room.f_bfree) * room.f_frsize,
            inodes=room.f_files - room.f_ffree,
            mounts=len(_mounts_below(path)),
        )

    @classmethod
    def calm(cls, pid: int, path: Path) -> Census:
        """Count when nothing is being closed any more."""
        last = None
        while (found := cls.of(pid, path)) != last:
            last = found
            time.sleep(0.1)
        return found

    def more_than(self, before: Census) -> dict[str, int]:
        """The resources that were not there before, by kind."""
        fds = Counter(self.fds) - Counter(before.fds)
        kinds = ("threads", "processes", "memory", "inodes", "mounts")
        more = Counter(
            {kind: getattr(self, kind) - getattr(before, kind) for kind in kinds}
        )
        return {kind: count for kind, count in (fds | more).items() if count > 0}


def _mounts_below(path: Path) -> list[str]:
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        points = [line.split()[4] for line in lines]
    return [point for point in points if f"{point}/".startswith(f"{path}/")]


def _sockets_below(path: Path) -> list[str]:
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as lines:
        names = [line.split()[-1] for line in lines]
    return [name for name in names if name.startswith(f"{path}/")]


def _connection(number: str) -> int | None:
    """The inode of the control directory of a FUSE connection; None if there is none.

    There is none, either, where nobody has mounted fusectl.
    """
    try:
        return os.stat(f"{_CONNECTIONS}/{number}").st_ino
    except FileNotFoundError:
        return None


class Ground:
    """A directory, and a mark on processes, of which a test must leave nothing.

    The mark is an environment variable, which a daemon, its helpers and their workers
    always inherit.
    """

    MARK: Final = "INACCFS_HARD_GROUND"

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._own_fds = _fds("self")
        # The inodes of FUSE connections, by number. Numbers are those of the mounts'
        # devices, and the kernel uses them again for mounts of other tests; no two
        # connections have one inode number.
        self._connections: dict[str, int] = {}

    def remember(self, path: Path) -> None:
        """Note the FUSE connection of a mount, which must end with the mount."""
        # A mount that does not answer shows itself in mountinfo only.
        with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
            for line in lines:
                words = line.split()
                if words[4] == str(path):
                    number = words[2].partition(":")[2]
                    if (inode := _connection(number)) is not None:
                        self._connections[number] = inode

    def processes(self) -> list[tuple[int, str]]:
        """The other processes with our mark, by pid and command line."""
        mark = f"{self.MARK}={self.path}\0".encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdecimal() or int(entry) == os.getpid():
                continue
            # It may end meanwhile; and a process that root may not read is not ours.
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if mark in Path(f"/proc/{entry}/environ").read_bytes() + b"\0":
                    words = Path(f"/proc/{entry}/cmdline").read_bytes()
                    text = words.replace(b"\0", b" ").decode(errors="replace")
                    found.append((int(entry), text))
        return found

    def left(self) -> dict[str, object]:
        """Everything that is still there, by kind."""
        found: dict[str, object] = {
            "processes": self.processes(),
            "mounts": _mounts_below(self.path),
            "sockets": _sockets_below(self.path),
            "files": sorted(os.listdir(self.path)),
            "connections": [
                number
                for number, inode in self._connections.items()
                if _connection(number) == inode
            ],
            "fds of the test": dict(_fds("self") - self._own_fds),
        }
        return {kind: what for kind, what in found.items() if what}

    def assert_bare(self) -> None:
        """Nothing is left."""
        settle(self.left, {}, "left behind")
