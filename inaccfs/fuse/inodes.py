"""The inodes that the kernel knows of, and how each can be reached in the backing.

A `Node` is an inode while the kernel holds a reference to it (LOOKUP minus FORGET); or,
where names change through the mount only, as long as it has a name, so that a file
handle finds it. It has no fd as long as a name leads to it, so that a hundred thousand
names cost no fds; it gets one when it is opened, and keeps one when its last name goes.

Invariants:
- a node can always be reached: by `fd`, or by a name in a directory that can be;
- a directory stays in the table while some node names it as parent;
- nodeid and st_ino are the backing's inode number, but for the root, which is 1.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.fuse import descriptors
from inaccfs.fuse.wire import ROOT_ID, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.backing.root import Backing
    from inaccfs.shim.file import InaccessibleFile

log = logging.getLogger(__name__)

# In seconds. What only the mount can change may be remembered; a directory that
# others can change too may not, and neither may the attributes of a file: memory can
# be allocated behind the kernel's back.
_FOREVER: Final = 86_400
# Long enough to spare a GETATTR of each directory on the way to a name; short enough
# for a mountpoint to answer ENOTCONN soon when its daemon has died.
_DIRECTORY_ATTRIBUTES: Final = 1

_DIRECTORY_FDS: Final = 256
PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def os_error(number: int) -> OSError:
    """The `OSError` of an errno."""
    return OSError(number, os.strerror(number))


CloseFd = Callable[[int, "InaccessibleFile | None"], None]
"""Closes an fd of an inode that may go with it, and what was fetched of its file."""


def close_now(fd: int, file: InaccessibleFile | None) -> None:
    """Close an fd, and let go of what was fetched of its file, if it is one.

    Never raises: nobody could do anything about it, and close(2) closes whatever it
    says.
    """
    try:
        if file is not None:
            file.close()
    except Exception:
        log.exception("bug in letting go of a file's pages")
    try:
        os.close(fd)
    except OSError as exc:
        log.warning("closing a file: %s", exc.strerror)


class Node:
    """One inode. Only `Inodes` and `Namespace` change its fields."""

    __slots__ = (
        "children",
        "fd",
        "file",
        "generation",
        "held",
        "ino",
        "is_dir",
        "links",
        "lookups",
        "name",
        "opens",
        "parent",
    )

    def __init__(self, ino: int, generation: int, *, is_dir: bool) -> None:
        self.ino: Final = ino
        # Tells two inodes apart that had the same number one after the other.
        self.generation: Final = generation
        self.is_dir: Final = is_dir
        # One name that leads here; None when none is known, and then fd >= 0.
        self.parent: Node | None = None
        self.name = b""
        # Further names: hard links that the kernel has looked up.
        self.links: set[tuple[Node, bytes]] | None = None
        # How often the kernel has been told of this node and has not forgotten it.
        self.lookups = 0
        # How many nodes have this directory in `parent` or `links`.
        self.children = 0
        # An fd of the inode, for anything (file is set) or only as a path; or -1.
        self.fd = -1
        # How many opens there are, and of how many `file` must stay as it is.
        self.opens = 0
        self.held = 0
        # Set while it is open, and for as long as `is_pinned`. Of an open file that is
        # not held it may be missing for want of fds: see Namespace.make_room().
        self.file: InaccessibleFile | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether pages have been fetched, which stay where they are, or poisoned."""
        return self.file is not None and not self.file.pages.plain


