"""An open backing: the root directory that the daemon reaches all files from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

_FILE_SYSTEMS: Final = {
    syscalls.TMPFS_MAGIC: "tmpfs",
    syscalls.HUGETLBFS_MAGIC: "hugetlbfs",
}

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(eq=False, slots=True)
class Backing:
    """An open directory of a memory file system, and its properties."""

    # O_RDONLY | O_DIRECTORY. All files are opened relative to it, by dir_fd.
    root: int
    # "tmpfs" or "hugetlbfs".
    fstype: str
    # In bytes: 4096 on a tmpfs, the huge page size on a hugetlbfs.
    page_size: int
    # The path of the directory; None for a private tmpfs, which has no path.
    directory: str | None
    # What the user should know before trusting this backing, one sentence each.
    warnings: list[str] = field(default_factory=list)
    # Called after the backing has been closed.
    cleanup: Callable[[], None] | None = None

    @classmethod
    def of(cls, root: int, fstype: str, directory: str | None) -> Backing:
        """The backing with that *root*, which it owns from now on."""
        # f_bsize is the page size of a tmpfs and of a hugetlbfs. st_blksize is not: a
        # tmpfs with huge=always says 2 MiB there, but still allocates small pages.
        return cls(root, fstype, os.fstatvfs(root).f_bsize, directory)

    @property
    def private(self) -> bool:
        """Whether names and attributes can change only through the mount."""
        return self.directory is None

    @property
    def description(self) -> str:
        """A few words for people."""
        if self.directory is None:
            return f"private {self.fstype}"
        return f"{self.directory} ({self.fstype})"

    def close(self) -> None:
        """Close the root. This frees the memory of a private backing."""
        os.close(self.root)
        if self.cleanup is not None:
            self.cleanup()


def open_root(path: str, *, dir_fd: int | None = None) -> int:
    """Open a directory to be the root of a backing.

    Raises:
        OSError: it cannot be opened, or is not a directory.
    """
    return os.open(path, _DIRECTORY, dir_fd=dir_fd)


def memory_file_system(fd: int) -> str | None:
    """The kind of file system of *fd*, "tmpfs" or "hugetlbfs"; None for all others."""
    return _FILE_SYSTEMS.get(syscalls.fstatfs_magic(fd))


def open_to_read(dir_fd: int, name: str = ".", *, noatime: bool) -> int:
    """Open the directory *name* in *dir_fd*, which may be O_PATH, for reading.

    *noatime* leaves its time of access alone, if the daemon may do that: O_NOATIME in
    open(2) takes the owner or CAP_FOWNER.
    """
    flags = _DIRECTORY | os.O_NOFOLLOW
    if noatime:
        try:
            return os.open(name, flags | os.O_NOATIME, dir_fd=dir_fd)
        except PermissionError:
            # Another user owns it, and a plain user has wrapped the directory above.
            pass
    return os.open(name, flags, dir_fd=dir_fd)
