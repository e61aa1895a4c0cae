"""Open directories, and positions in them."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.backing.root import open_to_read

if TYPE_CHECKING:
    from inaccfs.fuse.inodes import Inodes
    from inaccfs.fuse.nodes import Node


class OpenDirectory:
    """A directory that is being read. Positions in it are those of the backing.

    Keeps entries that were read from the backing and that the kernel has not taken yet.
    A hugetlbfs renumbers positions when names are removed, so the backing must not seek
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
        """Move past the entry at the position."""
        self._position = self._entries.popleft().offset


class Directories:
    """The directories of a mount that are being read."""

    def __init__(self, inodes: Inodes, *, noatime: bool) -> None:
        """*noatime*: reading a directory does not change its access time."""
        self._inodes: Final = inodes
        self._noatime: Final = noatime
        # By fd, which is the file handle.
        self._open: Final[dict[int, OpenDirectory]] = {}

    def __getitem__(self, fh: int) -> OpenDirectory:
        return self._open[fh]

    def open(self, node: Node, flags: int) -> int:
        """OPENDIR: returns the file handle."""
        noatime = self._noatime or bool(flags & os.O_NOATIME)
        path_fd = self._inodes.dir_fd(node)
        fd = self._inodes.claim(open_to_read(path_fd, noatime=noatime))
        self._open[fd] = OpenDirectory(node, fd)
        return fd

    def release(self, fh: int) -> None:
        """RELEASEDIR."""
        del self._open[fh]
        os.close(fh)

    def close(self) -> None:
        """Close all of them."""
        for fd in self._open:
            os.close(fd)
        self._open.clear()
