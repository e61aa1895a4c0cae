"""The channel between a fake kernel and a fake pyfuse3: one reply to each request."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.fuse import wire
from inaccfs.fuse.namespace import Namespace
from inaccfs.fuse.opens import Opens
from inaccfs.fuse.seal import Seal
from inaccfs.fuse.wire import Op
from inaccfs.syscalls import PUNCH
from tests.unit.blocked_fakes import BlockedAllocator, BlockedCall, BlockedUndoing
from tests.unit.fakes import (
    BATCH_FORGET_IN,
    CREATE_IN,
    FALLOCATE_IN,
    FORGET_ONE,
    FUSE_INIT_EXT,
    FUSE_PASSTHROUGH,
    GETXATTR_IN,
    INIT_OUT,
    INTERRUPT_IN,
    LSEEK_IN,
    OPEN_IN,
    READ_IN,
    RENAME2_IN,
    SealFactory,
    World,
    init_in,
    read_in,
    serving,
)

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing
    from inaccfs.fuse.nodes import Node
    from inaccfs.shim.trace import Happened

PAGE = 4096
# More than is dealt with in the trio loop, and more than cannot be interrupted.
LONG = 8 << 20
INTERRUPTIBLE = 256 << 20


# --- INIT -------------------------------------------------------------------------


async def test_init_is_answered_by_the_channel_once_pyfuse3_is_ready(
    backing: Backing,
) -> None:
    async with serving(backing, handshake=False) as world:
        assert not world.channel.initialised.is_set()
        reply = await world.kernel.call(Op.INIT, 0, init_in(minor=45))
        major, minor, _, flags, *_, flags2, depth = INIT_OUT.unpack(reply.payload)
        assert (major, minor) == (7, 40)
        assert flags & FUSE_INIT_EXT
        assert flags2 << 32 & FUSE_PASSTHROUGH
        assert depth == 1
        assert world.channel.initialised.is_set()


async def test_pyfuse3_hears_of_readdirplus_only(backing: Backing) -> None:
    async with serving(backing, handshake=False) as world:
        await world.kernel.call(Op.INIT, 0, init_in())
        ((op, message),) = world.pyfuse3.seen
        assert op == Op.INIT
        assert int.from_bytes(message[52:56], "little") == 1 << 13


@pytest.mark.parametrize("passthrough", [True, False])
async def test_the_seal_depends_on_the_offer_of_the_kernel(
    backing: Backing, passthrough: bool
) -> None:
    make_seal = SealFactory()
    offer = FUSE_INIT_EXT | (FUSE_PASSTHROUGH if passthrough else 0)
    async with serving(backing, make_seal=make_seal, handshake=False) as world:
        await world.kernel.call(Op.INIT, 0, init_in(flags=offer))
    assert make_seal.offered is passthrough


async def test_init_that_pyfuse3_refuses_is_refused(backing: Backing) -> None:
    async with serving(backing, handshake=False) as world:
        world.pyfuse3.error = errno.EPROTO
        assert (await world.kernel.call(Op.INIT, 0, init_in())).error == errno.EPROTO
        assert not world.channel.initialised.is_set()


# --- inodes -----------------------------------------------------------------------


async def test_lookup_returns_the_backings_inode(world: World, tree: Path) -> None:
    (tree / "a").mkdir(mode=0o750)
    entry = (await world.kernel.lookup(b"a")).entry()
    found = (tree / "a").stat()
    assert entry.nodeid == entry.attr.ino == found.st_ino
    assert entry.attr.mode == found.st_mode
    assert (entry.attr.mtime, entry.attr.mtimensec) == divmod(found.st_mtime_ns, 10**9)


async def test_lookup_of_nothing_is_an_entry_the_kernel_may_remember(
    world: World,
) -> None:
    entry = (await world.kernel.lookup(b"nothing")).entry()
    assert entry.nodeid == 0
    assert entry.entry_valid > 0


async def test_names_of_a_wrapped_directory_are_never_remembered(
    backing: Backing, tree: Path
) -> None:
    backing.directory = "/somewhere"
    (tree / "a").mkdir()
    async with serving(backing) as world:
        for name in (b"a", b"nothing"):
            entry = (await world.kernel.lookup(name)).entry()
            assert (entry.entry_valid, entry.attr_valid) == (0, 0)


async def test_getattr_of_the_root_and_of_a_file(world: World, tree: Path) -> None:
    root = (await world.kernel.call(Op.GETATTR)).attr()
    assert root.ino == wire.ROOT_ID
    assert stat.S_ISDIR(root.mode)
    (tree / "f").touch(mode=0o640)
    os.truncate(tree / "f", 3 * PAGE)
    nodeid = (await world.kernel.lookup(b"f")).entry().nodeid
    reply = await world.kernel.call(Op.GETATTR, nodeid)
    assert reply.attr().size == 3 * PAGE
    assert stat.S_IMODE(reply.attr().mode) == 0o640
    # Memory can be allocated without the kernel's knowledge: never cached.
    assert int.from_bytes(reply.payload[:8], "little") == 0


async def test_times_before_1970_are_passed_on(world: World, tree: Path) -> None:
    (tree / "old").touch()
    os.utime(tree / "old", ns=(-1_500_000_000, -1))
    attr = (await world.kernel.lookup(b"old")).entry().attr
    assert (attr.atime, attr.atimensec) == (-2, 500_000_000)
    assert (attr.mtime, attr.mtimensec) == (-1, 999_999_999)


@pytest.mark.parametrize(
    ("op", "body"),
    [
        (Op.GETATTR, b""),
        (Op.LOOKUP, b"x\0"),
        (Op.OPEN, bytes(8)),
        (Op.CREATE, CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"x\0"),
        (Op.TMPFILE, CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0)),
        (Op.RELEASE, bytes(24)),
        (Op.UNLINK, b"x\0"),
        (Op.RMDIR, b"x\0"),
        (Op.RENAME, bytes(8) + b"x\0y\0"),
        (Op.RENAME2, bytes(16) + b"x\0y\0"),
    ],
    ids=lambda value: value.name if isinstance(value, Op) else "",
)
async def test_an_unknown_inode_is_stale(world: World, op: Op, body: bytes) -> None:
    assert (await world.kernel.call(op, 987654, body)).error == errno.ESTALE


async def test_forget_and_batch_forget_take_back_each_lookup(
    world: World, tree: Path
) -> None:
    nodes = []
    for name in ("a", "b", "c"):
        (tree / name).mkdir()
        nodes.append((await world.kernel.lookup(name.encode())).entry().nodeid)
    await world.kernel.lookup(b"a")
    await world.kernel.forget(nodes[0], 1)
    await world.kernel.call(Op.GETATTR)
    assert set(world.namespace.inodes.nodes) == {1, *nodes}

    body = BATCH_FORGET_IN.pack(3, 0)
    body += b"".join(FORGET_ONE.pack(nodeid, 1) for nodeid in nodes)
    await world.kernel.send(Op.BATCH_FORGET, 0, body)
    await world.kernel.call(Op.GETATTR)
    assert set(world.namespace.inodes.nodes) == {1}


# --- names ------------------------------------------------------------------------


async def test_unlink_and_rmdir(world: World, tree: Path) -> None:
    (tree / "f").touch()
    (tree / "d").mkdir()
    assert (await world.kernel.call(Op.RMDIR, 1, b"f\0")).error == errno.ENOTDIR
    assert (await world.kernel.call(Op.UNLINK, 1, b"d\0")).error == errno.EISDIR
    assert (await world.kernel.call(Op.UNLINK, 1, b"f\0")).error == 0
    assert (await world.kernel.call(Op.RMDIR, 1, b"d\0")).error == 0
    assert (await world.kernel.call(Op.RMDIR, 1, b"d\0")).error == errno.ENOENT
    assert os.listdir(tree) == []


async def test_rename_and_rename2(world: World, tree: Path) -> None:
    (tree / "d").mkdir()
    (tree / "f").touch()
    (tree / "g").touch()
    directory = (await world.kernel.lookup(b"d")).entry().nodeid
    plain = directory.to_bytes(8, "little") + b"f\0f2\0"
    assert (await world.kernel.call(Op.RENAME, 1, plain)).error == 0
    assert (tree / "d" / "f2").exists()
    keep = RENAME2_IN.pack(directory, syscalls.RENAME_NOREPLACE, 0) + b"g\0f2\0"
    assert (await world.kernel.call(Op.RENAME2, 1, keep)).error == errno.EEXIST
    swap = RENAME2_IN.pack(directory, syscalls.RENAME_EXCHANGE, 0) + b"g\0f2\0"
    moved = (tree / "g").stat().st_ino
    assert (await world.kernel.call(Op.RENAME2, 1, swap)).error == 0
    assert (tree / "d" / "f2").stat().st_ino == moved


# --- open files -------------------------------------------------------------------


async def test_create_opens_the_new_file(world: World, tree: Path) -> None:
    reply = await world.kernel.create(b"f", mode=0o640)
    nodeid = reply.entry().nodeid
    assert (tree / "f").stat().st_ino == nodeid
    assert stat.S_IMODE((tree / "f").stat().st_mode) == 0o640
    fh, _, backing_id = reply.opened()
    assert fh == nodeid
    assert backing_id == 0
    assert world.namespace.inodes[nodeid].opens == 1


async def test_release_closes_the_last_open_only(world: World) -> None:
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    await world.kernel.open(nodeid, os.O_RDONLY)
    node = world.namespace.inodes[nodeid]
    assert (await world.kernel.release(nodeid)).error == 0
    assert node.file is not None
    assert (await world.kernel.release(nodeid)).error == 0
    assert node.file is None
    assert node.fd == -1


async def test_create_of_a_name_that_is_there(world: World, tree: Path) -> None:
    """O_EXCL: EEXIST; else ESTALE, and the kernel looks again."""
    (tree / "f").touch()
    exclusive = await world.kernel.create(b"f", os.O_RDWR | os.O_EXCL)
    assert exclusive.error == errno.EEXIST
    assert (await world.kernel.create(b"f")).error == errno.ESTALE


@pytest.mark.parametrize(
    ("backing_id", "flags"),
    [
        pytest.param(
            0,
            wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH | wire.FOPEN_NONSEEKABLE,
            id="unsealed",
        ),
        pytest.param(
            7,
            wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH | wire.FOPEN_PASSTHROUGH,
            id="sealed",
        ),
    ],
)
async def test_each_kind_of_open_carries_the_seal(
    backing: Backing, backing_id: int, flags: int
) -> None:
    async with serving(backing, make_seal=SealFactory(backing_id)) as world:
        made = await world.kernel.create(b"f")
        nodeid = made.entry().nodeid
        body = CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0)
        unnamed = await world.kernel.call(Op.TMPFILE, 1, body)
        for reply in (made, await world.kernel.open(nodeid, os.O_RDONLY), unnamed):
            assert reply.opened()[1:] == (flags, backing_id)


class Unwilling(Seal):
    """The kernel refuses every backing file."""

    def __init__(self) -> None:
        super().__init__("shared", 7)
        self.unwilling = True
        self.ended = 0

    def backing_id(self, ino: int, fd: int) -> int:
        if self.unwilling:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().backing_id(ino, fd)

    def closed(self, ino: int) -> None:
        self.ended += 1
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


async def test_an_open_that_cannot_be_sealed_leaves_nothing(
    backing: Backing,
) -> None:
    seal = Unwilling()
    async with serving(backing, make_seal=lambda _: seal) as world:
        known = set(world.namespace.inodes.nodes)
        assert (await world.kernel.create(b"f")).error == errno.ENOMEM
        body = CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0)
        assert (await world.kernel.call(Op.TMPFILE, 1, body)).error == errno.ENOMEM
        assert set(world.namespace.inodes.nodes) == known
        # Nor the name: the kernel would go on to deny it.
        assert os.listdir(backing.root) == []
        assert (await world.kernel.lookup(b"f")).entry().nodeid == 0
        seal.unwilling = False
        nodeid = (await world.kernel.create(b"f")).entry().nodeid
        assert (await world.kernel.call(Op.FLUSH, nodeid)).error == 0
        world.namespace.opens.release(world.namespace.inodes[nodeid])
        seal.unwilling = True
        assert (await world.kernel.open(nodeid, os.O_RDWR)).error == errno.ENOMEM
        assert world.namespace.inodes[nodeid].opens == 0


async def test_a_release_that_goes_wrong_is_one_all_the_same(backing: Backing) -> None:
    seal = Unwilling()
    seal.unwilling = False
    async with serving(backing, make_seal=lambda _: seal) as world:
        nodeid = (await world.kernel.create(b"f")).entry().nodeid
        assert world.namespace.inodes[nodeid].opens == 1
        assert (await world.kernel.release(nodeid)).error == errno.ENOENT
        assert (seal.ended, world.namespace.inodes[nodeid].opens) == (1, 0)


async def test_o_direct_is_refused_wherever_a_file_is_opened(world: World) -> None:
    """It is EINVAL, and leaves no name."""
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    direct = os.O_RDWR | os.O_DIRECT
    assert (await world.kernel.open(nodeid, direct)).error == errno.EINVAL
    body = CREATE_IN.pack(direct, 0o100600, 0, 0)
    assert (await world.kernel.call(Op.TMPFILE, 1, body)).error == errno.EINVAL
    assert (await world.kernel.create(b"new", direct)).error == errno.EINVAL
    assert (await world.kernel.lookup(b"new")).entry().nodeid == 0


async def test_o_trunc_is_a_size_change(world: World, tree: Path) -> None:
    """It is EPERM once the file has its size, and the open is not counted."""
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    truncating = os.O_RDWR | os.O_TRUNC
    assert (await world.kernel.open(nodeid, truncating)).error == 0
    os.truncate(tree / "f", PAGE)
    opens = world.namespace.inodes[nodeid].opens
    assert (await world.kernel.open(nodeid, truncating)).error == errno.EPERM
    assert world.namespace.inodes[nodeid].opens == opens
    assert (tree / "f").stat().st_size == PAGE


async def test_tmpfile_has_no_name_and_goes_with_its_last_use(
    world: World, tree: Path
) -> None:
    body = CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0)
    entry = (await world.kernel.call(Op.TMPFILE, 1, body)).entry()
    assert entry.attr.nlink == 0
    assert os.listdir(tree) == []
    assert (await world.kernel.fallocate(entry.nodeid, 0, 0, PAGE)).error == 0
    await world.kernel.release(entry.nodeid)
    await world.kernel.forget(entry.nodeid, 1)
    await world.kernel.call(Op.GETATTR)
    assert set(world.namespace.inodes.nodes) == {1}
    space = os.statvfs(tree)
    assert space.f_bfree == space.f_blocks


@pytest.mark.parametrize(
    ("op", "body", "error"),
    [
        (Op.READ, read_in(PAGE), errno.EINVAL),
        (Op.WRITE, read_in(4) + b"data", errno.EINVAL),
        (Op.COPY_FILE_RANGE, bytes(56), errno.EINVAL),
        (Op.COPY_FILE_RANGE_64, bytes(56), errno.EINVAL),
        (Op.LSEEK, LSEEK_IN.pack(0, 0, os.SEEK_DATA, 0), errno.ESPIPE),
        (Op.IOCTL, bytes(32), errno.ENOTTY),
        (Op.FLUSH, bytes(24), 0),
        (Op.FSYNC, bytes(16), 0),
        (37, b"", errno.ENOSYS),  # BMAP
        (40, b"", errno.ENOSYS),  # POLL
        (63, b"", errno.ENOSYS),
        (64, b"", errno.ENOSYS),
        (65535, b"", errno.ENOSYS),
        (0xFFFFFFFF, b"", errno.ENOSYS),
    ],
    ids=str,
)
async def test_operations_that_v8_files_lack_are_refused(
    world: World, op: int, body: bytes, error: int
) -> None:
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    assert (await world.kernel.call(op, nodeid, body)).error == error


# --- FALLOCATE --------------------------------------------------------------------


async def test_fallocate_allocates_and_punch_frees(world: World, tree: Path) -> None:
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    assert (await world.kernel.fallocate(nodeid, 0, 0, 4 * PAGE)).error == 0
    assert (tree / "f").stat().st_blocks == 4 * PAGE // 512
    assert (await world.kernel.fallocate(nodeid, PUNCH, PAGE, PAGE)).error == 0
    assert (tree / "f").stat().st_blocks == 3 * PAGE // 512
    assert (tree / "f").stat().st_size == 4 * PAGE


async def test_a_trace_has_the_pid_of_the_system_call(world: World) -> None:
    """The fake kernel's requests are process 1's."""
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    found: list[Happened] = []
    world.namespace.trace.listen(found.append)
    await world.kernel.setattr(nodeid, wire.FATTR_SIZE, size=LONG)
    # In the loop, and in a thread.
    await world.kernel.fallocate(nodeid, 0, 0, PAGE)
    await world.kernel.fallocate(nodeid, PUNCH, 0, LONG)
    assert [(one.what, one.file, one.who) for one in found] == [
        ("truncate", nodeid, 1),
        ("allocate", nodeid, 1),
        ("punch", nodeid, 1),
    ]


async def test_a_trace_has_the_system_calls_that_no_file_allows(world: World) -> None:
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    reading = READ_IN.pack(nodeid, PAGE, 8, 0, 0, 0, 0)
    requests = (
        (Op.READ, reading),
        (Op.WRITE, reading),
        (Op.READ, bytes(7)),
        (Op.LSEEK, LSEEK_IN.pack(nodeid, 0, os.SEEK_DATA, 0)),
        (Op.IOCTL, bytes(32)),
        (Op.COPY_FILE_RANGE, bytes(56)),
    )
    found: list[Happened] = []
    world.namespace.trace.listen(found.append)
    for op, body in requests:
        await world.kernel.call(op, nodeid, body)
    assert {(one.file, one.who) for one in found} == {(nodeid, 1)}
    assert [(one.what, one.start, one.end, one.error) for one in found] == [
        ("read", PAGE, PAGE + 8, errno.EINVAL),
        ("write", PAGE, PAGE + 8, errno.EINVAL),
        ("read", 0, 0, errno.EINVAL),
        ("lseek", 0, 0, errno.ESPIPE),
        ("ioctl", 0, 0, errno.ENOTTY),
        ("copy", 0, 0, errno.EINVAL),
    ]


@pytest.mark.parametrize(("offset", "length"), [(1, PAGE), (0, PAGE + 1), (0, 1)])
async def test_an_unaligned_punch_changes_nothing(
    world: World, tree: Path, offset: int, length: int
) -> None:
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    await world.kernel.fallocate(nodeid, 0, 0, 4 * PAGE)
    reply = await world.kernel.fallocate(nodeid, PUNCH, offset, length)
    assert reply.error == errno.EINVAL
    assert (tree / "f").stat().st_blocks == 4 * PAGE // 512


async def test_a_long_punch_delays_no_other_call(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = BlockedCall()
    monkeypatch.setattr(syscalls, "fallocate", call)
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    body = FALLOCATE_IN.pack(nodeid, 0, LONG, PUNCH, 0)
    unique = await world.kernel.send(Op.FALLOCATE, nodeid, body)
    await call.entered.wait()
    assert call.arguments[1:] == (PUNCH, 0, LONG)
    assert (await world.kernel.call(Op.GETATTR)).error == 0
    call.let_go()
    assert await world.kernel.receive() == (unique, 0, b"")


async def test_a_long_allocation_for_real(world: World, tree: Path) -> None:
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    assert (await world.kernel.fallocate(nodeid, 0, 0, LONG)).error == 0
    assert (tree / "f").stat().st_blocks == LONG // 512
    reply = await world.kernel.fallocate(nodeid, 0, 0, 65 << 20)
    assert reply.error == errno.ENOSPC
    # While a long call lasts it counts as an open of the file.
    assert world.namespace.inodes[nodeid].opens == 1


async def _fill(world: World) -> int:
    """Fill the backing; return the nodeid of a file that has to allocate."""
    full = (await world.kernel.create(b"full")).entry().nodeid
    assert (await world.kernel.fallocate(full, 0, 0, 64 << 20)).error == 0
    return (await world.kernel.create(b"f")).entry().nodeid


@pytest.mark.parametrize("length", [PAGE, LONG])
async def test_an_allocation_waits_for_memory_that_is_on_its_way(
    world: World, tree: Path, length: int
) -> None:
    nodeid = await _fill(world)
    assert (await world.kernel.fallocate(nodeid, 0, 0, length)).error == errno.ENOSPC
    world.closer.claim()
    body = FALLOCATE_IN.pack(nodeid, 0, length, 0, 0)
    unique = await world.kernel.send(Op.FALLOCATE, nodeid, body)
    assert (await world.kernel.call(Op.GETATTR)).error == 0
    os.truncate(tree / "full", 0)
    world.closer.let_go()
    assert await world.kernel.receive() == (unique, 0, b"")
    assert (tree / "f").stat().st_size == length


async def test_it_does_not_wait_when_interrupted(world: World) -> None:
    nodeid = await _fill(world)
    world.closer.claim()
    body = FALLOCATE_IN.pack(nodeid, 0, PAGE, 0, 0)
    unique = await world.kernel.send(Op.FALLOCATE, nodeid, body)
    await world.kernel.send(Op.INTERRUPT, 0, INTERRUPT_IN.pack(unique))
    reply = await world.kernel.receive()
    assert reply.unique == unique
    assert reply.error in (errno.EINTR, errno.ENOSPC)


async def test_enospc_is_returned_when_there_is_nothing_to_wait_for(
    world: World,
) -> None:
    nodeid = await _fill(world)
    world.closer.claim()
    body = FALLOCATE_IN.pack(nodeid, 0, PAGE, 0, 0)
    unique = await world.kernel.send(Op.FALLOCATE, nodeid, body)
    await trio.testing.wait_all_tasks_blocked()
    world.closer.let_go()
    assert await world.kernel.receive() == (unique, errno.ENOSPC, b"")


async def test_memory_of_a_large_file_is_back_for_the_next_allocation(
    world: World,
) -> None:
    """After unlink, close and FORGET all of it can really be allocated at once."""
    for _ in range(3):
        nodeid = (await world.kernel.create(b"f")).entry().nodeid
        assert (await world.kernel.fallocate(nodeid, 0, 0, 64 << 20)).error == 0
        assert (await world.kernel.call(Op.UNLINK, 1, b"f\0")).error == 0
        await world.kernel.release(nodeid)
        await world.kernel.forget(nodeid, 1)


async def _start_allocation(world: World, blocked: BlockedAllocator) -> tuple[int, int]:
    """Begin a long allocation; return the file's nodeid and the unique."""
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    body = FALLOCATE_IN.pack(nodeid, 0, INTERRUPTIBLE, 0, 0)
    unique = await world.kernel.send(Op.FALLOCATE, nodeid, body)
    await blocked.entered.wait()
    return nodeid, unique


