"""The inodes that the kernel knows of, and how each can be reached in the backing.

There is a `Node` for an inode while the kernel holds a reference to it (LOOKUP minus
FORGET). Where names change through the mount only, there is one as long as the inode
has a name, so that a file handle finds it. A node has no fd while a name leads to it,
so that a hundred thousand names cost no fds. It gets one when it is opened, and keeps
one when its last name is removed.

Invariants:
- a node can always be reached: by its `fd`, or by a name in a directory that can be;
- a directory stays in the table while some node names it as parent;
- nodeid and st_ino are the backing's inode number, except for the root, which is 1.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
import stat
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.errnos import os_error
from inaccfs.fuse.descriptors import Reserve
from inaccfs.fuse.nodes import Node, can_be_let_go, close_now, let_go
from inaccfs.fuse.wire import ROOT_ID, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.backing.root import Backing
    from inaccfs.fuse.nodes import CloseFd

# In seconds. The kernel may remember names that only the mount can change. It may not
# remember names in a directory that others can change, too, nor the attributes of a
# file: a peer can allocate memory, and the kernel does not see that.
_FOREVER: Final = 86_400
# Long enough to save a GETATTR of each directory on the way to a name; short enough
# for a mountpoint to answer ENOTCONN soon after its daemon has died.
_DIRECTORY_ATTRIBUTES: Final = 1

_DIRECTORY_FDS: Final = 256
# How many files `make_room` closes at once, so that few calls have to search for them.
_LET_GO: Final = 1024
PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Inodes:
    """The table of nodes of one backing directory.

    Methods raise `OSError` with the errno that the caller of the system call gets.
    """

    def __init__(
        self, backing: Backing, close_fd: CloseFd, *, keeps_nodes: bool = False
    ) -> None:
        """*keeps_nodes*: a node stays until its last name is removed.

        File handles need this. It is for a private backing only: in a directory that
        others can change, names are removed without our knowledge.

        *close_fd* closes an fd, which may free the inode and its memory.
        """
        self.backing: Final = backing
        self.keeps_nodes: Final = keeps_nodes
        self.close_fd = close_fd
        # Starts at a random number: a file handle of an earlier mount must not be valid
        # here. The kernel has 32 bits for it.
        self._generations = itertools.count(1 + secrets.randbits(31))
        # The kernel takes it for granted that the root has this number.
        self.root: Final = Node(ROOT_ID, 0, is_dir=True)
        self.root.fd = backing.root
        root = os.fstat(backing.root)
        self._device = root.st_dev
        self.nodes: Final[dict[int, Node]] = {ROOT_ID: self.root}
        # Directories with an fd that can be opened again, least recently used first.
        self._open_dirs: OrderedDict[int, Node] = OrderedDict()
        self.entry_valid: Final = _FOREVER if backing.private else 0
        self._reserve: Final = Reserve()

    def close(self) -> None:
        """Close every fd of the namespace except the backing's root."""
        for node in self.nodes.values():
            if node is not self.root and node.fd >= 0:
                close_now(node.fd, node.file)
        self.nodes.clear()

    # --- what the kernel knows -----------------------------------------------

    def __getitem__(self, nodeid: int) -> Node:
        """The node that the kernel means.

        Raises:
            OSError: ESTALE, when there is none.
        """
        try:
            return self.nodes[nodeid]
        except KeyError:
            raise os_error(errno.ESTALE) from None

    def attr_valid(self, node: Node) -> int:
        """For how many seconds the kernel may remember the node's attributes."""
        return min(self.entry_valid, _DIRECTORY_ATTRIBUTES) if node.is_dir else 0

    def entry(self, node: Node, attributes: os.stat_result) -> Entry:
        """The node in the form of a reply to the kernel; counts as one lookup."""
        node.lookups += 1
        return Entry(
            node.ino,
            node.generation,
            attributes,
            self.entry_valid,
            self.attr_valid(node),
        )

    def entry_at(self, parent: Node, name: bytes, attributes: os.stat_result) -> Entry:
        """`entry` of a name that has just been seen in the backing."""
        return self.entry(self.node_at(parent, name, attributes), attributes)

    def forget(self, nodeid: int, nlookup: int) -> None:
        """The kernel has dropped *nlookup* references. Unknown nodes are ignored."""
        node = self.nodes.get(nodeid)
        if node is None or node is self.root:
            return
        node.lookups -= nlookup
        self.drop_if_unused(node)

    def drop_if_unused(self, node: Node) -> None:
        # A loop and not a recursion: a forgotten leaf can take a deep tree with it.
        candidates = [node]
        while candidates:
            node = candidates.pop()
            if node.lookups > 0 or node.opens or node.children:
                continue
            if node is self.root or self.nodes.get(node.ino) is not node:
                continue
            if self.keeps_nodes and node.parent is not None:
                continue
            if node.must_stay and os.fstat(node.fd).st_nlink:
                # The kernel has forgotten the inode, but the file still exists, perhaps
                # by a name that was not looked up here.
                continue
            del self.nodes[node.ino]
            self._open_dirs.pop(node.ino, None)
            if node.fd >= 0:
                fd, node.fd = node.fd, -1
                self.close_fd(fd, node.file)
            for parent, _ in self._names(node):
                parent.children -= 1
                candidates.append(parent)
            node.parent, node.name, node.links = None, b"", None

    def node_at(self, parent: Node, name: bytes, attributes: os.stat_result) -> Node:
        """The node of a name that has just been seen in the backing."""
        if attributes.st_dev != self._device:
            # Inode numbers of another file system would collide with ours.
            raise os_error(errno.EXDEV)
        ino = attributes.st_ino
        node = self.nodes.get(ino)
        is_dir = stat.S_ISDIR(attributes.st_mode)
        lookups = 0
        if node is not None and node.is_dir is not is_dir:
            # The number is used again for something else, which the kernel does not
            # know yet. It will FORGET its references to the old one by number.
            lookups = node.lookups
            self._forsake(node)
            node = None
        if node is None:
            node = self.add(ino, is_dir=is_dir)
            node.lookups = lookups
        # Take a reference, so that add_name() cannot drop the node.
        node.lookups += 1
        self.add_name(node, parent, name)
        node.lookups -= 1
        return node

    def add(self, ino: int, *, is_dir: bool) -> Node:
        """A new node, which has no name yet."""
        node = self.nodes[ino] = Node(ino, next(self._generations), is_dir=is_dir)
        return node

    def _forsake(self, node: Node) -> None:
        node.lookups = node.opens = node.borrowed = node.children = 0
        if node.file is not None:
            # Otherwise its fetched pages would keep it.
            node.file.close()
        self.drop_if_unused(node)

    # --- names of a node -----------------------------------------------------

    def _names(self, node: Node) -> list[tuple[Node, bytes]]:
        names = [] if node.parent is None else [(node.parent, node.name)]
        if node.links:
            names.extend(node.links)
        return names

    def add_name(self, node: Node, parent: Node, name: bytes) -> None:
        if node.parent is None:
            node.parent, node.name = parent, name
        elif node.parent is parent and node.name == name:
            return
        elif node.is_dir:
            # A directory has one name: it was moved from outside the mount.
            node.parent.children -= 1
            self.drop_if_unused(node.parent)
            node.parent, node.name = parent, name
            self._break_cycle(node, parent)
        else:
            if node.links is None:
                node.links = set()
            if (parent, name) in node.links:
                return
            node.links.add((parent, name))
        parent.children += 1

    def _break_cycle(self, node: Node, parent: Node) -> None:
        """Remove outdated names that make *node* an ancestor of its new *parent*."""
        ancestor: Node | None = parent
        while ancestor is not None:
            if ancestor.parent is node:
                self.remove_name(ancestor, node, ancestor.name)
                return
            ancestor = ancestor.parent

    def remove_name(self, node: Node, parent: Node, name: bytes) -> None:
        if node.parent is parent and node.name == name:
            if node.links:
                node.parent, node.name = node.links.pop()
            else:
                node.parent, node.name = None, b""
        elif node.links and (parent, name) in node.links:
            node.links.remove((parent, name))
        else:
            return
        if not node.links:
            node.links = None
        parent.children -= 1
        self.drop_if_unused(parent)

    def keep_reachable(self, node: Node, parent: Node, name: bytes) -> None:
        """Before a name is removed, open an fd, if it is the last known name."""
        if node.fd < 0 and self._names(node) == [(parent, name)]:
            fd = os.open(name, PATH_FLAGS, dir_fd=self.dir_fd(parent))
            # The node keeps this fd while the kernel knows it, so it counts as a
            # caller's. But half of the reserve is for this case: a node that the kernel
            # does not know closes the fd at once.
            node.fd = self.claim(fd, 2)
        # That fd is the only way to the node, so dir_fd() must not close it.
        self._open_dirs.pop(node.ino, None)

    def unkeep(self, node: Node) -> None:
        """Undo `keep_reachable`, as the name was not removed."""
        if node.fd >= 0 and node.file is None and node.parent is not None:
            os.close(node.fd)
            node.fd = -1

    # --- fds of callers ------------------------------------------------------

    def claim(self, fd: int, share: int = 1) -> int:
        """Take *fd* for a caller: returns it, or a copy outside the daemon's reserve.

        *share*: see `Reserve.has`.

        Raises:
            OSError: EMFILE, only the reserve is left; *fd* is closed.
        """
        if not self._reserve.has(fd, share):
            return fd
        try:
            if not self.make_room():
                raise os_error(errno.EMFILE)
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        finally:
            os.close(fd)

    def make_room(self) -> bool:
        """Close fds of open files that can be reopened; False if there are none.

        A file can be reopened if it has a name that only the mount can change, and if
        we are root, who may always open it. To its callers it stays open.
        """
        if not self.keeps_nodes or os.geteuid() != 0:
            return False
        candidates = filter(can_be_let_go, self.nodes.values())
        chosen = list(itertools.islice(candidates, _LET_GO))
        for node in chosen:
            let_go(node)
        return bool(chosen)

    # --- reaching the backing ------------------------------------------------

    def dir_fd(self, node: Node) -> int:
        """An fd of a directory, valid until the call after the next one."""
        # Close old ones first, so that all fds opened below stay open: a tree can be
        # deeper than the cache.
        while len(self._open_dirs) > _DIRECTORY_FDS:
            _, oldest = self._open_dirs.popitem(last=False)
            os.close(oldest.fd)
            oldest.fd = -1
        if node.fd >= 0:
            if node.ino in self._open_dirs:
                self._open_dirs.move_to_end(node.ino)
            return node.fd
        if not node.is_dir:
            raise os_error(errno.ENOTDIR)
        # From the nearest open ancestor down, without recursion: trees are deep.
        chain = [node]
        while (parent := chain[-1].parent) is not None and parent.fd < 0:
            chain.append(parent)
        for directory in reversed(chain):
            if directory.parent is None:
                raise os_error(errno.ESTALE)
            fd = self._open_dir(directory.parent.fd, directory)
            directory.fd = fd
            self._open_dirs[directory.ino] = directory
        return node.fd

    def _open_dir(self, parent_fd: int, node: Node) -> int:
        try:
            fd = os.open(node.name, PATH_FLAGS | os.O_DIRECTORY, dir_fd=parent_fd)
        except (FileNotFoundError, NotADirectoryError):
            # It was moved from outside the mount. ENOENT would refer to the name below
            # it.
            raise os_error(errno.ESTALE) from None
        if os.fstat(fd).st_ino != node.ino:
            os.close(fd)
            raise os_error(errno.ESTALE)
        return fd

    def stat_at(self, parent: Node, name: bytes) -> os.stat_result:
        """lstat(2) of a name in the backing."""
        return os.stat(name, dir_fd=self.dir_fd(parent), follow_symlinks=False)

    def attributes(self, node: Node) -> os.stat_result:
        """The backing's attributes of a node, fresh. inaccessible_getattr()."""
        if node.fd >= 0:
            return os.fstat(node.fd)
        for parent, name in self._names(node):
            try:
                found = self.stat_at(parent, name)
            except FileNotFoundError:
                continue
            if found.st_ino == node.ino:
                return found
        raise os_error(errno.ESTALE)

    def statx(self, node: Node) -> bytes:
        """`attributes` as a struct statx, with the time of birth."""
        with self.path_fd(node) as fd:
            return syscalls.statx(fd)

    @contextmanager
    def path_fd(self, node: Node) -> Iterator[int]:
        """An fd of the node, perhaps only O_PATH, for the length of a with block."""
        if node.fd >= 0:
            yield node.fd
            return
        for parent, name in self._names(node):
            try:
                fd = os.open(name, PATH_FLAGS, dir_fd=self.dir_fd(parent))
            except FileNotFoundError:
                continue
            try:
                if os.fstat(fd).st_ino == node.ino:
                    yield fd
                    return
            finally:
                os.close(fd)
        raise os_error(errno.ESTALE)

    @contextmanager
    def magic_path(self, node: Node) -> Iterator[str]:
        """A path that leads to exactly this inode, even that of a symbolic link.

        For system calls that take only a path, or refuse an O_PATH fd. See /proc/PID/fd
        in proc(5).
        """
        with self.path_fd(node) as fd:
            yield f"/proc/self/fd/{fd}"
