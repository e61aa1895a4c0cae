"""Cancellation in the trio client: everything is given back."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import trio

from inaccfs.control import messages
from inaccfs.control.messages import (
    CloseFd,
    Extent,
    GetPfn,
    MemfdCreate,
    PutExtent,
    PutPfn,
    QueryVersion,
    RegisterNotifier,
    Unfreeze,
    UnpinPages,
    UnregisterNotifier,
)
from tests.unit.aio_calls import next_any, next_of
from tests.unit.client_fakes import FakeDaemon, GivenFd, Peer, hold, no_fds_leak

if TYPE_CHECKING:
    from inaccfs.client import aio


async def test_the_result_of_a_cancelled_command_is_given_back(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer]
) -> None:
    shim, peer = both
    daemon.handlers[GetPfn] = hold
    memory = await shim.file("/a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.get_pfn, 1)
        nursery.start_soon(memory.get_pfns, 1, 5)
        assert {(await next_of(peer, GetPfn)).count for _ in range(2)} == {None, 5}
        nursery.cancel_scope.cancel()
    assert peer.nothing_more()
    for request_id in peer.waiting:
        value = messages.Frames(pfn=77, order=0, extents=[messages.Extent(1, 77, 5, 0)])
        peer.reply(request_id, value)
    puts = [await next_any(peer) for _ in range(2)]
    assert PutPfn(file="/a", pfn=77) in puts
    assert PutPfn(file="/a", extents=[PutExtent(pfn=77, count=5)]) in puts
    assert await shim.query_version() == messages.version()


async def test_a_command_that_is_cancelled_before_is_not_sent(
    both: tuple[aio.Client, Peer],
) -> None:
    shim, peer = both
    memory = await shim.file("/a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await memory.get_pfn(1)
    await shim.query_version()
    assert await next_any(peer) == QueryVersion()


async def test_it_is_given_back_in_a_cancelled_scope_too(
    both: tuple[aio.Client, Peer],
) -> None:
    shim, peer = both
    memory = await shim.file("/a")
    with trio.CancelScope() as scope:
        pfn, _ = await memory.get_pfn(1)
        try:
            scope.cancel()
            await trio.lowlevel.checkpoint()
        finally:
            await memory.put_pfn(pfn)
    await next_of(peer, GetPfn)
    assert await next_any(peer) == PutPfn(file="/a", pfn=1001)


async def test_pins_and_a_freeze_are_given_back_in_a_cancelled_scope_too(
    both: tuple[aio.Client, Peer],
) -> None:
    """All of them, though they take several commands."""
    shim, peer = both
    memory = await shim.file("/a")
    pins = [Extent(offset, 1000 + 2 * offset, 1, 0) for offset in range(600)]
    for give_back, kind, count in (
        (partial(memory.unpin_pages, pins), UnpinPages, 3),
        (partial(memory.put_pfns, pins), PutPfn, 3),
        (memory.unfreeze, Unfreeze, 1),
    ):
        with trio.CancelScope() as scope:
            scope.cancel()
            await give_back()
        assert scope.cancelled_caught
        sent = [await next_any(peer) for _ in range(count)]
        assert {type(command) for command in sent} == {kind}
    assert await shim.query_version() == messages.version()
    assert await next_any(peer) == QueryVersion()


async def test_the_fd_of_a_cancelled_command_is_closed(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer]
) -> None:
    shim, peer = both
    daemon.handlers[MemfdCreate] = hold
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shim.memfd_create, "guest")
        made = await next_of(peer, MemfdCreate)
        nursery.cancel_scope.cancel()
    with no_fds_leak():
        peer.release(GivenFd(os.memfd_create("x")))
        assert await next_any(peer) == CloseFd(fdname=made.fdname)


async def test_a_file_that_is_left_in_cancellation_is_closed(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer]
) -> None:
    """It is closed after the put of late references, which needs the fdname."""
    shim, peer = both
    daemon.handlers[GetPfn] = hold
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        with trio.CancelScope() as scope:
            async with await shim.file(fd) as memory, trio.open_nursery() as nursery:
                nursery.start_soon(memory.get_pfn, 1)
                await next_of(peer, GetPfn)
                scope.cancel()
    finally:
        os.close(fd)
    peer.release(messages.Frames(pfn=77, order=0))
    put = await next_any(peer)
    assert (type(put), put.pfn) == (PutPfn, 77)
    assert await next_any(peer) == CloseFd(fdname=put.file)


async def test_a_registration_that_is_cancelled_is_undone(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer]
) -> None:
    shim, peer = both
    daemon.handlers[RegisterNotifier] = hold
    memory = await shim.file("/a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.register_notifier, print)
        await next_of(peer, RegisterNotifier)
        nursery.cancel_scope.cancel()
    peer.release(messages.Notifier(notifier=5))
    assert await next_any(peer) == UnregisterNotifier(notifier=5)