async def test_interrupt_ends_a_long_allocation(
    world: World, blocked: BlockedAllocator
) -> None:
    nodeid, unique = await _start_allocation(world, blocked)
    await world.kernel.send(Op.INTERRUPT, 0, INTERRUPT_IN.pack(unique))
    assert await world.kernel.receive() == (unique, errno.EINTR, b"")
    assert (await world.kernel.call(Op.GETATTR, nodeid)).error == 0
    assert world.namespace.inodes[nodeid].opens == 1


async def test_an_interrupt_right_after_its_request_is_not_lost(world: World) -> None:
    """That happens if the caller was signalled while its request was queued."""
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    allocation = FALLOCATE_IN.pack(nodeid, 0, INTERRUPTIBLE, 0, 0)
    world.kernel.send_now(Op.FALLOCATE, nodeid, 1001, allocation)
    world.kernel.send_now(Op.INTERRUPT, 0, 0, INTERRUPT_IN.pack(1001))
    with trio.fail_after(60):
        assert await world.kernel.receive() == (1001, errno.EINTR, b"")


async def test_getattr_waits_until_the_file_has_settled(
    world: World, blocked: BlockedAllocator
) -> None:
    """The caller has got EINTR and may close; the file is kept until it has settled."""
    blocked.undoing = BlockedUndoing()
    nodeid, unique = await _start_allocation(world, blocked)
    await world.kernel.send(Op.INTERRUPT, 0, INTERRUPT_IN.pack(unique))
    assert await world.kernel.receive() == (unique, errno.EINTR, b"")
    unique = await world.kernel.send(Op.GETATTR, nodeid)
    await world.kernel.send(Op.RELEASE, nodeid, bytes(24))
    assert (await world.kernel.receive()).unique == unique + 2
    assert world.namespace.inodes[nodeid].opens == 1
    assert world.kernel.is_silent()
    blocked.undoing.end()
    reply = await world.kernel.receive()
    assert reply.unique == unique
    assert reply.attr().blocks == 0
    await trio.testing.wait_all_tasks_blocked()
    assert world.namespace.inodes[nodeid].opens == 0


