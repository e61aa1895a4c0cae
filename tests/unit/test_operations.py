"""pyfuse3's handlers, called as pyfuse3 calls them: busy files, and directories."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.fuse import attributes, wire
from inaccfs.fuse.directories import OpenDirectory
from inaccfs.fuse.namespace import Namespace
from inaccfs.fuse.operations import Operations
from inaccfs.fuse.wire import Setattr
from inaccfs.semantics import V8
from inaccfs.shim.allocating import SHORT_BYTES
from inaccfs.shim.superblock import Superblock
from inaccfs.syscalls import DirectoryEntry
from tests.unit.fakes import fallocate, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from inaccfs.backing.root import Backing
    from inaccfs.fuse.nodes import Node
    from tests.unit.fakes import BlockedAllocator

PAGE = 4096
LONG = SHORT_BYTES + PAGE
ME = os.geteuid(), os.getegid()
# The handlers need only the caller's ids; pyfuse3's own class cannot be filled in.
CONTEXT = cast("pyfuse3.RequestContext", SimpleNamespace(uid=ME[0], gid=ME[1]))


@contextmanager
def answered(number: int) -> Iterator[None]:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        yield
    assert caught.value.errno == number, errno.errorcode[caught.value.errno]


@pytest.fixture
def namespace(backing: Backing, blocked: BlockedAllocator) -> Iterator[Namespace]:
    made = Namespace(backing, Superblock(V8(), backing.page_size, allocator=blocked))
    yield made
    made.close()


@pytest.fixture
def operations(namespace: Namespace) -> Operations:
    async def value() -> bytes:
        await trio.lowlevel.checkpoint()
        return b"value"

    return Operations(namespace, {"user.virtual": value})


@pytest.fixture
def node(namespace: Namespace) -> Node:
    """An open file."""
    entry = namespace.create(namespace.inodes.root, b"f", os.O_RDWR, 0o600, *ME)
    return namespace.inodes[entry.nodeid]


def inode(node: Node) -> pyfuse3.InodeT:
    return pyfuse3.InodeT(node.ino)


@asynccontextmanager
async def busy(node: Node, blocked: BlockedAllocator) -> AsyncIterator[None]:
    """A long allocation of a file, until the end of the with block."""
    assert node.file is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fallocate, node.file, 0, 0, LONG, trio.Event())
        await blocked.entered.wait()
        yield
        blocked.let_go()


# --- busy files -------------------------------------------------------------------


async def _change(namespace: Namespace, node: Node, **wanted: int) -> None:
    """SETATTR, as the channel executes it; the fields are those of `Setattr`."""
    nothing = dict.fromkeys(Setattr._fields, 0)
    await attributes.change(namespace, node, Setattr(**nothing | wanted), os.getpid())


async def _size(operations: Operations, node: Node) -> None:
    namespace = operations._namespace
    await _change(namespace, node, valid=wire.FATTR_SIZE, size=PAGE)


async def _mode(operations: Operations, node: Node) -> None:
    namespace = operations._namespace
    await _change(namespace, node, valid=wire.FATTR_MODE, mode=0o100640)


async def _owner(operations: Operations, node: Node) -> None:
    await _change(operations._namespace, node, valid=wire.FATTR_GID, gid=ME[1])


async def _times(operations: Operations, node: Node) -> None:
    namespace = operations._namespace
    await _change(namespace, node, valid=wire.FATTR_MTIME, mtime=5)


async def _nothing(operations: Operations, node: Node) -> None:
    await _change(operations._namespace, node, valid=0)


async def _link(operations: Operations, node: Node) -> object:
    root = pyfuse3.InodeT(pyfuse3.ROOT_INODE)
    return await operations.link(inode(node), root, b"linked", CONTEXT)


async def _setxattr(operations: Operations, node: Node) -> object:
    await operations.setxattr(inode(node), b"user.x", b"1", CONTEXT)
    return None


async def _removexattr(operations: Operations, node: Node) -> object:
    with answered(errno.ENODATA):
        await operations.removexattr(inode(node), b"user.x", CONTEXT)
    return None


@pytest.mark.parametrize(
    "call",
    [_size, _mode, _owner, _times, _nothing, _link, _setxattr, _removexattr],
)
async def test_calls_that_need_the_lock_of_a_busy_file_wait(
    operations: Operations,
    namespace: Namespace,
    node: Node,
    blocked: BlockedAllocator,
    tree: Path,
    call: Callable[[Operations, Node], Awaitable[object]],
) -> None:
    """They wait in the trio loop, which goes on; in the backing they would block it."""
    ended = trio.Event()
    before = (tree / "f").stat()

    async def ask() -> None:
        try:
            await call(operations, node)
        except pyfuse3.FUSEError as exc:
            # Not every tmpfs has these.
            assert exc.errno == errno.EOPNOTSUPP  # noqa: PT017
        ended.set()

    async with trio.open_nursery() as nursery, busy(node, blocked):
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        assert (tree / "f").stat() == before
        # Another file's attributes, and another name.
        root = pyfuse3.InodeT(pyfuse3.ROOT_INODE)
        made = await operations.symlink(root, b"s", b"target", CONTEXT)
        await _times(operations, namespace.inodes[made.st_ino])
        await operations.statfs(CONTEXT)
    assert ended.is_set()
    assert not namespace.opens._superblock.busy


async def test_a_size_waits_and_is_then_refused(
    namespace: Namespace, node: Node, blocked: BlockedAllocator, tree: Path
) -> None:
    """By then the file has the allocation's size; no other attribute is set."""
    valid = wire.FATTR_SIZE | wire.FATTR_MODE

    async def ask() -> None:
        with refused(errno.EPERM):
            await _change(namespace, node, valid=valid, size=2 * PAGE, mode=0o640)

    async with trio.open_nursery() as nursery, busy(node, blocked):
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        os.truncate(tree / "f", PAGE)
    assert (tree / "f").stat().st_size == PAGE
    assert stat.S_IMODE((tree / "f").stat().st_mode) == 0o600
    assert node.opens == 1


