"""The file system's names: what the kernel's requests do to the backing's tree.

Everything here except `wait_idle` is synchronous: a method is one step for the trio
loop. Only the handlers (handlers/, operations.py) and files.py call it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.errnos import os_error
from inaccfs.fuse.directories import Directories
from inaccfs.fuse.inodes import PATH_FLAGS, Inodes
from inaccfs.fuse.madenames import remove_made, undone
from inaccfs.fuse.nodes import close_now
from inaccfs.fuse.opens import Opens, refuse_direct

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.backing.root import Backing
    from inaccfs.fuse.nodes import CloseFd, Node
    from inaccfs.fuse.wire import Entry
    from inaccfs.shim.superblock import Superblock
    from inaccfs.syscalls import Time

# More than the kernel and the daemon keep of one name and its inode.
_NAME_BYTES: Final = 4096

_CREATE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Namespace:
    """The tree of a backing directory, and what can be done to its names.

    Methods raise `OSError` with the errno that the caller of the system call gets.
    """

    def __init__(
        self,
        backing: Backing,
        superblock: Superblock,
        close_fd: CloseFd = close_now,
        *,
        keeps_nodes: bool = False,
        noatime: bool = False,
    ) -> None:
        """*keeps_nodes* and *close_fd*: see `Inodes`; *noatime*: see `Directories`."""
        self.inodes: Final = Inodes(backing, close_fd, keeps_nodes=keeps_nodes)
        self.opens: Final = Opens(self.inodes, superblock)
        self.directories: Final = Directories(self.inodes, noatime=noatime)
        # The trace of everything that happens to the files.
        self.trace: Final = superblock.trace
        # The turns of files whose backing inode is locked by a long operation.
        self._busy: Final = superblock.busy
        # The room in the memory cgroups. Names and attributes need some, too.
        self.headroom: Final = superblock.headroom
        # How many regular files have a name; correct if only the mount changes names.
        self.named_files = 0

    def close(self) -> None:
        """Close every fd of the namespace except the backing's root."""
        self.directories.close()
        self.inodes.close()

    # --- long operations -----------------------------------------------------

    async def wait_idle(self, node: Node) -> None:
        """Wait until no long operation holds the lock of the node's backing inode.

        The calls that take that lock would otherwise stop the trio loop.
        """
        # Its file may be closed meanwhile, if fds run out, and opened again.
        while node.file is not None and node.file.turn.taken:
            await node.file.turn.wait()

    def busy_at(self, *names: tuple[Node, bytes]) -> Node | None:
        """A node that one of *names* leads to and that has a long operation."""
        if not self._busy:
            return None
        for parent, name in names:
            try:
                node = self.inodes.nodes.get(self.inodes.stat_at(parent, name).st_ino)
            except FileNotFoundError:
                continue
            if node is not None and node.file is not None and node.file.turn.taken:
                return node
        return None

    # --- looking up ----------------------------------------------------------

    def lookup(self, parent: Node, name: bytes) -> Entry:
        """LOOKUP."""
        return self.inodes.entry_at(parent, name, self.inodes.stat_at(parent, name))

    def lookup_dots(self, node: Node, name: bytes) -> Entry:
        """LOOKUP of "." or "..": the node itself, or the directory that it is in.

        Raises:
            OSError: ESTALE, it has no name. The kernel asks this about nodes that it
                has forgotten, which nobody has open, so such a node is deleted.
        """
        found = node
        if node is not self.inodes.root:
            if node.parent is None:
                raise os_error(errno.ESTALE)
            found = node if name == b"." else node.parent
        return self.inodes.entry(found, self.inodes.attributes(found))

    def find(self, path: bytes) -> Node:
        """The node of the regular file at *path*, which begins at the mount's root.

        Open it (`Opens`) or drop it (`Inodes.forget` with 0): the kernel may not know
        it, and so never forget it.

        Raises:
            OSError: there is none; ELOOP for a symbolic link, which is not followed.
        """
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        if b".." in names:
            raise OSError(errno.EINVAL, "a path from the root has no ..")
        if b"\0" in path:
            raise OSError(errno.EINVAL, "a path has no NUL")
        inodes = self.inodes
        node = inodes.root
        try:
            for name in names:
                node = inodes.node_at(node, name, self._stat_no_link(node, name))
            if not stat.S_ISREG(inodes.attributes(node).st_mode):
                raise OSError(errno.EINVAL, "this is no regular file")  # noqa: TRY301
        except OSError:
            # The kernel may not know it, and so may never forget it.
            inodes.drop_if_unused(node)
            raise
        return node

    def _stat_no_link(self, parent: Node, name: bytes) -> os.stat_result:
        found = self.inodes.stat_at(parent, name)
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, "symbolic links are not followed")
        return found

    # --- new files, opened ---------------------------------------------------

    def create(
        self, parent: Node, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> Entry:
        """CREATE: make a file and open it.

        Raises:
            OSError: ESTALE, the name exists, without O_EXCL: it was made outside the
                mount, and the kernel then looks it up again. EINVAL for O_DIRECT, and
                no name is made.
        """
        refuse_direct(flags)
        self.headroom.take(_NAME_BYTES)
        dir_fd = self.inodes.dir_fd(parent)
        try:
            fd = os.open(name, _CREATE_FLAGS, stat.S_IMODE(mode), dir_fd=dir_fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            raise os_error(errno.ESTALE) from None
        claimed = -1
        try:
            claimed = self.inodes.claim(fd)
            attributes = self._give(claimed, parent, mode, uid, gid)
            node = self.inodes.node_at(parent, name, attributes)
        except BaseException:
            if claimed >= 0:
                os.close(claimed)
            remove_made(os.unlink, name, dir_fd)
            raise
        self.opens.open_new(node, claimed)
        self.named_files += 1
        return self.inodes.entry(node, attributes)

    def tmpfile(self, parent: Node, flags: int, mode: int, uid: int, gid: int) -> Entry:
        """TMPFILE: make a file without a name and open it: O_TMPFILE of open(2)."""
        refuse_direct(flags)
        self.headroom.take(_NAME_BYTES)
        fd = os.open(
            f"/proc/self/fd/{self.inodes.dir_fd(parent)}",
            os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC | (flags & os.O_EXCL),
            stat.S_IMODE(mode),
        )
        fd = self.inodes.claim(fd)
        try:
            attributes = self._give(fd, parent, mode, uid, gid)
        except BaseException:
            os.close(fd)
            raise
        node = self.inodes.add(attributes.st_ino, is_dir=False)
        self.opens.open_new(node, fd)
        return self.inodes.entry(node, attributes)

    def unmake(self, node: Node) -> None:
        """Undo CREATE or TMPFILE, before the kernel knows of the file.

        The name must be removed, too: the kernel would continue to say that it does not
        exist.
        """
        if node.parent is not None:
            self.unlink(node.parent, node.name)
        self.opens.release(node)
        self.inodes.forget(node.ino, 1)

    # --- making --------------------------------------------------------------

    def _give(
        self, path: int | str, parent: Node, mode: int, uid: int, gid: int
    ) -> os.stat_result:
        """Give a new inode the owner and mode that it has when its creator makes it.

        Returns its attributes.
        """
        made = os.stat(path)
        # In a set-group-ID directory the backing has already chosen the group.
        if stat.S_ISGID & os.fstat(self.inodes.dir_fd(parent)).st_mode:
            gid = made.st_gid
        if (made.st_uid, made.st_gid) == (uid, gid):
            return made
        os.chown(path, uid, gid)
        if mode & (stat.S_ISUID | stat.S_ISGID):
            # chown(2) has removed these.
            os.chmod(path, stat.S_IMODE(mode))
        return os.stat(path)

    def _made(self, parent: Node, name: bytes, mode: int, uid: int, gid: int) -> Entry:
        """Finish a new name in the backing. If this fails, the caller removes it."""
        fd = os.open(name, PATH_FLAGS, dir_fd=self.inodes.dir_fd(parent))
        try:
            path = f"/proc/self/fd/{fd}"
            attributes = self._give(path, parent, mode, uid, gid)
        finally:
            os.close(fd)
        return self.inodes.entry_at(parent, name, attributes)

    def mknod(
        self, parent: Node, name: bytes, mode: int, rdev: int, uid: int, gid: int
    ) -> Entry:
        """MKNOD."""
        self.headroom.take(_NAME_BYTES)
        dir_fd = self.inodes.dir_fd(parent)
        os.mknod(name, mode, rdev, dir_fd=dir_fd)
        with undone(os.unlink, name, dir_fd):
            made = self._made(parent, name, mode, uid, gid)
        self.named_files += stat.S_ISREG(made.attributes.st_mode)
        return made

    def mkdir(self, parent: Node, name: bytes, mode: int, uid: int, gid: int) -> Entry:
        """MKDIR."""
        self.headroom.take(_NAME_BYTES)
        dir_fd = self.inodes.dir_fd(parent)
        os.mkdir(name, stat.S_IMODE(mode), dir_fd=dir_fd)
        with undone(os.rmdir, name, dir_fd):
            return self._made(parent, name, 0, uid, gid)

    def symlink(
        self, parent: Node, name: bytes, target: bytes, uid: int, gid: int
    ) -> Entry:
        """SYMLINK."""
        self.headroom.take(_NAME_BYTES)
        dir_fd = self.inodes.dir_fd(parent)
        os.symlink(target, name, dir_fd=dir_fd)
        with undone(os.unlink, name, dir_fd):
            return self._made(parent, name, 0, uid, gid)

    def link(self, node: Node, parent: Node, name: bytes) -> Entry:
        """LINK."""
        self.headroom.take(_NAME_BYTES)
        dir_fd = self.inodes.dir_fd(parent)
        with self.inodes.magic_path(node) as path:
            os.link(path, name, dst_dir_fd=dir_fd, follow_symlinks=True)
        with undone(os.unlink, name, dir_fd):
            attributes = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        self.inodes.add_name(node, parent, name)
        if stat.S_ISREG(attributes.st_mode) and attributes.st_nlink == 1:
            # It had no name: it was made with O_TMPFILE.
            self.opens.got_name(node)
            self.named_files += 1
        return self.inodes.entry(node, attributes)

    def readlink(self, node: Node) -> bytes:
        """READLINK."""
        with self.inodes.path_fd(node) as fd:
            return os.readlink(b"", dir_fd=fd)

    # --- removing and moving ---------------------------------------------------

    def _lost_name(self, attributes: os.stat_result, node: Node | None) -> None:
        """A name has been removed: *attributes* are from before, *node* if known."""
        if stat.S_ISREG(attributes.st_mode) and attributes.st_nlink == 1:
            self.named_files -= 1
            if node is not None:
                self.opens.lost_name(node)

    def unlink(self, parent: Node, name: bytes) -> None:
        """UNLINK: the memory stays until the last close."""
        self._remove(parent, name, os.unlink)

    def rmdir(self, parent: Node, name: bytes) -> None:
        """RMDIR."""
        self._remove(parent, name, os.rmdir)

    def _remove(self, parent: Node, name: bytes, remove: Callable[..., None]) -> None:
        attributes = self.inodes.stat_at(parent, name)
        node = self.inodes.nodes.get(attributes.st_ino)
        if node is not None:
            self.inodes.keep_reachable(node, parent, name)
        try:
            remove(name, dir_fd=self.inodes.dir_fd(parent))
        except OSError:
            if node is not None:
                self.inodes.unkeep(node)
            raise
        self._lost_name(attributes, node)
        if node is not None:
            self.inodes.remove_name(node, parent, name)
            self.inodes.drop_if_unused(node)

    def rename(
        self,
        old_parent: Node,
        old_name: bytes,
        new_parent: Node,
        new_name: bytes,
        flags: int,
    ) -> None:
        """RENAME and RENAME2."""
        moved = self.inodes.nodes.get(self.inodes.stat_at(old_parent, old_name).st_ino)
        there: os.stat_result | None
        try:
            there = self.inodes.stat_at(new_parent, new_name)
        except FileNotFoundError:
            there = None
        replaced = None if there is None else self.inodes.nodes.get(there.st_ino)
        exchange = flags & syscalls.RENAME_EXCHANGE
        if replaced is not None and not exchange:
            self.inodes.keep_reachable(replaced, new_parent, new_name)
        old_dir = self.inodes.dir_fd(old_parent)
        new_dir = self.inodes.dir_fd(new_parent)
        try:
            syscalls.renameat2(old_dir, old_name, new_dir, new_name, flags)
        except OSError:
            if replaced is not None and not exchange:
                self.inodes.unkeep(replaced)
            raise
        if there is not None and not exchange:
            # If both names are of one file, it had two, and _lost_name() sees that.
            self._lost_name(there, replaced)
        if moved is replaced:
            # Two names of one file: rename(2) leaves both alone.
            return
        if replaced is not None:
            if exchange:
                self._move_name(replaced, new_parent, new_name, old_parent, old_name)
            else:
                self.inodes.remove_name(replaced, new_parent, new_name)
                self.inodes.drop_if_unused(replaced)
        if moved is not None:
            self._move_name(moved, old_parent, old_name, new_parent, new_name)

    def _move_name(
        self, node: Node, parent: Node, name: bytes, to_parent: Node, to_name: bytes
    ) -> None:
        # Count it first, so that a directory that has only this name stays known.
        to_parent.children += 1
        self.inodes.remove_name(node, parent, name)
        self.inodes.add_name(node, to_parent, to_name)
        to_parent.children -= 1

    # --- attributes ------------------------------------------------------------

    def chmod(self, node: Node, mode: int) -> None:
        """SETATTR with a mode."""
        with self.inodes.magic_path(node) as path:
            os.chmod(path, stat.S_IMODE(mode))

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """SETATTR with an owner or a group; -1 leaves one as it is."""
        with self.inodes.magic_path(node) as path:
            os.chown(path, uid, gid)

    def utime(self, node: Node, atime: Time, mtime: Time) -> None:
        """SETATTR with times, as utimensat(2) takes them."""
        with self.inodes.magic_path(node) as path:
            syscalls.utimensat(path, atime, mtime)
