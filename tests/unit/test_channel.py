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
from inaccfs.fuse.wire import Op
from tests.unit.channel_calls import PAGE
from tests.unit.fakes import (
    BATCH_FORGET_IN,
    CREATE_IN,
    FORGET_ONE,
    FUSE_INIT_EXT,
    FUSE_PASSTHROUGH,
    GETXATTR_IN,
    INIT_OUT,
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
    from inaccfs.shim.trace import Happened


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