async def test_all_attributes_can_be_set_at_once(
    namespace: Namespace, node: Node, tree: Path
) -> None:
    await _change(
        namespace,
        node,
        valid=wire.FATTR_SIZE
        | wire.FATTR_UID
        | wire.FATTR_GID
        | wire.FATTR_MODE
        | wire.FATTR_ATIME
        | wire.FATTR_MTIME
        | wire.FATTR_KILL_SUIDGID,
        size=PAGE,
        uid=ME[0],
        gid=ME[1],
        mode=0o104751,
        atime=0,
        atimensec=5,
        mtime=7,
        mtimensec=1,
    )
    found = (tree / "f").stat()
    # chown(2) clears the set-user-ID bit, so the mode is set after it.
    assert stat.S_IMODE(found.st_mode) == 0o4751
    assert (found.st_size, found.st_atime_ns, found.st_mtime_ns) == (
        PAGE,
        5,
        7_000_000_001,
    )


# --- positions in a directory -----------------------------------------------------


class CountingDirectory:
    """A directory whose positions count names from the start, as on hugetlbfs.

    Replaces getdents(2) and lseek(2). After names were removed a seek skips that many.
    """

    def __init__(self, names: int, at_once: int) -> None:
        self.names = [b"%d" % number for number in range(names)]
        self._at_once = at_once
        self._read: list[bytes] = []
        self.seeks: list[int] = []

    def getdents(self, fd: int) -> list[DirectoryEntry]:
        # The kernel's cursor is a place in its list; it stays when names are removed.
        left = [name for name in self.names if name not in self._read]
        batch = left[: self._at_once]
        self._read += batch
        before = len(self._read) - len(batch)
        return [
            DirectoryEntry(name, 1000 + int(name), before + at + 1)
            for at, name in enumerate(batch)
        ]

    def lseek(self, fd: int, position: int, whence: int) -> int:
        assert whence == os.SEEK_SET
        self.seeks.append(position)
        self._read = self.names[:position]
        return position


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingDirectory:
    made = CountingDirectory(names=20, at_once=6)
    monkeypatch.setattr(syscalls, "getdents", made.getdents)
    monkeypatch.setattr(os, "lseek", made.lseek)
    return made


