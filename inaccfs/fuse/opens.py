"""The open inodes, and the `InaccessibleFile` of each."""

from __future__ import annotations

import errno
import os
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.errnos import os_error
from inaccfs.fuse.nodes import can_be_let_go, let_go
from inaccfs.shim import lastclose
from inaccfs.shim.file import InaccessibleFile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from inaccfs.fuse.inodes import Inodes
    from inaccfs.fuse.nodes import Node
    from inaccfs.shim.superblock import Superblock


class Opens:
    """Opens and closes the backing files of nodes.

    Methods raise `OSError` with the errno that the caller of the system call gets.
    """

    def __init__(self, inodes: Inodes, superblock: Superblock) -> None:
        self._inodes: Final = inodes
        self._superblock: Final = superblock
        # Open files without a name, if the name was removed through the mount.
        self._nameless: Final[set[Node]] = set()
        # The number of opens of a node that do not count as users: see getfd. Few nodes
        # have any.
        self._weak: Final[Counter[Node]] = Counter()
        # Runs a task in the background. The channel sets it while it serves.
        self.start: Callable[[Callable[[], Awaitable[None]]], None] | None = None

    @property
    def nameless(self) -> int:
        """How many files are open and have no name. O(1)."""
        return len(self._nameless)

    def users(self, node: Node) -> int:
        """The number of opens, without weak ones."""
        return node.opens - self._weak[node]

    def count_weak(self, node: Node, more: int) -> None:
        """One open has become weak, or has been closed: *more* is 1 or -1."""
        self._weak[node] += more
        if not self._weak[node]:
            del self._weak[node]

    def open(self, node: Node, flags: int) -> InaccessibleFile:
        """OPEN, without the truncation for O_TRUNC.

        Raises:
            OSError: EINVAL for O_DIRECT; EMFILE, no fds are left.
        """
        refuse_direct(flags)
        return self.open_node(node, writing=flags & os.O_ACCMODE != os.O_RDONLY)

    def open_node(
        self, node: Node, *, writing: bool, of_a_caller: bool = True
    ) -> InaccessibleFile:
        """As `open`. Unless *of_a_caller*, the fd may be of the daemon's reserve."""
        if node.file is None or (writing and not node.file.writable):
            with self._inodes.magic_path(node) as path:
                fd, writable = _open_backing(path, writing=writing)
            if of_a_caller:
                fd = self._inodes.claim(fd)
            self._use(node, fd, writable=writable)
        if not node.opens and node.parent is None and not os.fstat(node.fd).st_nlink:
            self._nameless.add(node)
        node.opens += 1
        assert node.file is not None
        return node.file

    def _use(self, node: Node, fd: int, *, writable: bool) -> None:
        """Make *fd* the fd of the node, in place of its present one."""
        if node.fd >= 0:
            os.close(node.fd)
        node.fd = fd
        if node.file is None:
            node.file = InaccessibleFile(fd, self._superblock, writable=writable)
        else:
            node.file.reopened(fd, writable=writable)

    def open_new(self, node: Node, fd: int) -> None:
        """The first open of a new file, with its *fd*."""
        self._use(node, fd, writable=True)
        node.opens += 1
        if node.parent is None:
            self._nameless.add(node)

    def reopen(self, node: Node) -> InaccessibleFile:
        """The file of an open node whose fd `Inodes.make_room` has closed.

        Raises:
            OSError: EBADF, it is not open; EMFILE, no fds are left.
        """
        if not node.opens:
            raise os_error(errno.EBADF)
        file = self.open_node(node, writing=True)
        node.opens -= 1
        return file

    def release(self, node: Node) -> None:
        """RELEASE: end one open. The fd of a file without a name stays until FORGET."""
        node.opens -= 1
        if not node.opens:
            self._nameless.discard(node)
        elif node in self._nameless and not self.users(node):
            self._abandon(node)
        if node.opens == 0 and node.parent is not None and not node.must_stay:
            # The name leads here again: the node needs no fd.
            fd, file, node.fd, node.file = node.fd, node.file, -1, None
            if fd >= 0:
                self._inodes.close_fd(fd, file)
        self._inodes.drop_if_unused(node)

    def _abandon(self, node: Node) -> None:
        """Handle that all users of a file without a name have closed it."""
        file = node.file
        if file is not None and not file.pages.abandoned:
            file.pages.abandoned = True
            if self.start is not None:
                self.start(partial(lastclose.send_events, file, file.count))

    @contextmanager
    def hold(self, node: Node) -> Iterator[InaccessibleFile]:
        """The node's file, open for the length of a with block."""
        was_let_go = node.opens > 0 and node.file is None
        file = self.open_node(node, writing=True, of_a_caller=False)
        node.borrowed += 1
        try:
            yield file
        finally:
            node.borrowed -= 1
            self.release(node)
            if was_let_go and can_be_let_go(node):
                let_go(node)

    def lost_name(self, node: Node) -> None:
        """Handle that the last name of a regular file was removed."""
        if node.opens:
            self._nameless.add(node)

    def got_name(self, node: Node) -> None:
        """Handle that a file without a name got one (O_TMPFILE, and then link(2))."""
        self._nameless.discard(node)


def refuse_direct(flags: int) -> None:
    """Raise EINVAL for O_DIRECT.

    Memory has no direct I/O, and the file that refuses mmap cannot be opened with it.
    """
    if flags & os.O_DIRECT:
        raise os_error(errno.EINVAL)


def _open_backing(path: str, *, writing: bool) -> tuple[int, bool]:
    """An fd of a backing file, and whether it can be used for more than stat.

    The daemon of an unprivileged mount may have no permission to write.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK), True
    except PermissionError:
        if writing:
            raise
        return os.open(path, os.O_PATH | os.O_CLOEXEC), False
