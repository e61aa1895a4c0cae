"""Random histories: the namespace against a second, plain tmpfs.

Both get the same operations and must give the same answers, errnos included. The
namespace is driven as the kernel drives it: by nodes that were looked up, and with
forgets in between.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inaccfs import syscalls
from inaccfs.fuse import inodes
from inaccfs.fuse.namespace import Namespace
from inaccfs.semantics import V8
from inaccfs.shim import census
from inaccfs.shim.superblock import Superblock
from tests.unit.conftest import small_tmpfs
from tests.unit.fakes import fallocated_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.wire import Entry

ME = os.geteuid(), os.getegid()
FEW_FDS = 2
# Where links lead: a path through one is ENOTDIR for the plain side, too.
NO_DIRECTORY = b"/dev/null"
# What mknod(2) makes without privileges.
KINDS = (stat.S_IFREG | 0o600, stat.S_IFIFO | 0o600)

names = st.sampled_from([b"a", b"b", b"c"])
# The parent of a name: up to three directories down.
parents = st.lists(names, max_size=3).map(tuple)
Path = tuple[bytes, ...]


@dataclass(frozen=True)
class Handle:
    """A file that is open on both sides."""

    node: Node
    plain_fd: int


def outcome(call: Callable[[], object]) -> int:
    """The errno of a call, or 0."""
    try:
        call()
    except OSError as exc:
        return exc.errno or -1
    return 0


def picture(root: int) -> list[tuple[object, ...]]:
    """All names below *root*: kind, mode, size, and which are one and the same file."""
    found: list[tuple[object, ...]] = []
    numbers: dict[int, int] = {}
    for path, directories, files, fd in os.fwalk(".", dir_fd=root):
        directories.sort()
        for name in sorted([*directories, *files]):
            seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
            which = numbers.setdefault(seen.st_ino, len(numbers))
            link = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(seen.st_mode) else ""
            found.append(
                (path, name, which, seen.st_mode, seen.st_nlink, seen.st_blocks, link)
            )
    return found


class Histories(RuleBasedStateMachine):
    """One history: steps, and what must hold after each and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.umask = os.umask(0)
        self.room, inodes._DIRECTORY_FDS = inodes._DIRECTORY_FDS, FEW_FDS  # type: ignore[misc]
        self.backing, self.plain = small_tmpfs(), small_tmpfs()
        self.fds = len(os.listdir("/proc/self/fd"))
        self.namespace = Namespace(
            self.backing, Superblock(V8(), self.backing.page_size)
        )
        # The nodes that the kernel knows, by nodeid.
        self.known: Counter[int] = Counter()
        self.handles: list[Handle] = []

    # --- both sides ---------------------------------------------------------------

    def looked_up(self, entry: Entry) -> Node:
        self.known[entry.nodeid] += 1
        return self.namespace.inodes[entry.nodeid]

    def walk(self, path: Path) -> Node:
        node = self.namespace.inodes.root
        for name in path:
            node = self.looked_up(self.namespace.lookup(node, name))
        return node

    def directory(self, path: Path) -> Node:
        """The kernel, too, asks for nothing below a node that is not a directory."""
        node = self.walk(path)
        if not node.is_dir:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return node

    def there(self, path: Path) -> str:
        return os.path.join(f"/proc/self/fd/{self.plain.root}", *map(os.fsdecode, path))

    def same(self, ours: Callable[[], object], plain: Callable[[], object]) -> bool:
        """Do both, and compare; return whether the call succeeded."""
        expected = outcome(plain)
        assert outcome(ours) == expected
        return expected == 0

    # --- the steps ----------------------------------------------------------------

    @rule(parent=parents, name=names)
    def look_up(self, parent: Path, name: bytes) -> None:
        self.same(
            lambda: self.walk((*parent, name)),
            lambda: os.lstat(self.there((*parent, name))),
        )

    @rule(parent=parents, name=names)
    def create(self, parent: Path, name: bytes) -> None:
        made: list[Node] = []
        fds: list[int] = []
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        if self.same(
            lambda: made.append(
                self.looked_up(
                    self.namespace.create(
                        self.directory(parent), name, flags, 0o640, *ME
                    )
                )
            ),
            lambda: fds.append(os.open(self.there((*parent, name)), flags, 0o640)),
        ):
            self.handles.append(Handle(made[0], fds[0]))

    @rule(parent=parents)
    def tmpfile(self, parent: Path) -> None:
        made: list[Node] = []
        fds: list[int] = []
        flags = os.O_RDWR | os.O_TMPFILE
        if self.same(
            lambda: made.append(
                self.looked_up(
                    self.namespace.tmpfile(self.directory(parent), 2, 0o600, *ME)
                )
            ),
            lambda: fds.append(os.open(self.there(parent), flags, 0o600)),
        ):
            self.handles.append(Handle(made[0], fds[0]))

    @rule(parent=parents, name=names)
    def mkdir(self, parent: Path, name: bytes) -> None:
        self.same(
            lambda: self.looked_up(
                self.namespace.mkdir(self.directory(parent), name, 0o755, *ME)
            ),
            lambda: os.mkdir(self.there((*parent, name)), 0o755),
        )

    @rule(parent=parents, name=names, mode=st.sampled_from([0, *KINDS]))
    def mknod(self, parent: Path, name: bytes, mode: int) -> None:
        self.same(
            lambda: self.looked_up(
                self.namespace.mknod(self.directory(parent), name, mode, 0, *ME)
            ),
            lambda: os.mknod(self.there((*parent, name)), mode),
        )

    @rule(parent=parents, name=names)
    def symlink(self, parent: Path, name: bytes) -> None:
        self.same(
            lambda: self.looked_up(
                self.namespace.symlink(self.directory(parent), name, NO_DIRECTORY, *ME)
            ),
            lambda: os.symlink(NO_DIRECTORY, self.there((*parent, name))),
        )

    @rule(old=parents.filter(bool), parent=parents, name=names)
    def link(self, old: Path, parent: Path, name: bytes) -> None:
        self.same(
            lambda: self.looked_up(
                self.namespace.link(self.walk(old), self.directory(parent), name)
            ),
            lambda: os.link(
                self.there(old), self.there((*parent, name)), follow_symlinks=False
            ),
        )

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), parent=parents, name=names)
    def link_what_is_open(self, data: st.DataObject, parent: Path, name: bytes) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        self.same(
            lambda: self.looked_up(
                self.namespace.link(handle.node, self.directory(parent), name)
            ),
            lambda: os.link(
                f"/proc/self/fd/{handle.plain_fd}",
                self.there((*parent, name)),
                # AT_SYMLINK_FOLLOW is only passed on with a dir_fd.
                src_dir_fd=self.plain.root,
                follow_symlinks=True,
            ),
        )

    @rule(parent=parents, name=names, directory=st.booleans())
    def remove(self, parent: Path, name: bytes, directory: bool) -> None:
        ours = self.namespace.rmdir if directory else self.namespace.unlink
        plain = os.rmdir if directory else os.unlink
        self.same(
            lambda: ours(self.directory(parent), name),
            lambda: plain(self.there((*parent, name))),
        )

    @rule(
        old=parents,
        old_name=names,
        new=parents,
        new_name=names,
        flags=st.sampled_from(
            [0, 0, 0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE]
        ),
    )
    def rename(
        self, old: Path, old_name: bytes, new: Path, new_name: bytes, flags: int
    ) -> None:
        if (*old, old_name) == (*new, new_name):
            # The kernel refuses this by itself.
            return

        def ours() -> None:
            source, target = self.directory(old), self.directory(new)
            # The kernel looks both names up before it asks.
            for parent, name in ((source, old_name), (target, new_name)):
                outcome(lambda p=parent, n=name: self.walk_from(p, n))  # type: ignore[misc]
            self.namespace.rename(source, old_name, target, new_name, flags)

        self.same(
            ours,
            lambda: syscalls.renameat2(
                syscalls.AT_FDCWD,
                os.fsencode(self.there((*old, old_name))),
                syscalls.AT_FDCWD,
                os.fsencode(self.there((*new, new_name))),
                flags,
            ),
        )

    def walk_from(self, parent: Node, name: bytes) -> None:
        self.looked_up(self.namespace.lookup(parent, name))

    @rule(path=parents)
    def open(self, path: Path) -> None:
        there = self.there(path)
        if outcome(lambda: os.lstat(there)) or not stat.S_ISREG(
            os.lstat(there).st_mode
        ):
            return
        node = self.walk(path)
        self.namespace.opens.open(node, os.O_RDWR)
        self.handles.append(Handle(node, os.open(there, os.O_RDWR)))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.handles) - 1))
        handle = self.handles.pop(at)
        self.namespace.opens.release(handle.node)
        os.close(handle.plain_fd)

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), pages=st.integers(1, 3))
    def allocate(self, data: st.DataObject, pages: int) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        assert handle.node.file is not None
        fallocated_now(handle.node.file, 0, 0, pages * 4096)
        syscalls.fallocate(handle.plain_fd, 0, 0, pages * 4096)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        nodeid = data.draw(st.sampled_from(sorted(self.known)))
        if any(handle.node.ino == nodeid for handle in self.handles):
            # An open file holds its inode in the kernel, too.
            return
        self.namespace.inodes.forget(nodeid, self.known.pop(nodeid))

    # --- what must hold -----------------------------------------------------------

    @invariant()
    def the_trees_are_the_same(self) -> None:
        assert picture(self.backing.root) == picture(self.plain.root)

    @invariant()
    def every_node_can_be_reached(self) -> None:
        for node in list(self.namespace.inodes.nodes.values()):
            if node is not self.namespace.inodes.root:
                assert self.namespace.inodes.attributes(node).st_ino == node.ino

    @invariant()
    def open_files_are_the_same(self) -> None:
        for handle in self.handles:
            ours = self.namespace.inodes.attributes(handle.node)
            plain = os.fstat(handle.plain_fd)
            assert (ours.st_nlink, ours.st_blocks) == (plain.st_nlink, plain.st_blocks)

    @invariant()
    def files_are_counted_as_things_happen(self) -> None:
        assert self.namespace.named_files == census.count(self.backing.root).files
        nameless = [
            handle.node.ino
            for handle in self.handles
            if not os.fstat(handle.plain_fd).st_nlink
        ]
        assert self.namespace.opens.nameless == len(set(nameless))

    @invariant()
    def the_kernels_count_is_ours(self) -> None:
        for nodeid, count in self.known.items():
            assert self.namespace.inodes[nodeid].lookups == count

    def teardown(self) -> None:
        try:
            for handle in self.handles:
                self.namespace.opens.release(handle.node)
                os.close(handle.plain_fd)
            for nodeid, count in self.known.items():
                self.namespace.inodes.forget(nodeid, count)
            assert set(self.namespace.inodes.nodes) == {1}
            assert self.namespace.inodes.root.children == 0
            assert len(os.listdir("/proc/self/fd")) == self.fds
        finally:
            self.namespace.close()
            self.backing.close()
            self.plain.close()
            inodes._DIRECTORY_FDS = self.room  # type: ignore[misc]
            os.umask(self.umask)


TestHistories = Histories.TestCase
# tests/hard/test_models.py runs more of them.
TestHistories.settings = settings(max_examples=30, stateful_step_count=40)