async def test_an_interrupt_of_an_unknown_request_is_dropped(world: World) -> None:
    await world.kernel.send(Op.INTERRUPT, 0, INTERRUPT_IN.pack(4711))
    assert (await world.kernel.call(Op.GETATTR)).error == 0


# --- busy files -------------------------------------------------------------------


async def _everybody_else_is_answered(world: World, busy: int) -> None:
    """Make calls that do not need the lock of the busy file's inode."""
    kernel = world.kernel
    assert (await kernel.call(Op.GETATTR, busy)).attr().nlink > 0
    assert (await kernel.lookup(b"f")).entry().nodeid == busy
    assert (await kernel.open(busy, os.O_RDWR)).error == 0
    assert (await kernel.release(busy)).error == 0
    other = (await kernel.create(b"other")).entry().nodeid
    assert (await kernel.fallocate(other, 0, 0, PAGE)).error == 0
    moved = RENAME2_IN.pack(1, 0, 0) + b"other\0another\0"
    assert (await kernel.call(Op.RENAME2, 1, moved)).error == 0
    assert (await kernel.call(Op.UNLINK, 1, b"nothing\0")).error == errno.ENOENT
    assert (await kernel.call(Op.UNLINK, 1, b"another\0")).error == 0
    await kernel.release(other)
    await kernel.forget(other, 1)
    # Relayed to pyfuse3, which has an answer.
    assert (await kernel.call(Op.STATFS)).error == 0


