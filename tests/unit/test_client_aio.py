"""The trio client, against a fake daemon at a real socket."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from inaccfs.client import (
    MFD_INACCESSIBLE,
    ClientClosedError,
    ConnectionLostError,
    ControlError,
    Pfn,
    aio,
    tasks,
)
from inaccfs.control import messages
from inaccfs.control.messages import (
    CloseFd,
    Extent,
    GetFd,
    GetMemory,
    GetPfn,
    Invalidate,
    InvalidateDone,
    MemfdCreate,
    PutExtent,
    PutPfn,
    QueryVersion,
    RegisterNotifier,
    Unfreeze,
    UnpinPages,
    UnregisterNotifier,
)
from inaccfs.errors import NotMountedError
from tests.unit.client_fakes import (
    PATIENCE,
    FakeDaemon,
    GivenFd,
    Peer,
    hold,
    no_fds_leak,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@asynccontextmanager
async def connected(daemon: FakeDaemon) -> AsyncIterator[tuple[aio.Client, Peer]]:
    """A client, and the daemon's end of its connection."""
    with trio.fail_after(PATIENCE):
        async with aio.connect(daemon.path) as shim:
            yield shim, daemon.peer()


@pytest.fixture
async def both(daemon: FakeDaemon) -> AsyncIterator[tuple[aio.Client, Peer]]:
    async with connected(daemon) as made:
        yield made


def invalidate(notifier: int = 1, sequence: int = 1) -> Invalidate:
    return Invalidate(notifier=notifier, start=2, end=5, sequence=sequence)


async def next_of(peer: Peer, kind: type[Any]) -> Any:
    """`Peer.next`, in a thread: the client's reader is a task of this one."""
    return await trio.to_thread.run_sync(peer.next, kind)


async def next_any(peer: Peer) -> Any:
    return await trio.to_thread.run_sync(peer.next_any)


# --- connecting -------------------------------------------------------------------


async def test_a_path_that_is_neither_a_mount_nor_a_socket(scratch: Path) -> None:
    with pytest.raises(NotMountedError, match="neither an inaccfs mount nor"):
        async with aio.connect(scratch):
            pass


@pytest.mark.parametrize("greeting", ["none", "late"])
async def test_connecting_can_be_cancelled_and_leaves_nothing(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, greeting: str
) -> None:
    """This is also true when the connection exists by then."""
    begun, over = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    cancelled = threading.Event()
    dial = tasks._Dialing._dial

    def slow(self: tasks._Dialing) -> Any:
        trio.from_thread.run_sync(begun.set, trio_token=token)
        if greeting == "late":
            assert cancelled.wait(PATIENCE)
        try:
            return dial(self)
        finally:
            over.set()

    monkeypatch.setattr(tasks._Dialing, "_dial", slow)
    with no_fds_leak(), trio.fail_after(PATIENCE):
        daemon = FakeDaemon(str(scratch / "socket"))
        if greeting == "none":
            daemon.greeting = b""
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await begun.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel)
            async with aio.connect(daemon.path):
                raise AssertionError("it was cancelled before")
        cancelled.set()
        await trio.to_thread.run_sync(daemon.peer)
        for peer in daemon.peers:
            if greeting == "none":
                peer.hang_up()
        await trio.to_thread.run_sync(over.wait, PATIENCE)
        daemon.close()