def _take(directory: OpenDirectory, position: int, count: int) -> list[DirectoryEntry]:
    """The entries that one READDIR takes, with room for *count*."""
    directory.seek(position)
    taken: list[DirectoryEntry] = []
    while len(taken) < count and (found := directory.peek()) is not None:
        taken.append(found)
        directory.take()
    return taken


@pytest.mark.parametrize("count", [1, 4, 6, 7, 100])
def test_names_that_go_while_a_directory_is_read_hide_no_others(
    counting: CountingDirectory, namespace: Namespace, count: int
) -> None:
    """rm -r does this: it reads some, removes them, and reads on."""
    directory = OpenDirectory(namespace.inodes.root, 99)
    every = list(counting.names)
    position, seen = 0, []
    while taken := _take(directory, position, count):
        position = taken[-1].offset
        for entry in taken:
            seen.append(entry.name)
            counting.names.remove(entry.name)
    assert seen == every
    assert counting.seeks == []


def test_a_reader_that_goes_back_reads_anew(
    counting: CountingDirectory, namespace: Namespace
) -> None:
    directory = OpenDirectory(namespace.inodes.root, 99)
    first = _take(directory, 0, 4)
    assert [entry.name for entry in first] == [b"0", b"1", b"2", b"3"]
    counting.names.remove(b"0")
    counting.names.append(b"20")
    again = _take(directory, 0, 100)
    assert [entry.name for entry in again] == counting.names
    assert counting.seeks == [0]
    # It seeks to an earlier position, and goes on from there without a seek.
    position = again[2].offset
    assert [entry.name for entry in _take(directory, position, 2)] == [b"4", b"5"]
    assert _take(directory, again[4].offset, 1)[0].name == b"6"
    assert counting.seeks == [0, position]


def test_the_end_of_a_directory_may_be_asked_for_again(
    counting: CountingDirectory, namespace: Namespace
) -> None:
    directory = OpenDirectory(namespace.inodes.root, 99)
    position = _take(directory, 0, 100)[-1].offset
    assert _take(directory, position, 1) == []
    assert directory.peek() is None
    # A name that was made meanwhile.
    counting.names.append(b"20")
    assert [entry.name for entry in _take(directory, position, 5)] == [b"20"]
    assert counting.seeks == []


def test_an_entry_that_was_looked_at_and_not_taken_is_next(
    counting: CountingDirectory, namespace: Namespace
) -> None:
    """The reply had no room for it."""
    directory = OpenDirectory(namespace.inodes.root, 99)
    (taken,) = _take(directory, 0, 1)
    refused = directory.peek()
    directory.seek(taken.offset)
    assert directory.peek() == refused
    assert counting.seeks == []


# --- reading directories ----------------------------------------------------------