MOVES = [
    pytest.param(Op.UNLINK, b"f\0", {"g"}, id="unlink"),
    pytest.param(Op.RENAME, bytes([1]) + bytes(7) + b"f\0h\0", {"g", "h"}, id="from"),
    pytest.param(Op.RENAME, bytes([1]) + bytes(7) + b"g\0f\0", {"f"}, id="onto"),
    pytest.param(
        Op.RENAME2,
        RENAME2_IN.pack(1, syscalls.RENAME_EXCHANGE, 0) + b"g\0f\0",
        {"f", "g"},
        id="exchange",
    ),
]


@pytest.mark.parametrize(("op", "body", "left"), MOVES)
async def test_changes_of_a_busy_files_names_wait(
    world: World,
    tree: Path,
    blocked: BlockedAllocator,
    op: Op,
    body: bytes,
    left: set[str],
) -> None:
    """In the loop they would block: the backing has locked the inode."""
    (tree / "g").touch()
    busy, allocation = await _start_allocation(world, blocked)
    before = {name: (tree / name).stat().st_ino for name in ("f", "g")}
    move = await world.kernel.send(op, 1, body)
    await _everybody_else_is_answered(world, busy)
    assert world.kernel.is_silent()
    assert {name: (tree / name).stat().st_ino for name in ("f", "g")} == before
    blocked.let_go()
    replies = {await world.kernel.receive(), await world.kernel.receive()}
    assert replies == {(allocation, 0, b""), (move, 0, b"")}
    assert set(os.listdir(tree)) == left
    if "f" in left:
        assert (tree / "f").stat().st_ino == before["g"]


