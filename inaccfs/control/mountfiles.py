"""The interface to the mount's files for the control socket: `inaccfs.fuse.files`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from inaccfs.shim.file import InaccessibleFile


class Listed(Protocol):
    """A file that is open, or whose pages have been fetched."""

    @property
    def file(self) -> InaccessibleFile:
        """Its state in the shim."""

    @property
    def ino(self) -> int:
        """The inode number."""

    @property
    def name(self) -> str:
        """Its path from the mount's root, or a label if it has none."""

    @property
    def opens(self) -> int:
        """The number of opens, without weak ones."""


class OpenFile(Listed, Protocol):
    """A file of the mount that stays open until `close`, which is one of its opens."""

    def reopen_backing(self) -> int:
        """A new fd of the backing memory itself."""

    def weaken(self) -> None:
        """Keep only the file's memory from now on, and not the file open; see getfd."""

    def again(self) -> OpenFile:
        """Open the same file once more, weak if this is. Close it, too."""

    def close(self) -> None:
        """Close it."""


class Files(Protocol):
    """The mount's files, by name. Methods raise `OSError` for the peer."""

    def open_path(self, path: str) -> OpenFile:
        """The regular file at *path*, which begins at the mount's root."""

    def open_fd(self, fd: int) -> OpenFile:
        """The file that *fd* has open; *fd* stays open."""

    async def create(
        self, label: str, size: int, uid: int, gid: int
    ) -> tuple[int, OpenFile]:
        """Make a file without a name; returns it, and an fd of it on the mount."""

    def all(self) -> Iterator[Listed]:
        """All files that are open, or whose pages have been fetched.

        Files may come and go meanwhile. Use each file only until you ask for the next
        one.
        """

    def name(self, ino: int) -> str:
        """The name of inode *ino* for people, open or not; empty if there is none."""

    def at(self, ino: int) -> AbstractContextManager[Listed | None]:
        """The same for inode *ino*, during a with block; None if it is not there."""
