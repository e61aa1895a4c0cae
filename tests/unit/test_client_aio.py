"""The trio client, against a fake daemon at a real socket."""

from __future__ import annotations

import errno
import os
import threading
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
    GetFd,
    GetMemory,
    GetPfn,
    MemfdCreate,
    PutPfn,
    QueryVersion,
)
from inaccfs.errors import NotMountedError
from tests.unit.aio_calls import connected, next_any, next_of
from tests.unit.client_calls import invalidate
from tests.unit.client_fakes import (
    PATIENCE,
    FakeDaemon,
    GivenFd,
    Peer,
    hold,
    no_fds_leak,
)

if TYPE_CHECKING:
    from pathlib import Path

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