class Inodes:
    """The table of nodes of one backing directory.

    Methods raise `OSError` with the errno that the caller shall see.
    """

    def __init__(
        self, backing: Backing, close_fd: CloseFd, *, keeps_nodes: bool = False
    ) -> None:
        """*keeps_nodes*: a node stays until its last name goes, forgotten or not.

        This is what file handles need, and for a private backing only: elsewhere names
        go, too, that nobody tells of.
        """
        self.backing: Final = backing
        self.keeps_nodes: Final = keeps_nodes
        # For an fd whose inode may have gone: the memory goes with it.
        self._close_fd = close_fd
        # Not from 0: a file handle of an earlier mount must not lead anywhere here. The
        # kernel has 32 bits for it.
        self._generations = itertools.count(1 + secrets.randbits(31))
        # The kernel wants it so.
        self.root: Final = Node(ROOT_ID, 0, is_dir=True)
        self.root.fd = backing.root
        root = os.fstat(backing.root)
        self._device = root.st_dev
        self.nodes: Final[dict[int, Node]] = {ROOT_ID: self.root}
        # Directories with an fd that can be opened again, least recently used first.
        self._open_dirs: OrderedDict[int, Node] = OrderedDict()
        self.entry_valid: Final = _FOREVER if backing.private else 0

    def close(self) -> None:
        """Close every fd of the namespace but the backing's root."""
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
        """What the kernel is told of a node; counts as one lookup."""
        node.lookups += 1
        return Entry(
            node.ino,
            node.generation,
            attributes,
            self.entry_valid,
            self.attr_valid(node),
        )

    def forget(self, nodeid: int, nlookup: int) -> None:
        """The kernel has dropped *nlookup* references. Unknown nodes are ignored."""
        node = self.nodes.get(nodeid)
        if node is None or node is self.root:
            return
        node.lookups -= nlookup
        self._drop_if_unused(node)

    def _drop_if_unused(self, node: Node) -> None:
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
            if node.is_pinned and os.fstat(node.fd).st_nlink:
                # The kernel has forgotten the inode; the file is still there, if only
                # by a name that nobody has looked up here.
                continue
            del self.nodes[node.ino]
            self._open_dirs.pop(node.ino, None)
            if node.fd >= 0:
                fd, node.fd = node.fd, -1
                self._close_fd(fd, node.file)
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
            # The number came back for something else, behind the kernel's back. What
            # the kernel has yet to forget it will forget by number.
            lookups = node.lookups
            self._forsake(node)
            node = None
        if node is None:
            node = Node(ino, next(self._generations), is_dir=is_dir)
            node.lookups = lookups
            self.nodes[ino] = node
        # Nobody may drop it while its place in the tree is put right.
        node.lookups += 1
        self.add_name(node, parent, name)
        node.lookups -= 1
        return node

    def _forsake(self, node: Node) -> None:
        node.lookups = node.opens = node.held = node.children = 0
        if node.file is not None:
            # Else what is fetched of it would keep it.
            node.file.close()
        self._drop_if_unused(node)

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
            # A directory has one name; another one means that it was moved from
            # outside the mount.
            node.parent.children -= 1
            self._drop_if_unused(node.parent)
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
        """If *node* seems to be above its own new *parent*, that is out of date."""
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
        self._drop_if_unused(parent)

    def keep_reachable(self, node: Node, parent: Node, name: bytes) -> None:
        """Before a name goes: if it is the last known one, an fd takes its place."""
        if node.fd < 0 and self._names(node) == [(parent, name)]:
            fd = os.open(name, PATH_FLAGS, dir_fd=self.dir_fd(parent))
            # As long as the kernel knows the node: so this is a caller's. But what
            # nobody knows any more goes at once, for which there is always room.
            node.fd = self.claim(fd, 2)
        # Such an fd is the only way to the node, so it may not be closed for room.
        self._open_dirs.pop(node.ino, None)

    def unkeep(self, node: Node) -> None:
        """The name did not go after all."""
        if node.fd >= 0 and node.file is None and node.parent is not None:
            os.close(node.fd)
            node.fd = -1

    # --- fds of callers ------------------------------------------------------

    def claim(self, fd: int, share: int = 1) -> int:
        """*fd*, or another in its place: a caller's, that leaves the daemon its own.

        *share*: see `descriptors.in_reserve`.

        Raises:
            OSError: EMFILE, there are none left; *fd* is closed.
        """
        if not descriptors.in_reserve(fd, share):
            return fd
        try:
            if not self.make_room():
                raise os_error(errno.EMFILE)
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        finally:
            os.close(fd)

    def make_room(self) -> bool:
        """Close fds that are not needed now, if there are any."""
        return False

    # --- reaching the backing ------------------------------------------------

    def dir_fd(self, node: Node) -> int:
        """An fd of a directory, good until the call after the next one."""
        # Before anything is opened, so that what is opened now stays: a tree can be
        # deeper than there is room for.
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
            # Moved from outside the mount: that is no answer about a name below it.
            raise os_error(errno.ESTALE) from None
        if os.fstat(fd).st_ino != node.ino:
            os.close(fd)
            raise os_error(errno.ESTALE)
        return fd

    def attributes(self, node: Node) -> os.stat_result:
        """The backing's attributes of a node, fresh. inaccessible_getattr()."""
        if node.fd >= 0:
            return os.fstat(node.fd)
        for parent, name in self._names(node):
            try:
                found = os.stat(name, dir_fd=self.dir_fd(parent), follow_symlinks=False)
            except FileNotFoundError:
                continue
            if found.st_ino == node.ino:
                return found
        raise os_error(errno.ESTALE)

    def statx(self, node: Node) -> bytes:
        """The same as a struct statx, with the time of birth."""
        with self.path_fd(node) as fd:
            return syscalls.statx(fd)

    @contextmanager
    def path_fd(self, node: Node) -> Iterator[int]:
        """An fd of the node, if only O_PATH, for the length of a with block."""
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
        """A path that leads to the very inode, a symbolic link's included.

        It is for the calls that exist for paths only or refuse an O_PATH fd. See
        proc(5) on /proc/PID/fd.
        """
        with self.path_fd(node) as fd:
            yield f"/proc/self/fd/{fd}"
