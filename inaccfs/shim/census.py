"""How many files there are below a directory, and how much memory they have.

Counting many files takes long, and any user may ask for it at any time. So there is
one walk at a time, in a thread that nothing else uses. Calls that come while it is
under way share the next walk, which sees every change that was made before they came.
"""

from __future__ import annotations

import os
import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from inaccfs.backing.root import open_to_read
from inaccfs.shim.loop import TRIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# While so many calls wait for a walk, others get the result of the last one. A call may
# be a request of the kernel's, and the kernel has only so many under way.
_MOST_WAITING: Final = 8

_PASS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# The file was deleted, or a daemon without root may not look at it.
_PASSED_OVER: Final = (FileNotFoundError, NotADirectoryError, PermissionError)


class Totals(NamedTuple):
    """The result of a walk."""

    # Regular files, each counted once, however many names it has.
    files: int
    # In bytes.
    allocated: int


class Census:
    """The walks of one directory, shared by all calls that want their result."""

    def __init__(self, count: Callable[[], Totals]) -> None:
        """*count* walks. It blocks, and may call `trio.from_thread.check_cancelled`."""
        self._count: Final = count
        # Held during a walk. Calls get it in order of arrival.
        self._lock: Final = trio.Lock()
        self._thread: Final = trio.CapacityLimiter(1)
        # How many walks have begun, and the number of the last one that has ended.
        self._begun = 0
        self._ended = 0
        self._found: Totals | None = None
        self._waiting = 0

    async def take(self) -> Totals:
        """The result of a walk that begins after this call, unless too many calls wait.

        Raises:
            OSError: of `count`.
        """
        if self._waiting >= _MOST_WAITING and self._found is not None:
            return self._found
        wanted = self._begun + 1
        self._waiting += 1
        try:
            async with self._lock:
                if self._found is None or self._ended < wanted:
                    self._begun += 1
                    self._found = await TRIO.in_thread(
                        self._count, limiter=self._thread
                    )
                    self._ended = self._begun
                return self._found
        finally:
            self._waiting -= 1


def count(root: int, check: Callable[[], None] = lambda: None) -> Totals:
    """Walk the tree below the directory *root*, an fd. Calls *check* now and then.

    Files that the daemon may not look at are not counted.

    Raises:
        OSError: for want of fds or memory.
    """
    files = allocated = 0
    linked: set[int] = set()
    with closing(_Walk(root)) as walk:
        for found in walk.below():
            check()
            if not stat.S_ISREG(found.st_mode) or found.st_ino in linked:
                continue
            if found.st_nlink > 1:
                linked.add(found.st_ino)
            files += 1
            allocated += found.st_blocks * 512
    return Totals(files, allocated)


class _Level(NamedTuple):
    """A directory on the way from the root to where a walk is."""

    name: str
    # st_dev and st_ino.
    identity: tuple[int, int]
    # The names that are still to be looked at.
    names: list[str]


class _Walk:
    """A walk of a tree, with two fds at most, and neither paths nor recursion.

    A tree can be deeper than there is room for any of these.
    """

    def __init__(self, root: int) -> None:
        self._root: Final = root
        # Where the walk is.
        self._fd = os.open(".", _PASS, dir_fd=root)
        self._levels: list[_Level] = []

    def close(self) -> None:
        os.close(self._fd)

    def below(self) -> Iterator[os.stat_result]:
        """The attributes of all files below the root, on the same file system."""
        device, _ = _identity(self._fd)
        with suppress(*_PASSED_OVER):
            self._enter(".")
        while self._levels:
            names = self._levels[-1].names
            if not names:
                self._leave()
                continue
            name = names.pop()
            with suppress(*_PASSED_OVER):
                found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                # Another file system is mounted there, which may hang.
                if found.st_dev == device:
                    if stat.S_ISDIR(found.st_mode):
                        self._enter(name)
                    yield found

    def _enter(self, name: str) -> None:
        # No user reads the directory, so its atime must not change.
        fd = open_to_read(self._fd, name, noatime=True)
        try:
            self._levels.append(_Level(name, _identity(fd), os.listdir(fd)))
        except BaseException:
            os.close(fd)
            raise
        self._stand_on(fd)

    def _leave(self) -> None:
        self._levels.pop()
        if not self._levels or self._step("..", self._levels[-1]):
            return
        # The directory was moved, or may not be searched any more. Go down again from
        # the root, as far as each level is still the same directory.
        self._stand_on(os.open(".", _PASS, dir_fd=self._root))
        for depth, level in enumerate(self._levels):
            if not self._step(level.name, level):
                del self._levels[depth:]
                break

    def _step(self, name: str, level: _Level) -> bool:
        """Go from here to *name*, if that is the directory of *level*."""
        try:
            fd = os.open(name, _PASS, dir_fd=self._fd)
        except _PASSED_OVER:
            return False
        if _identity(fd) != level.identity:
            os.close(fd)
            return False
        self._stand_on(fd)
        return True

    def _stand_on(self, fd: int) -> None:
        os.close(self._fd)
        self._fd = fd


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