async def test_another_name_of_a_busy_file_waits_too(
    world: World, tree: Path, blocked: BlockedAllocator
) -> None:
    busy, _ = await _start_allocation(world, blocked)
    os.link(tree / "f", tree / "never looked up")
    unlink = await world.kernel.send(Op.UNLINK, 1, b"never looked up\0")
    await _everybody_else_is_answered(world, busy)
    blocked.let_go()
    assert unlink in {(await world.kernel.receive()).unique for _ in range(2)}
    assert os.listdir(tree) == ["f"]


async def test_a_call_that_waited_sees_later_changes(
    world: World, tree: Path, blocked: BlockedAllocator
) -> None:
    """If two callers unlink a busy file, the second gets ENOENT."""
    await _start_allocation(world, blocked)
    asked = [await world.kernel.send(Op.UNLINK, 1, b"f\0") for _ in range(2)]
    await trio.testing.wait_all_tasks_blocked()
    blocked.let_go()
    replies = [await world.kernel.receive() for _ in range(3)]
    errors = sorted(reply.error for reply in replies if reply.unique in asked)
    assert errors == [0, errno.ENOENT]
    assert os.listdir(tree) == []


async def test_a_quick_allocation_of_a_busy_file_waits(
    world: World, tree: Path, blocked: BlockedAllocator
) -> None:
    busy, first = await _start_allocation(world, blocked)
    body = FALLOCATE_IN.pack(busy, 0, PAGE, 0, 0)
    second = await world.kernel.send(Op.FALLOCATE, busy, body)
    await _everybody_else_is_answered(world, busy)
    assert (tree / "f").stat().st_blocks == 0
    blocked.let_go()
    assert await world.kernel.receive() == (first, 0, b"")
    assert await world.kernel.receive() == (second, 0, b"")
    assert (tree / "f").stat().st_blocks == PAGE // 512


