"""Directories that are being read."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls

if TYPE_CHECKING:
    from inaccfs.fuse.inodes import Node

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_to_read(dir_fd: int, name: str = ".", *, noatime: bool) -> int:
    """An fd to read a directory with, by its *name* in another, or that one itself.

    With *noatime* its time of access stays, if it is the daemon's to say so; see
    O_NOATIME of open(2). *dir_fd* may be O_PATH.
    """
    if noatime:
        try:
            return os.open(name, _FLAGS | os.O_NOATIME, dir_fd=dir_fd)
        except PermissionError:
            # Somebody else's, in a directory that a plain user has wrapped.
            pass
    return os.open(name, _FLAGS, dir_fd=dir_fd)


class OpenDirectory:
    """A directory that is being read; positions in it are the backing's own.

    What has been read from the backing and not yet taken by the kernel is kept: a
    hugetlbfs counts positions anew when names go, so it must not be asked to seek
    unless the reader does.
    """

    def __init__(self, node: Node, fd: int) -> None:
        self.node: Final = node
        self._fd = fd
        self._position = 0
        self._entries: deque[syscalls.DirectoryEntry] = deque()

    def seek(self, position: int) -> None:
        """Go to *position*, which is 0 or the offset of an entry taken before."""
        if position != self._position:
            self._entries.clear()
            self._position = os.lseek(self._fd, position, os.SEEK_SET)

    def peek(self) -> syscalls.DirectoryEntry | None:
        """The entry at the position; None at the end."""
        if not self._entries:
            self._entries.extend(syscalls.getdents(self._fd))
        return self._entries[0] if self._entries else None

    def take(self) -> None:
        """Go past the entry at the position."""
        self._position = self._entries.popleft().offset
