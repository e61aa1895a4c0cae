"""Calls on a file with an allocation under way: they wait, and all others do not."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.fuse.wire import Op
from tests.unit.blocked_fakes import BlockedAllocator, BlockedUndoing
from tests.unit.channel_calls import PAGE, start_allocation
from tests.unit.fakes import (
    FALLOCATE_IN,
    INTERRUPT_IN,
    OPEN_IN,
    RENAME2_IN,
    World,
    serving,
)

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing


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
    busy, allocation = await start_allocation(world, blocked)
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
    busy, _ = await start_allocation(world, blocked)
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
    await start_allocation(world, blocked)
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
    busy, first = await start_allocation(world, blocked)
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
    busy, first = await start_allocation(world, blocked)
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
    _, unique = await start_allocation(world, blocked)
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
            await start_allocation(world, blocked)
            await world.kernel.send(Op.UNLINK, 1, b"f\0")
            await trio.testing.wait_all_tasks_blocked()
    assert blocked.cancelled
    assert not world.namespace.opens._superblock.busy