async def test_o_trunc_waits_and_is_then_refused(
    world: World, tree: Path, blocked: BlockedAllocator
) -> None:
    """By then the file has the size that the allocation gave it."""
    busy, first = await _start_allocation(world, blocked)
    unique = await world.kernel.send(
        Op.OPEN, busy, OPEN_IN.pack(os.O_RDWR | os.O_TRUNC, 0)
    )
    await _everybody_else_is_answered(world, busy)
    assert world.kernel.is_silent()
    os.truncate(tree / "f", PAGE)
    blocked.let_go()
    assert await world.kernel.receive() == (first, 0, b"")
    assert await world.kernel.receive() == (unique, errno.EPERM, b"")
    assert world.namespace.inodes[busy].opens == 1
    assert (tree / "f").stat().st_size == PAGE


async def test_an_interrupted_file_is_busy_until_it_has_settled(
    world: World, tree: Path, blocked: BlockedAllocator
) -> None:
    blocked.undoing = BlockedUndoing()
    _, unique = await _start_allocation(world, blocked)
    await world.kernel.send(Op.INTERRUPT, 0, INTERRUPT_IN.pack(unique))
    assert await world.kernel.receive() == (unique, errno.EINTR, b"")
    unlink = await world.kernel.send(Op.UNLINK, 1, b"f\0")
    await trio.testing.wait_all_tasks_blocked()
    assert world.kernel.is_silent()
    blocked.undoing.end()
    assert await world.kernel.receive() == (unlink, 0, b"")
    assert os.listdir(tree) == []


async def test_the_end_does_not_wait_for_a_busy_file(
    backing: Backing, blocked: BlockedAllocator
) -> None:
    with trio.fail_after(60):
        async with serving(backing, allocator=blocked) as world:
            await _start_allocation(world, blocked)
            await world.kernel.send(Op.UNLINK, 1, b"f\0")
            await trio.testing.wait_all_tasks_blocked()
    assert blocked.cancelled
    assert not world.namespace.opens._superblock.busy


# --- relaying ---------------------------------------------------------------------


@pytest.mark.parametrize("error", [0, errno.EEXIST])
async def test_other_requests_go_to_pyfuse3(world: World, error: int) -> None:
    world.pyfuse3.error, world.pyfuse3.payload = error, b"payload"
    reply = await world.kernel.call(Op.SYMLINK, 1, b"name\0target\0")
    assert (reply.error, reply.payload) == (error, b"" if error else b"payload")
    op, message = world.pyfuse3.seen[-1]
    assert op == Op.SYMLINK
    assert message[40:] == b"name\0target\0"


async def test_security_capability_is_answered_here_and_other_xattrs_are_not(
    world: World,
) -> None:
    def body(name: bytes) -> bytes:
        return GETXATTR_IN.pack(24, 0) + name + b"\0"

    relayed = len(world.pyfuse3.seen)
    reply = await world.kernel.call(Op.GETXATTR, 1, body(b"security.capability"))
    assert reply.error == errno.ENODATA
    assert len(world.pyfuse3.seen) == relayed
    assert (await world.kernel.call(Op.GETXATTR, 1, body(b"user.x"))).error == 0
    assert len(world.pyfuse3.seen) == relayed + 1


async def test_no_more_is_asked_of_pyfuse3_than_its_socket_can_answer(
    world: World,
) -> None:
    """libfuse drops a reply that does not fit; so requests wait here instead."""
    world.pyfuse3.holding = True
    asked = [
        await world.kernel.send(Op.READDIRPLUS, 1, read_in(1 << 20)) for _ in range(40)
    ]
    await trio.testing.wait_all_tasks_blocked()
    assert 1 < len(world.pyfuse3.waiting) < len(asked)

    answered = []
    batches = []
    while batch := [unique for unique, _ in world.pyfuse3.waiting]:
        world.pyfuse3.waiting.clear()
        batches.append(len(batch))
        for unique in batch:
            # Each answer has the largest size; none is read before the last is sent.
            size = int.from_bytes(_message(world, unique)[56:60], "little")
            world.pyfuse3.answer(unique, bytes(size))
        answered += [(await world.kernel.receive()).unique for _ in batch]
        await trio.testing.wait_all_tasks_blocked()
    assert answered == asked
    # All the room is there again each time.
    assert set(batches[:-1]) == {batches[0]}


