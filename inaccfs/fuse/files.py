"""The mount's files for peers of the control socket: by path, or by an fd."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from inaccfs import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.opens import Opens
    from inaccfs.helper.tasks import Helper
    from inaccfs.shim.file import InaccessibleFile

_OPENING_WORKERS: Final = 8

_WRITABLE: Final = (os.O_RDWR, os.O_WRONLY)


class OpenFile:
    """A file that stays open until `close`."""

    def __init__(self, opens: Opens, node: Node) -> None:
        self._opens: Final = opens
        self._node: Final = node
        self._weak = False
        self.file: Final[InaccessibleFile] = opens.open_node(node, writing=True)
        node.borrowed += 1

    @property
    def ino(self) -> int:
        """The inode number, as stat(2) on the mount has it."""
        return self._node.ino

    @property
    def name(self) -> str:
        """Its name for people: a path from the mount's root, if it has one."""
        return name_of(self._node)

    @property
    def opens(self) -> int:
        """The number of opens, this one included, without weak ones."""
        return self._opens.users(self._node) + self._weak

    def reopen_backing(self) -> int:
        """A new fd of the backing file itself, for the caller to close."""
        return os.open(
            f"/proc/self/fd/{self.file.fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
        )

    def again(self) -> OpenFile:
        """Open the same file once more; it has to be closed separately."""
        made = OpenFile(self._opens, self._node)
        if self._weak:
            made.weaken()
        return made

    def weaken(self) -> None:
        """Do not count as a user of the file any more."""
        if not self._weak:
            self._weak = True
            self._opens.count_weak(self._node, 1)

    def close(self) -> None:
        """Release it. This frees its memory if it has no name and no other open."""
        self._node.borrowed -= 1
        if self._weak:
            self._opens.count_weak(self._node, -1)
        self._opens.release(self._node)


def name_of(node: Node) -> str:
    """A path from the mount's root; for a file without a name, its label or number."""
    if node.parent is None:
        label = "" if node.file is None else node.file.label
        return label or f"(deleted inode {node.ino})"
    parts: list[bytes] = []
    at: Node | None = node
    while at is not None and at.parent is not None:
        parts.append(at.name)
        at = at.parent
    path = b"/" + b"/".join(reversed(parts))
    return path.decode(errors="backslashreplace")


class Listed(NamedTuple):
    """A file that is open, or whose pages have been fetched."""

    # For people: see `name_of`.
    name: str
    # As stat(2) on the mount has it.
    ino: int
    file: InaccessibleFile
    # The number of opens, without weak ones.
    opens: int


class Files:
    """Opens files for peers. The text of an `OSError` raised here is for the peer."""

    def __init__(
        self, namespace: Namespace, mountpoint: str, device: str, helper: Helper
    ) -> None:
        """*device* is the mount's number, "major:minor", as mountinfo has it."""
        self._namespace: Final = namespace
        self._inodes: Final = namespace.inodes
        self._opens: Final = namespace.opens
        self._mountpoint: Final = mountpoint
        self._device: Final = device
        self._helper: Final = helper
        # If the mountpoint leads to a hanging file system, at most so many workers
        # hang.
        self._opening: Final = trio.CapacityLimiter(_OPENING_WORKERS)

    def open_path(self, path: str) -> OpenFile:
        """The regular file at *path*, which begins at the mount's root.

        Raises:
            OSError: there is none (ENOENT, ENOTDIR, EINVAL, ELOOP).
        """
        node = self._namespace.find(os.fsencode(path))
        try:
            return OpenFile(self._opens, node)
        except OSError:
            # The kernel may not know it, and so never forget it.
            self._inodes.forget(node.ino, 0)
            raise

    def open_fd(self, fd: int) -> OpenFile:
        """The file of *fd*, which another process has opened. *fd* stays open.

        Raises:
            OSError: EINVAL, it is not a file of this mount; EBADF, it is not open for
                writing.
        """
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            device, ino = syscalls.identity(fd)
        except OSError:
            # It is not a file of this mount: these always answer.
            device, ino = "", 0
        node = self._inodes.nodes.get(ino)
        if device != self._device or node is None or node.is_dir:
            raise OSError(errno.EINVAL, "the fd is no file of this mount")
        if flags & os.O_PATH or flags & os.O_ACCMODE not in _WRITABLE:
            raise OSError(
                errno.EBADF, "the fd is not open for writing: open the file O_RDWR"
            )
        if not node.opens:
            raise OSError(errno.EINVAL, "the fd is no regular file of this mount")
        return OpenFile(self._opens, node)

    async def create(
        self, label: str, size: int, uid: int, gid: int
    ) -> tuple[int, OpenFile]:
        """A file without a name, and an O_RDWR fd of it on the mount.

        It belongs to *uid* and *gid*. The fd is the caller's to close.

        Raises:
            OSError: the size is refused; ESTALE, the mountpoint leads elsewhere.
        """
        fd = await self._open_tmpfile()
        opened: OpenFile | None = None
        try:
            opened = self.open_fd(fd)
            opened.file.label = label
            self._namespace.chown(self._inodes[opened.ino], uid, gid)
            if size:
                await opened.file.set_size(size)
        except BaseException:
            if opened is not None:
                opened.close()
            os.close(fd)
            raise
        return fd, opened

    async def _open_tmpfile(self) -> int:
        """Open a new file through the mount; meanwhile the kernel sends us TMPFILE."""
        try:
            async with self._opening:
                return await self._helper.open_tmpfile(self._mountpoint, self._device)
        except OSError as exc:
            if exc.errno != errno.ESTALE:
                raise
            raise OSError(
                errno.ESTALE, f"{self._mountpoint} leads to another file system"
            ) from None

    def all(self) -> Iterator[Listed]:
        """The files that are open or have fetched pages.

        Use each file only until you ask for the next one: see `at`.
        """
        # A copy: the caller may let other tasks run in between.
        for ino in list(self._inodes.nodes):
            with self.at(ino) as found:
                if found is not None:
                    yield found

    def name(self, ino: int) -> str:
        """The name of an inode for people, open or not; empty if there is none."""
        node = self._inodes.nodes.get(ino)
        return "" if node is None else name_of(node)

    @contextmanager
    def at(self, ino: int) -> Iterator[Listed | None]:
        """The same for one inode, during a with block; None if it is neither."""
        node = self._inodes.nodes.get(ino)
        if node is None or (node.file is None and not node.opens):
            yield None
        elif node.file is not None:
            yield Listed(name_of(node), ino, node.file, self._opens.users(node))
        else:
            # Its fd was closed because fds ran out. Open it during the block.
            opens = node.opens
            with self._opens.hold(node) as file:
                yield Listed(name_of(node), ino, file, opens)
