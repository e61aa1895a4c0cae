"""The mount's files as the control socket has them; see `inaccfs.fuse.files`."""

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
        """How many opens of it there are, without weak ones."""


class OpenFile(Listed, Protocol):
    """A file of the mount that stays open until `close`, which is one of its opens."""

    def reopen_backing(self) -> int:
        """A new fd of the backing memory itself."""

    def weaken(self) -> None:
        """Keep the file open no more, but its memory; see getfd."""

    def again(self) -> OpenFile:
        """Open the same file once more, to be closed by itself; weak if this is."""

    def close(self) -> None:
        """Close it."""


class Files(Protocol):
    """The mount's files as peers name them. Methods raise `OSError` for the peer."""

    def open_path(self, path: str) -> OpenFile:
        """The regular file at *path*, which begins at the mount's root."""

    def open_fd(self, fd: int) -> OpenFile:
        """The file that *fd* has open; *fd* stays open."""

    async def create(
        self, label: str, size: int, uid: int, gid: int
    ) -> tuple[int, OpenFile]:
        """A file without a name, and an fd of it on the mount."""

    def all(self) -> Iterator[Listed]:
        """All that are open, or whose pages have been fetched.

        Files may come and go meanwhile. A file may be used only until the next one is
        asked for.
        """

    def name(self, ino: int) -> str:
        """What people call inode *ino*, open or not; empty if there is none."""

    def at(self, ino: int) -> AbstractContextManager[Listed | None]:
        """The same of inode *ino*, for a with block; None if it is not there."""