@pytest.mark.parametrize(
    "number", [errno.ENOBUFS, errno.ENOMEM, errno.ECONNRESET, errno.EAGAIN]
)
async def test_a_request_that_cannot_be_relayed_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It must not end the mount, nor leave its caller waiting."""
    relay, really_send = world.channel._relay._connection, socket.socket.send

    def send(self: socket.socket, data: bytes) -> int:
        if self is relay:
            raise OSError(number, os.strerror(number))
        return really_send(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "send", send)
        for _ in range(2):
            reply = await world.kernel.call(Op.SYMLINK, 1, b"name\0target\0")
            assert reply.error == number
    assert (await world.kernel.call(Op.SYMLINK, 1, b"name\0target\0")).error == 0


async def test_a_reply_that_cannot_be_received_yet_is_received_later(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    relay, really_receive = world.channel._relay._connection, socket.socket.recv_into
    left = 3

    def recv_into(self: socket.socket, buffer: bytearray) -> int:
        nonlocal left
        if self is relay and left:
            left -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return really_receive(self, buffer)

    monkeypatch.setattr(socket.socket, "recv_into", recv_into)
    reply = await world.kernel.call(Op.SYMLINK, 1, b"name\0target\0")
    assert (reply.error, left) == (0, 0)
    assert caplog.text.count("no reply from pyfuse3") == 1


async def test_a_request_that_cannot_be_read_costs_itself(
    backing: Backing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = 3

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal left
            if left:
                left -= 1
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return super().readinto(buffer)

    monkeypatch.setattr(io, "FileIO", Failing)
    async with serving(backing) as world:
        assert (await world.kernel.call(Op.GETATTR, 1, bytes(16))).error == 0
    assert left == 0
    assert caplog.text.count("a request could not be read") == 1


def _message(world: World, unique: int) -> bytes:
    return next(
        message
        for _, message in world.pyfuse3.seen
        if int.from_bytes(message[8:16], "little") == unique
    )


async def test_a_request_larger_than_all_room_goes_alone(world: World) -> None:
    """Its huge buffer is for an xattr; it waits until no other request is relayed."""
    world.pyfuse3.holding = True
    first = await world.kernel.send(Op.STATFS)
    body = GETXATTR_IN.pack(1 << 30, 0) + b"user.x\0"
    second = await world.kernel.send(Op.GETXATTR, 1, body)
    await trio.testing.wait_all_tasks_blocked()
    assert list(world.pyfuse3.waiting) == [(first, Op.STATFS)]
    world.pyfuse3.answer(first)
    await world.kernel.receive()
    await trio.testing.wait_all_tasks_blocked()
    assert world.pyfuse3.waiting[-1] == (second, Op.GETXATTR)
    world.pyfuse3.answer(second)
    assert (await world.kernel.receive()).unique == second


# --- bugs and malformed requests --------------------------------------------------


@pytest.mark.parametrize(
    ("method", "op", "body"),
    [
        ("lookup", Op.LOOKUP, b"x\0"),
        ("create", Op.CREATE, CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"x\0"),
        ("open", Op.OPEN, bytes(8)),
        # In a task of its own.
        ("open", Op.OPEN, os.O_TRUNC.to_bytes(8, "little")),
    ],
)
async def test_a_bug_is_logged_and_answered_with_eio(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    op: Op,
    body: bytes,
) -> None:
    def buggy(self: Namespace | Opens, node: Node, *_: object) -> None:
        raise RuntimeError("a bug")

    owner = Opens if method == "open" else Namespace
    monkeypatch.setattr(owner, method, buggy)
    assert (await world.kernel.call(op, 1, body)).error == errno.EIO
    (record,) = caplog.records
    assert record.exc_info
    assert (await world.kernel.call(Op.GETATTR)).error == 0


@pytest.mark.parametrize(
    ("op", "body"),
    [
        (Op.LOOKUP, b""),
        (Op.LOOKUP, b"no end"),
        (Op.LOOKUP, b"\0"),
        (Op.UNLINK, b"no end"),
        (Op.RMDIR, b""),
        (Op.RENAME, bytes(8) + b"one\0"),
        (Op.RENAME, bytes(7)),
        (Op.RENAME2, bytes(16) + b"one\0no end"),
        (Op.RENAME2, bytes(15)),
        (Op.OPEN, bytes(7)),
        (Op.CREATE, bytes(15)),
        (Op.CREATE, bytes(16)),
        (Op.CREATE, bytes(16) + b"no end"),
        (Op.TMPFILE, bytes(15)),
        (Op.FALLOCATE, bytes(31)),
        (Op.FALLOCATE, b""),
        (Op.GETXATTR, bytes(8)),
        (Op.GETXATTR, bytes(8) + b"no end"),
        (Op.LISTXATTR, bytes(3)),
        (Op.READDIR, bytes(19)),
        (Op.READDIRPLUS, b""),
        (Op.INIT, bytes(15)),
    ],
    ids=lambda value: value.name if isinstance(value, Op) else repr(value)[:12],
)
async def test_a_truncated_request_gets_eio_and_the_channel_goes_on(
    world: World, caplog: pytest.LogCaptureFixture, op: Op, body: bytes
) -> None:
    assert (await world.kernel.call(op, 1, body)).error == errno.EIO
    assert "malformed" in caplog.text
    assert (await world.kernel.call(Op.GETATTR)).error == 0


@pytest.mark.parametrize(
    ("op", "body"),
    [
        (Op.FORGET, b""),
        (Op.FORGET, bytes(7)),
        (Op.BATCH_FORGET, bytes(7)),
        (Op.BATCH_FORGET, BATCH_FORGET_IN.pack(2, 0) + FORGET_ONE.pack(5, 1)),
        (Op.BATCH_FORGET, BATCH_FORGET_IN.pack(0xFFFFFFFF, 0)),
        (Op.INTERRUPT, bytes(7)),
    ],
    ids=str,
)
async def test_a_malformed_request_without_reply_gets_none(
    world: World, caplog: pytest.LogCaptureFixture, op: Op, body: bytes
) -> None:
    await world.kernel.send(op, 1, body)
    # call() insists that the next reply is its own.
    assert (await world.kernel.call(Op.GETATTR)).error == 0
    assert "malformed" in caplog.text


@pytest.mark.parametrize("size", [1, 39])
async def test_a_request_without_a_header_is_dropped(
    world: World, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    await world.kernel.send_raw(bytes(size))
    assert (await world.kernel.call(Op.GETATTR)).error == 0
    assert "no header" in caplog.text


async def test_a_wrong_length_in_the_header_is_detected(world: World) -> None:
    world.kernel.send_now(Op.GETATTR, 1, 77, b"", length=41)
    assert await world.kernel.receive() == (77, errno.EIO, b"")
    assert (await world.kernel.call(Op.GETATTR)).error == 0


async def test_fallocate_without_an_open_file_is_not_enosys(world: World) -> None:
    """After ENOSYS the kernel would never ask for an allocation again."""
    for nodeid, number in ((1, errno.EBADF), (987654, errno.ESTALE)):
        assert (await world.kernel.fallocate(nodeid, 0, 0, PAGE)).error == number


async def test_the_end_of_the_connection_ends_the_channel(backing: Backing) -> None:
    with trio.fail_after(60):
        async with serving(backing):
            pass


# --- replies that the kernel does not take ------------------------------------------


async def test_the_caller_gets_eio_if_the_kernel_refuses_the_reply(
    world: World,
) -> None:
    refusal = OSError(errno.EINVAL, "Invalid argument")
    world.channel._device._refused(7, b"no payload", refusal)
    assert await world.kernel.receive() == (7, errno.EIO, b"")


@pytest.mark.parametrize(
    ("number", "error"),
    [
        pytest.param(errno.EIO, errno.EINVAL, id="EIO itself"),
        pytest.param(errno.EPERM, errno.ENOENT, id="nobody waits"),
    ],
)
async def test_a_refused_reply_is_not_repeated_for_ever(
    world: World, number: int, error: int
) -> None:
    reply = wire.pack_reply(wire.OUT_HEADER_SIZE, -number, 7)
    world.channel._device._refused(7, reply, OSError(error, os.strerror(error)))
    assert world.kernel.is_silent()


async def test_a_reply_that_there_was_no_memory_for_is_sent_again(world: World) -> None:
    """The file has been made: after EIO the kernel would deny its name."""
    reply = wire.pack_reply(wire.OUT_HEADER_SIZE + 4, 0, 7) + b"done"
    refusal = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    world.channel._device._refused(7, reply, refusal)
    assert await world.kernel.receive() == (7, 0, b"done")
    assert world.kernel.is_silent()


@pytest.mark.parametrize(
    "op", [op for op in Op if op != Op.INIT], ids=lambda op: op.name
)
async def test_enosys_is_never_the_reply_to_an_opcode_with_a_handler(
    world: World, op: Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ENOSYS the kernel would never ask again; here any call may raise it."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    world.pyfuse3.error = errno.ENOSYS
    with monkeypatch.context() as patch:
        for name in (
            "lookup",
            "create",
            "tmpfile",
            "unlink",
            "rmdir",
            "rename",
        ):
            patch.setattr(world.namespace, name, refuse)
        for name in ("statx", "attributes"):
            patch.setattr(world.namespace.inodes, name, refuse)
        patch.setattr(world.namespace.opens, "open", refuse)
        patch.setattr(world.namespace.directories, "open", refuse)
        patch.setattr(syscalls, "fallocate_now", refuse)
        body = {
            Op.FALLOCATE: FALLOCATE_IN.pack(nodeid, 0, PAGE, 0, 0),
            Op.CREATE: CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"x\0",
            Op.OPEN: OPEN_IN.pack(os.O_RDWR, 0),
        }.get(op, bytes(16) + b"x\0" + bytes(120))
        if op in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
            await world.kernel.send(op, nodeid, body)
        else:
            reply = await world.kernel.call(op, nodeid, body)
            assert reply.error != errno.ENOSYS


@pytest.mark.parametrize("number", [22.0, None, "EINVAL", -22, 512, 1 << 40], ids=repr)
async def test_an_oserror_without_an_errno_is_a_bug(
    world: World,
    number: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That call gets EIO, and the next one is answered."""

    def broken(*_: object) -> None:
        raise OSError(number, "x")

    with monkeypatch.context() as patch:
        patch.setattr(world.namespace, "lookup", broken)
        assert (await world.kernel.lookup(b"f")).error == errno.EIO
    assert "bug in the handler" in caplog.text
    assert (await world.kernel.lookup(b"f")).entry().nodeid == 0


async def test_other_requests_are_traced_for_who_asks_for_them(world: World) -> None:
    trace = world.namespace.trace
    found: list[Happened] = []
    plain = list(world.channel.handlers)
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    trace.listen(found.append)
    await world.kernel.call(Op.GETATTR, nodeid, bytes(16))
    assert not found
    assert world.channel.handlers == plain
    trace.stop(found.append)
    trace.listen(found.append, requests=True)
    await world.kernel.call(Op.GETATTR, nodeid, bytes(16))
    await world.kernel.lookup(b"none")
    # Once, and as what it is.
    await world.kernel.fallocate(nodeid, 0, 0, PAGE)
    trace.stop(found.append)
    await world.kernel.call(Op.GETATTR, nodeid, bytes(16))
    assert world.channel.handlers == plain
    assert [(one.what, one.event, one.who) for one in found] == [
        ("request", "GETATTR", 1),
        ("request", "LOOKUP", 1),
        ("allocate", "", 1),
    ]
    assert [one.file for one in found] == [nodeid, 1, nodeid]
    assert all(0 < one.began <= one.time for one in found)