class Replies:
    """Replaces pyfuse3.readdir_reply(): one reply has room for *room* entries."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[tuple[bytes, int, int]] = []

    def __call__(
        self,
        token: object,
        name: bytes,
        attributes: pyfuse3.EntryAttributes,
        position: int,
    ) -> bool:
        if len(self.taken) == self.room:
            return False
        self.taken.append((name, attributes.st_ino, position))
        return True


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> Replies:
    made = Replies(7)
    monkeypatch.setattr(pyfuse3, "readdir_reply", made)
    return made


async def _readdir(
    operations: Operations, fh: pyfuse3.FileHandleT, position: int, replies: Replies
) -> list[tuple[bytes, int, int]]:
    replies.taken = []
    await operations.readdir(fh, position, cast("Any", None))
    return replies.taken


def _open_root(operations: Operations) -> pyfuse3.FileHandleT:
    namespace = operations._namespace
    return pyfuse3.FileHandleT(namespace.directories.open(namespace.inodes.root, 0))


async def test_each_name_is_listed_once_and_counts_one_lookup(
    operations: Operations, namespace: Namespace, tree: Path, replies: Replies
) -> None:
    """A name that a reply had no room for counts only when it is sent."""
    for at in range(20):
        (tree / f"f{at}").touch()
    inodes = {os.fsencode(entry.name): entry.inode() for entry in os.scandir(tree)}
    fh = _open_root(operations)
    position, listed = 0, []
    while taken := await _readdir(operations, fh, position, replies):
        listed += [(name, ino) for name, ino, _ in taken]
        position = taken[-1][2]
        assert len(namespace.inodes.nodes) == 1 + sum(
            not name.startswith(b".") for name, _ in listed
        )
    assert sorted(listed) == sorted([*inodes.items(), (b".", 1), (b"..", 1)])
    for ino in inodes.values():
        assert namespace.inodes[ino].lookups == 1
        namespace.inodes.forget(ino, 1)
    assert set(namespace.inodes.nodes) == {1}
    await operations.releasedir(fh)


async def test_a_directory_can_be_emptied_while_it_is_read(
    operations: Operations, namespace: Namespace, tree: Path, replies: Replies
) -> None:
    for at in range(50):
        (tree / f"f{at}").touch()
    fh = _open_root(operations)
    position = 0
    while taken := await _readdir(operations, fh, position, replies):
        position = taken[-1][2]
        for name, ino, _ in taken:
            if name not in (b".", b".."):
                namespace.unlink(namespace.inodes.root, name)
                namespace.inodes.forget(ino, 1)
    assert os.listdir(tree) == []
    assert set(namespace.inodes.nodes) == {1}
    # The same handle reads again from the start.
    names = [name for name, _, _ in await _readdir(operations, fh, 0, replies)]
    assert sorted(names) == [b".", b".."]
    await operations.releasedir(fh)


async def test_a_name_removed_since_is_skipped(
    operations: Operations, tree: Path, replies: Replies
) -> None:
    for at in range(20):
        (tree / f"f{at}").touch()
    fh = _open_root(operations)
    position, listed = 0, []
    while taken := await _readdir(operations, fh, position, replies):
        listed += [os.fsdecode(name) for name, _, _ in taken]
        position = taken[-1][2]
        for name in set(os.listdir(tree)) - set(listed):
            os.unlink(tree / name)
    assert set(listed) == {".", "..", *os.listdir(tree)}
    assert len(listed) == 7
    await operations.releasedir(fh)


async def test_handles_that_were_not_released_are_closed(
    operations: Operations,
) -> None:
    fh = _open_root(operations)
    operations._namespace.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fh)


# --- extended attributes ----------------------------------------------------------


async def test_the_root_has_virtual_attributes_that_stay(
    operations: Operations, node: Node
) -> None:
    root = pyfuse3.InodeT(pyfuse3.ROOT_INODE)
    name = b"user.virtual"
    assert await operations.getxattr(root, name, CONTEXT) == b"value"
    assert name in await operations.listxattr(root, CONTEXT)
    with answered(errno.EPERM):
        await operations.setxattr(root, name, b"other", CONTEXT)
    with answered(errno.EPERM):
        await operations.removexattr(root, name, CONTEXT)
    assert name not in await operations.listxattr(inode(node), CONTEXT)


@pytest.mark.parametrize("name", [b"system.posix_acl_access", b"security.capability"])
async def test_attributes_that_the_kernel_would_not_obey_cannot_be_set(
    operations: Operations, node: Node, name: bytes
) -> None:
    with answered(errno.EOPNOTSUPP):
        await operations.setxattr(inode(node), name, b"1", CONTEXT)
    with answered(errno.EOPNOTSUPP):
        await operations.getxattr(inode(node), name, CONTEXT)


# --- bugs -------------------------------------------------------------------------


async def test_a_bug_is_logged_and_answered_with_eio(
    operations: Operations,
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def buggy(self: Namespace, node: Node) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Namespace, "readlink", buggy)
    with answered(errno.EIO):
        await operations.readlink(inode(node), CONTEXT)
    (record,) = caplog.records
    assert record.exc_info
