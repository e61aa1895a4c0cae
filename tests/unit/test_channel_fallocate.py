"""FALLOCATE over the channel: waits, interrupts, and what a trace has of it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.fuse import wire
from inaccfs.fuse.wire import Op
from inaccfs.syscalls import PUNCH
from tests.unit.blocked_fakes import BlockedAllocator, BlockedCall, BlockedUndoing
from tests.unit.channel_calls import INTERRUPTIBLE, LONG, PAGE, start_allocation
from tests.unit.fakes import FALLOCATE_IN, INTERRUPT_IN, LSEEK_IN, READ_IN, World

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.shim.trace import Happened


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


async def test_interrupt_ends_a_long_allocation(
    world: World, blocked: BlockedAllocator
) -> None:
    nodeid, unique = await start_allocation(world, blocked)
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
    nodeid, unique = await start_allocation(world, blocked)
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