async def test_a_connection_that_comes_with_the_cancellation_is_closed(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has ended; its waiting task was cancelled before it got the result."""
    token = trio.lowlevel.current_trio_token()
    scope = trio.CancelScope()
    dial = tasks._Dialing._dial

    def cancel_and_wait() -> None:
        scope.cancel()

    def late(self: tasks._Dialing) -> Any:
        made = dial(self)
        trio.from_thread.run_sync(cancel_and_wait, trio_token=token)
        return made

    monkeypatch.setattr(tasks._Dialing, "_dial", late)
    with scope:
        async with aio.connect(daemon.path):
            raise AssertionError("it was cancelled before")
    assert scope.cancelled_caught


# --- commands ---------------------------------------------------------------------


async def test_pages_are_got_and_put(both: tuple[aio.Client, Peer]) -> None:
    shim, peer = both
    memory = await shim.file("/guest0")
    assert await memory.get_pfn(3) == Pfn(1003, 0)
    assert await memory.get_pfns(0, 9) == [messages.Extent(0, 1000, 9, 0)]
    await memory.put_pfn(1003)
    assert [await next_any(peer) for _ in range(3)] == [
        GetPfn(file="/guest0", offset=3),
        GetPfn(file="/guest0", offset=0, count=9),
        PutPfn(file="/guest0", pfn=1003),
    ]
    assert await shim.query_version() == messages.version()
    assert await shim.execute(QueryVersion()) == messages.version()


async def test_both_faces_have_the_same_names() -> None:
    from inaccfs.client import blocking, blockingfile, threads

    def names(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    # A trio client ends with its block, and only then.
    assert names(blocking.Client) - names(aio.Client) == {"close"}
    assert names(aio.Client) <= names(blocking.Client)
    assert names(blockingfile.File) == names(aio.File)
    assert names(threads.Notifier) == names(aio.Notifier)


async def test_a_refusal_is_an_oserror(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "offset 7 lies past the end (4 pages)")

    daemon.handlers[GetPfn] = refuse
    memory = await both[0].file("/a")
    with pytest.raises(OSError, match="past the end") as caught:
        await memory.get_pfn(7)
    assert caught.value.errno == errno.EINVAL
    assert not isinstance(caught.value, ControlError)


async def test_tasks_share_a_client_and_do_not_wait_for_each_other(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer]
) -> None:
    shim, peer = both
    daemon.handlers[GetPfn] = hold
    memory = await shim.file("/a")
    found: dict[int, Pfn] = {}

    async def get(offset: int) -> None:
        found[offset] = await memory.get_pfn(offset)

    async with trio.open_nursery() as nursery:
        for offset in range(20):
            nursery.start_soon(get, offset)
        offsets = [(await next_of(peer, GetPfn)).offset for _ in range(20)]
        # All of them have been sent, and the client still executes other commands.
        assert found == {}
        assert sorted(offsets) == list(range(20))
        for offset in offsets:
            peer.release(messages.Frames(pfn=offset, order=0))
    assert found == {offset: Pfn(offset, 0) for offset in range(20)}


async def test_an_exception_of_the_body_leaves_the_block(
    daemon: FakeDaemon,
) -> None:
    """It is not wrapped in an ExceptionGroup."""
    with pytest.raises(ZeroDivisionError):
        async with connected(daemon):
            raise ZeroDivisionError


async def test_the_end_of_the_daemon_is_raised_in_waiting_and_later_calls(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer]
) -> None:
    daemon.handlers[GetPfn] = lambda peer, _: peer.hang_up()
    memory = await both[0].file("/a")
    for _ in range(2):
        with pytest.raises(ConnectionLostError, match="hung up"):
            await memory.get_pfn(1)


async def test_more_is_sent_than_there_is_room_for(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer]
) -> None:
    """A task that is cancelled meanwhile does not cut a message in two."""
    shim, peer = both
    busy, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def wait(*_: object) -> None:
        trio.from_thread.run_sync(busy.set, trio_token=token)
        assert go_on.wait(PATIENCE)

    daemon.handlers[messages.MemoryFailure] = wait
    memory = await shim.file("/" + "x" * 4000)
    found: list[Pfn] = []

    async def get() -> None:
        found.append(await memory.get_pfn(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.memory_failure, 0)
        await busy.wait()
        async with trio.open_nursery() as cancelled:
            for _ in range(200):
                nursery.start_soon(get)
                cancelled.start_soon(get)
            await wait_all_tasks_blocked()
            assert shim._connection._outlet
            cancelled.cancel_scope.cancel()
        go_on.set()
    assert found == [Pfn(1001, 0)] * 200
    for _ in found:
        assert (await next_of(peer, PutPfn)).pfn == 1001


# --- cancellation -----------------------------------------------------------------


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


# --- fds --------------------------------------------------------------------------


async def test_a_file_by_its_fd(
    daemon: FakeDaemon, both: tuple[aio.Client, Peer]
) -> None:
    shim, peer = both
    came: list[os.stat_result] = []

    def getfd(peer: Peer, _: GetFd) -> None:
        fd = peer.fds.pop(0)
        came.append(os.fstat(fd))
        os.close(fd)

    daemon.handlers[GetFd] = getfd
    fd = os.open("/dev/null", os.O_RDWR)
    async with await shim.file(fd) as memory:
        await memory.get_pfn(1)
    assert os.path.samestat(came[0], os.fstat(fd))
    os.close(fd)
    name = (await next_of(peer, GetFd)).fdname
    assert await next_any(peer) == GetPfn(file=name, offset=1)
    assert await next_any(peer) == CloseFd(fdname=name)
    with pytest.raises(ValueError, match="closed"):
        await memory.get_pfn(3)
    await memory.close()


async def test_fds_are_given(daemon: FakeDaemon, both: tuple[aio.Client, Peer]) -> None:
    shim, _ = both
    daemon.handlers[MemfdCreate] = lambda *_: GivenFd(os.memfd_create("x"))
    daemon.handlers[GetMemory] = lambda *_: GivenFd(os.memfd_create("x"))
    for fd, inheritable in [
        (await shim.memfd_create("guest"), False),
        (await shim.memfd_create("guest", flags=MFD_INACCESSIBLE), True),
        (await (await shim.file("/a")).get_memory(), False),
    ]:
        assert os.get_inheritable(fd) is inheritable
        os.close(fd)


# --- notifiers --------------------------------------------------------------------


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


# --- the end ----------------------------------------------------------------------


async def test_callbacks_end_with_the_client(daemon: FakeDaemon) -> None:
    entered = trio.Event()

    async def endless(start: int, end: int) -> None:
        entered.set()
        await trio.sleep_forever()

    async with connected(daemon) as (shim, peer):
        await (await shim.file("/a")).register_notifier(endless)
        peer.tell(invalidate())
        await entered.wait()


async def test_a_client_after_its_block_says_that_it_is_closed(
    daemon: FakeDaemon,
) -> None:
    async with connected(daemon) as (shim, _):
        memory = await shim.file("/a")
    with pytest.raises(ClientClosedError, match="connect anew"):
        await memory.get_pfn(1)


async def test_a_task_that_waits_when_the_block_ends_gets_an_error(
    daemon: FakeDaemon,
) -> None:
    daemon.handlers[GetPfn] = hold
    errors: list[BaseException] = []

    async def get(memory: aio.File) -> None:
        try:
            await memory.get_pfn(1)
        except ClientClosedError as exc:
            errors.append(exc)

    async with trio.open_nursery() as nursery, connected(daemon) as (shim, peer):
        nursery.start_soon(get, await shim.file("/a"))
        await next_of(peer, GetPfn)
    assert len(errors) == 1
