"""Notifiers of the trio client, against a fake daemon at a real socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from inaccfs.client import Pfn, aio
from inaccfs.control.messages import (
    GetPfn,
    InvalidateDone,
    RegisterNotifier,
    UnregisterNotifier,
)
from tests.unit.aio_calls import connected, next_any, next_of
from tests.unit.client_calls import invalidate
from tests.unit.client_fakes import FakeDaemon, Peer, hold

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_callbacks_may_be_of_either_kind(both: tuple[aio.Client, Peer]) -> None:
    shim, peer = both
    calls: list[tuple[str, int, int]] = []

    async def slow(start: int, end: int) -> None:
        await trio.lowlevel.checkpoint()
        calls.append(("slow", start, end))

    memory = await shim.file("/a")
    async with (
        await memory.register_notifier(lambda *span: calls.append(("quick", *span))),
        await memory.register_notifier(slow) as notifier,
    ):
        assert (notifier.number, notifier.registered) == (2, True)
        peer.tell(invalidate(1, 11), invalidate(2, 12))
        answers = {(await next_of(peer, InvalidateDone)).sequence for _ in range(2)}
        assert answers == {11, 12}
    assert sorted(calls) == [("quick", 2, 5), ("slow", 2, 5)]
    assert not notifier.registered


async def test_a_slow_callback_delays_no_other_task(
    both: tuple[aio.Client, Peer],
) -> None:
    shim, peer = both
    entered, may_return = trio.Event(), trio.Event()

    async def slow(start: int, end: int) -> None:
        entered.set()
        await may_return.wait()

    memory = await shim.file("/a")
    async with (
        await memory.register_notifier(slow),
        await memory.register_notifier(lambda *_: None),
    ):
        peer.tell(invalidate(1, 11))
        await entered.wait()
        peer.tell(invalidate(2, 12))
        assert (await next_of(peer, InvalidateDone)).sequence == 12
        assert (await memory.get_pfn(1)).pfn == 1001
        assert await next_of(peer, GetPfn)
        assert peer.nothing_more()
        may_return.set()
        assert (await next_of(peer, InvalidateDone)).sequence == 11


async def test_a_callback_may_use_the_client(both: tuple[aio.Client, Peer]) -> None:
    shim, peer = both
    found: list[Pfn] = []
    memory = await shim.file("/a")

    async def callback(start: int, end: int) -> None:
        found.append(await memory.get_pfn(start))

    async with await memory.register_notifier(callback):
        peer.tell(invalidate())
        await next_of(peer, InvalidateDone)
    assert found == [Pfn(1002, 0)]


def fail(start: int, end: int) -> None:
    raise ZeroDivisionError(f"{start} {end}")


async def afail(start: int, end: int) -> None:
    await trio.lowlevel.checkpoint()
    fail(start, end)


@pytest.mark.parametrize("callback", [fail, afail])
async def test_an_exception_of_a_callback_is_raised_by_the_block(
    both: tuple[aio.Client, Peer],
    caplog: pytest.LogCaptureFixture,
    callback: Callable[[int, int], object],
) -> None:
    shim, peer = both
    memory = await shim.file("/a")
    with pytest.raises(ZeroDivisionError, match="2 5"):
        async with await memory.register_notifier(callback):
            await invalidated(peer)
    assert "ZeroDivisionError" in caplog.text
    await next_of(peer, UnregisterNotifier)


async def invalidated(peer: Peer) -> None:
    peer.tell(invalidate())
    await next_of(peer, InvalidateDone)


async def test_an_exception_not_raised_yet_is_raised_when_the_client_ends(
    daemon: FakeDaemon,
) -> None:
    async def use() -> None:
        async with connected(daemon) as (shim, peer):
            await (await shim.file("/a")).register_notifier(fail)
            await invalidated(peer)

    with pytest.raises(ZeroDivisionError):
        await use()


async def test_an_exception_of_a_callback_does_not_hide_the_blocks_own(
    daemon: FakeDaemon,
) -> None:
    mine = KeyError("mine")

    async def use() -> None:
        async with connected(daemon) as (shim, peer):
            await (await shim.file("/a")).register_notifier(fail)
            await invalidated(peer)
            raise mine

    with pytest.raises(KeyError):
        await use()
    assert "ZeroDivisionError" in mine.__notes__[0]


@pytest.mark.parametrize("which", ["own", "other"])
async def test_a_callback_may_unregister(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer], which: str
) -> None:
    shim, peer = both
    daemon.handlers[UnregisterNotifier] = hold
    returned = trio.Event()
    calls: list[int] = []
    memory = await shim.file("/a")

    async def unregister(start: int, end: int) -> None:
        calls.append(start)
        await (own if which == "own" else other).unregister()
        returned.set()

    own = await memory.register_notifier(unregister)
    other = await memory.register_notifier(lambda *_: calls.append(-1))
    number = 1 if which == "own" else 2
    peer.tell(invalidate(1, 11))
    await returned.wait()
    peer.tell(invalidate(number, 12))
    answers = [(await next_of(peer, InvalidateDone)).sequence for _ in range(2)]
    assert answers == [11, 12]
    assert calls == [2]
    async with trio.open_nursery() as nursery:
        nursery.start_soon((own if which == "own" else other).unregister)
        await wait_all_tasks_blocked()
        peer.release()
    del daemon.handlers[UnregisterNotifier]
    await own.unregister()
    await other.unregister()


async def test_unregister_waits_for_a_running_callback(
    both: tuple[aio.Client, Peer],
) -> None:
    shim, peer = both
    entered, may_return = trio.Event(), trio.Event()

    async def slow(start: int, end: int) -> None:
        entered.set()
        await may_return.wait()

    memory = await shim.file("/a")
    notifier = await memory.register_notifier(slow)
    await next_of(peer, RegisterNotifier)
    peer.tell(invalidate())
    await entered.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.unregister)
        await wait_all_tasks_blocked()
        assert peer.nothing_more()
        assert len(nursery.child_tasks) == 1
        may_return.set()
        assert await next_any(peer) == InvalidateDone(notifier=1, sequence=1)
        assert await next_any(peer) == UnregisterNotifier(notifier=1)


async def test_a_notifier_that_is_left_in_cancellation_is_unregistered(
    both: tuple[aio.Client, Peer],
) -> None:
    """It is unregistered after its callback has returned; no task waits for that."""
    shim, peer = both
    entered, may_return = trio.Event(), trio.Event()

    async def slow(start: int, end: int) -> None:
        entered.set()
        await may_return.wait()

    memory = await shim.file("/a")
    with trio.CancelScope() as scope:
        async with await memory.register_notifier(slow):
            peer.tell(invalidate())
            await entered.wait()
            scope.cancel()
    await next_of(peer, RegisterNotifier)
    assert peer.nothing_more()
    may_return.set()
    assert await next_any(peer) == InvalidateDone(notifier=1, sequence=1)
    assert await next_any(peer) == UnregisterNotifier(notifier=1)
