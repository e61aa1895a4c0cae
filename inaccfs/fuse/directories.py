"""Directories that are being read."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls

if TYPE_CHECKING:
    from inaccfs.fuse.inodes import Node


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
