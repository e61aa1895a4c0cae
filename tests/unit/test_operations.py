"""pyfuse3's handlers, called as pyfuse3 calls them: busy files, attributes, bugs."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pyfuse3
import pytest
import trio
import trio.testing

from inaccfs.fuse import attributes, wire
from inaccfs.fuse.namespace import Namespace
from inaccfs.fuse.wire import Setattr
from inaccfs.semantics import V8
from inaccfs.shim.allocating import SHORT_BYTES
from inaccfs.shim.superblock import Superblock
from tests.unit.fakes import fallocate, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from inaccfs.backing.root import Backing
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.operations import Operations
    from tests.unit.blocked_fakes import BlockedAllocator

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
