"""The file system's names: what the kernel's requests do to the backing's tree.

Everything here is synchronous: a method is one step as far as the trio loop is
concerned. pyfuse3's handlers and the channel call it, and nobody else.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.backing.root import open_to_read
from inaccfs.fuse.directories import OpenDirectory
from inaccfs.fuse.inodes import PATH_FLAGS, Inodes, Node, close_now, os_error
from inaccfs.shim.file import InaccessibleFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.backing.root import Backing
    from inaccfs.fuse.inodes import CloseFd
    from inaccfs.fuse.wire import Entry
    from inaccfs.shim.superblock import Superblock
    from inaccfs.syscalls import Time

# So many files are let go at once, that few calls have to look for them.
_LET_GO: Final = 1024

_CREATE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Namespace(Inodes):
    """The tree of a backing directory, and what can be done to it.

    Methods raise `OSError` with the errno that the caller shall see.
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
        """*noatime*: to read a directory is no access, whatever the backing says.

        *keeps_nodes*: see `Inodes`.
        """
        super().__init__(backing, close_fd, keeps_nodes=keeps_nodes)
        self._superblock = superblock
        self._noatime = noatime
        # Directories that are being read, by their fds, which are the file handles.
        self.directories: Final[dict[int, OpenDirectory]] = {}
        self.trace: Final = superblock.trace
        # The turns of files whose backing inode is locked by a long operation.
        self._busy: Final = superblock.busy
        # How many regular files have a name; true where only the mount changes names.
        self.named_files = 0
        # Open files that have none, as far as it went through the mount.
        self._nameless: Final[set[Node]] = set()

    # --- long operations -----------------------------------------------------

    async def wait_idle(self, node: Node) -> None:
        """Wait until no long operation holds the lock of the node's backing inode.

        The calls that take that lock would otherwise stop the trio loop.
        """
        # The file may be let go meanwhile, and looked up anew.
        while node.file is not None and node.file.turn.taken:
            await node.file.turn.wait()

    def busy_at(self, *names: tuple[Node, bytes]) -> Node | None:
        """A node with a long operation among those that *names* lead to."""
        if not self._busy:
            return None
        for parent, name in names:
            try:
                node = self.nodes.get(self._stat_at(parent, name).st_ino)
            except FileNotFoundError:
                continue
            if node is not None and node.file is not None and node.file.turn.taken:
                return node
        return None

    # --- looking up ----------------------------------------------------------

    def _stat_at(self, parent: Node, name: bytes) -> os.stat_result:
        return os.stat(name, dir_fd=self.dir_fd(parent), follow_symlinks=False)

    def lookup(self, parent: Node, name: bytes) -> Entry:
        """LOOKUP."""
        attributes = self._stat_at(parent, name)
        return self.entry(self.node_at(parent, name, attributes), attributes)

    def lookup_dots(self, node: Node, name: bytes) -> Entry:
        """LOOKUP of "." or "..": the node itself, or the directory that it is in.

        Raises:
            OSError: ESTALE, when it has no name. The kernel asks for what it has
                forgotten, so nobody has it open, and it has gone.
        """
        found = node
        if node is not self.root:
            if node.parent is None:
                raise os_error(errno.ESTALE)
            found = node if name == b"." else node.parent
        return self.entry(found, self.attributes(found))

    def find(self, path: bytes) -> Node:
        """The regular file at *path*, which begins at the root; see `opened`.

        Raises:
            OSError: there is none; ELOOP for a symbolic link, which is not followed.
        """
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        if b".." in names:
            raise OSError(errno.EINVAL, "a path from the root has no ..")
        if b"\0" in path:
            raise OSError(errno.EINVAL, "a path has no NUL")
        node = self.root
        try:
            for name in names:
                node = self.node_at(node, name, self._stat_no_link(node, name))
            if not stat.S_ISREG(self.attributes(node).st_mode):
                raise OSError(errno.EINVAL, "this is no regular file")  # noqa: TRY301
        except OSError:
            # The kernel need not know of it, and then nobody would forget it.
            self._drop_if_unused(node)
            raise
        return node

    def _stat_no_link(self, parent: Node, name: bytes) -> os.stat_result:
        found = self._stat_at(parent, name)
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, "symbolic links are not followed")
        return found

    # --- opening -------------------------------------------------------------

    def open(self, node: Node, flags: int) -> InaccessibleFile:
        """OPEN, but for what the semantics say of O_TRUNC.

        Raises:
            OSError: EINVAL for O_DIRECT.
        """
        _refuse_direct(flags)
        return self._open(node, writing=flags & os.O_ACCMODE != os.O_RDONLY)

    def _open(
        self, node: Node, *, writing: bool, of_a_caller: bool = True
    ) -> InaccessibleFile:
        if node.file is None or (writing and not node.file.writable):
            with self.magic_path(node) as path:
                fd, writable = _open_backing(path, writing=writing)
            self._adopt(node, self.claim(fd) if of_a_caller else fd, writable)
        if not node.opens and node.parent is None and not os.fstat(node.fd).st_nlink:
            self._nameless.add(node)
        node.opens += 1
        assert node.file is not None
        return node.file

    def reopen(self, node: Node) -> InaccessibleFile:
        """The file of an open node that was let go.

        Raises:
            OSError: EBADF, it is not open; EMFILE, there are no fds.
        """
        if not node.opens:
            raise os_error(errno.EBADF)
        self._open(node, writing=True)
        node.opens -= 1
        assert node.file is not None
        return node.file

    def make_room(self) -> bool:
        """Let go of open files that can be opened again; they stay open to callers.

        That is so for files with a name, which only the mount can change, and for
        root, who may always open them.
        """
        if not self.keeps_nodes or os.geteuid() != 0:
            return False
        found = filter(_can_be_let_go, self.nodes.values())
        let_go = list(itertools.islice(found, _LET_GO))
        for node in let_go:
            _let_go(node)
        return bool(let_go)

    def _adopt(self, node: Node, fd: int, writable: bool) -> None:
        if node.fd >= 0:
            os.close(node.fd)
        node.fd = fd
        if node.file is None:
            node.file = InaccessibleFile(fd, self._superblock, writable=writable)
        else:
            node.file.reopened(fd, writable=writable)

    def create(
        self, parent: Node, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> Entry:
        """CREATE: make a file and open it.

        Raises:
            OSError: ESTALE, when there is such a name and O_EXCL was not asked for:
                it has come behind the kernel's back, which then looks again. EINVAL
                for O_DIRECT, before there is a name.
        """
        _refuse_direct(flags)
        dir_fd = self.dir_fd(parent)
        try:
            fd = os.open(name, _CREATE_FLAGS, stat.S_IMODE(mode), dir_fd=dir_fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            raise os_error(errno.ESTALE) from None
        with _undone(os.unlink, name, dir_fd):
            fd = self.claim(fd)
            with _closed_on_failure(fd):
                self._give(fd, parent, mode, uid, gid)
                attributes = os.fstat(fd)
                node = self.node_at(parent, name, attributes)
        self._adopt(node, fd, writable=True)
        node.opens += 1
        self.named_files += 1
        return self.entry(node, attributes)

    def tmpfile(self, parent: Node, flags: int, mode: int, uid: int, gid: int) -> Entry:
        """TMPFILE: a file with no name, as open(2) makes it for O_TMPFILE."""
        _refuse_direct(flags)
        fd = os.open(
            f"/proc/self/fd/{self.dir_fd(parent)}",
            os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC | (flags & os.O_EXCL),
            stat.S_IMODE(mode),
        )
        fd = self.claim(fd)
        with _closed_on_failure(fd):
            self._give(fd, parent, mode, uid, gid)
            attributes = os.fstat(fd)
        node = Node(attributes.st_ino, next(self._generations), is_dir=False)
        self.nodes[node.ino] = node
        self._adopt(node, fd, writable=True)
        node.opens += 1
        self._nameless.add(node)
        return self.entry(node, attributes)

    def unmake(self, node: Node) -> None:
        """Undo CREATE or TMPFILE: the kernel is not told, and would deny the name."""
        if node.parent is not None:
            self.unlink(node.parent, node.name)
        self.release(node)
        self.forget(node.ino, 1)

    def release(self, node: Node) -> None:
        """RELEASE: one open less. Without a name the fd stays until FORGET."""
        node.opens -= 1
        if not node.opens:
            self._nameless.discard(node)
        if node.opens == 0 and node.parent is not None and not node.is_pinned:
            # A name that has come in the meantime leads here again.
            fd, file, node.fd, node.file = node.fd, node.file, -1, None
            if fd >= 0:
                self._close_fd(fd, file)
        self._drop_if_unused(node)

    @contextmanager
    def opened(self, node: Node) -> Iterator[InaccessibleFile]:
        """The node's file, open for the length of a with block."""
        was_let_go = node.opens > 0 and node.file is None
        file = self._open(node, writing=True, of_a_caller=False)
        node.held += 1
        try:
            yield file
        finally:
            node.held -= 1
            self.release(node)
            if was_let_go and _can_be_let_go(node):
                _let_go(node)

    @property
    def nameless_files(self) -> int:
        """How many files are open and have no name. O(1)."""
        return len(self._nameless)

    def _lost_name(self, attributes: os.stat_result, node: Node | None) -> None:
        """A name has gone of what had these *attributes* before; its node, if any."""
        if stat.S_ISREG(attributes.st_mode) and attributes.st_nlink == 1:
            self.named_files -= 1
            if node is not None and node.opens:
                self._nameless.add(node)

    def open_directory(self, node: Node, flags: int) -> int:
        """OPENDIR: the handle of a directory that can be read."""
        noatime = self._noatime or bool(flags & os.O_NOATIME)
        fd = self.claim(open_to_read(self.dir_fd(node), noatime=noatime))
        self.directories[fd] = OpenDirectory(node, fd)
        return fd

    def release_directory(self, fh: int) -> None:
        """RELEASEDIR."""
        del self.directories[fh]
        os.close(fh)

    def close(self) -> None:
        """Close every fd of the namespace but the backing's root."""
        for fd in self.directories:
            os.close(fd)
        self.directories.clear()
        super().close()

    # --- making --------------------------------------------------------------

    def _give(
        self, path: int | str, parent: Node, mode: int, uid: int, gid: int
    ) -> None:
        """Make a new inode its creator's, as if the creator had made it."""
        made = os.stat(path)
        # In a set-group-ID directory the backing has chosen the group already.
        if stat.S_ISGID & os.fstat(self.dir_fd(parent)).st_mode:
            gid = made.st_gid
        if (made.st_uid, made.st_gid) != (uid, gid):
            os.chown(path, uid, gid)
            if mode & (stat.S_ISUID | stat.S_ISGID):
                # chown(2) has taken these.
                os.chmod(path, stat.S_IMODE(mode))

    def _made(self, parent: Node, name: bytes, mode: int, uid: int, gid: int) -> Entry:
        """Finish a new name that the backing has just made; or it is to be undone."""
        fd = os.open(name, PATH_FLAGS, dir_fd=self.dir_fd(parent))
        try:
            self._give(f"/proc/self/fd/{fd}", parent, mode, uid, gid)
            attributes = os.fstat(fd)
        finally:
            os.close(fd)
        return self.entry(self.node_at(parent, name, attributes), attributes)

    def mknod(
        self, parent: Node, name: bytes, mode: int, rdev: int, uid: int, gid: int
    ) -> Entry:
        """MKNOD."""
        dir_fd = self.dir_fd(parent)
        os.mknod(name, mode, rdev, dir_fd=dir_fd)
        with _undone(os.unlink, name, dir_fd):
            made = self._made(parent, name, mode, uid, gid)
        self.named_files += stat.S_ISREG(made.attributes.st_mode)
        return made

    def mkdir(self, parent: Node, name: bytes, mode: int, uid: int, gid: int) -> Entry:
        """MKDIR."""
        dir_fd = self.dir_fd(parent)
        os.mkdir(name, stat.S_IMODE(mode), dir_fd=dir_fd)
        with _undone(os.rmdir, name, dir_fd):
            return self._made(parent, name, 0, uid, gid)

    def symlink(
        self, parent: Node, name: bytes, target: bytes, uid: int, gid: int
    ) -> Entry:
        """SYMLINK."""
        dir_fd = self.dir_fd(parent)
        os.symlink(target, name, dir_fd=dir_fd)
        with _undone(os.unlink, name, dir_fd):
            return self._made(parent, name, 0, uid, gid)

    def link(self, node: Node, parent: Node, name: bytes) -> Entry:
        """LINK."""
        dir_fd = self.dir_fd(parent)
        with self.magic_path(node) as path:
            os.link(path, name, dst_dir_fd=dir_fd, follow_symlinks=True)
        with _undone(os.unlink, name, dir_fd):
            attributes = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        self.add_name(node, parent, name)
        if stat.S_ISREG(attributes.st_mode) and attributes.st_nlink == 1:
            # It had none, see O_TMPFILE.
            self._nameless.discard(node)
            self.named_files += 1
        return self.entry(node, attributes)

    def readlink(self, node: Node) -> bytes:
        """READLINK."""
        with self.path_fd(node) as fd:
            return os.readlink(b"", dir_fd=fd)

    # --- removing and moving ---------------------------------------------------

    def unlink(self, parent: Node, name: bytes) -> None:
        """UNLINK: the memory stays until the last close."""
        self._remove(parent, name, os.unlink)

    def rmdir(self, parent: Node, name: bytes) -> None:
        """RMDIR."""
        self._remove(parent, name, os.rmdir)

    def _remove(self, parent: Node, name: bytes, remove: Callable[..., None]) -> None:
        attributes = self._stat_at(parent, name)
        node = self.nodes.get(attributes.st_ino)
        if node is not None:
            self.keep_reachable(node, parent, name)
        try:
            remove(name, dir_fd=self.dir_fd(parent))
        except OSError:
            if node is not None:
                self.unkeep(node)
            raise
        self._lost_name(attributes, node)
        if node is not None:
            self.remove_name(node, parent, name)
            self._drop_if_unused(node)

    def rename(
        self,
        old_parent: Node,
        old_name: bytes,
        new_parent: Node,
        new_name: bytes,
        flags: int,
    ) -> None:
        """RENAME and RENAME2."""
        moved = self.nodes.get(self._stat_at(old_parent, old_name).st_ino)
        there: os.stat_result | None = None
        with suppress(FileNotFoundError):
            there = self._stat_at(new_parent, new_name)
        replaced = None if there is None else self.nodes.get(there.st_ino)
        exchange = flags & syscalls.RENAME_EXCHANGE
        if replaced is not None and not exchange:
            self.keep_reachable(replaced, new_parent, new_name)
        old_dir, new_dir = self.dir_fd(old_parent), self.dir_fd(new_parent)
        try:
            syscalls.renameat2(old_dir, old_name, new_dir, new_name, flags)
        except OSError:
            if replaced is not None and not exchange:
                self.unkeep(replaced)
            raise
        if there is not None and not exchange:
            # One of several names if it is another name of the same file.
            self._lost_name(there, replaced)
        if moved is replaced:
            # Two names of one file: rename(2) leaves both alone.
            return
        if replaced is not None:
            if exchange:
                self._move_name(replaced, new_parent, new_name, old_parent, old_name)
            else:
                self.remove_name(replaced, new_parent, new_name)
                self._drop_if_unused(replaced)
        if moved is not None:
            self._move_name(moved, old_parent, old_name, new_parent, new_name)

    def _move_name(
        self, node: Node, parent: Node, name: bytes, to_parent: Node, to_name: bytes
    ) -> None:
        # Added first, so that a directory that holds only this name stays known.
        to_parent.children += 1
        self.remove_name(node, parent, name)
        self.add_name(node, to_parent, to_name)
        to_parent.children -= 1

    # --- attributes ------------------------------------------------------------

    def chmod(self, node: Node, mode: int) -> None:
        """SETATTR with a mode."""
        with self.magic_path(node) as path:
            os.chmod(path, stat.S_IMODE(mode))

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """SETATTR with an owner or a group; -1 leaves one as it is."""
        with self.magic_path(node) as path:
            os.chown(path, uid, gid)

    def utime(self, node: Node, atime: Time, mtime: Time) -> None:
        """SETATTR with times, as utimensat(2) takes them."""
        with self.magic_path(node) as path:
            syscalls.utimensat(path, atime, mtime)


def _can_be_let_go(node: Node) -> bool:
    file = node.file
    return (
        file is not None
        and node.opens > 0
        and not node.held
        and node.parent is not None
        and file.is_plain
    )


def _let_go(node: Node) -> None:
    fd, node.fd, node.file = node.fd, -1, None
    os.close(fd)


def _refuse_direct(flags: int) -> None:
    # Memory has no direct I/O, and the file that refuses mmap could not be opened so.
    if flags & os.O_DIRECT:
        raise os_error(errno.EINVAL)


@contextmanager
def _undone(remove: Callable[..., None], name: bytes, dir_fd: int) -> Iterator[None]:
    """If the block fails, *remove* a name that has just been made.

    The kernel has heard that there is no such name, and may believe it for a day.
    """
    try:
        yield
    except BaseException:
        with suppress(FileNotFoundError):
            remove(name, dir_fd=dir_fd)
        raise


@contextmanager
def _closed_on_failure(fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(fd)
        raise


def _open_backing(path: str, *, writing: bool) -> tuple[int, bool]:
    """An fd of a backing file, and whether it is good for more than stat.

    The daemon of an unprivileged mount may be refused what only a writer needs.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK), True
    except PermissionError:
        if writing:
            raise
        return os.open(path, os.O_PATH | os.O_CLOEXEC), False
