"""Bugs, malformed requests and refused replies: each costs one request."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from inaccfs import syscalls
from inaccfs.fuse import wire
from inaccfs.fuse.namespace import Namespace
from inaccfs.fuse.opens import Opens
from inaccfs.fuse.wire import Op
from tests.unit.channel_calls import PAGE
from tests.unit.fakes import (
    BATCH_FORGET_IN,
    CREATE_IN,
    FALLOCATE_IN,
    FORGET_ONE,
    OPEN_IN,
    World,
    serving,
)

if TYPE_CHECKING:
    from inaccfs.backing.root import Backing
    from inaccfs.fuse.nodes import Node


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
