"""Fds that peers send: which command gets one; the daemon receives no others."""

from __future__ import annotations

import errno
import os
import socket
import struct
import tempfile
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.control.limits import Policy
from tests.unit.control_fakes import Control, HangingHelper, Peer, controlling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from inaccfs.backing.root import Backing


@pytest.fixture
def helper() -> HangingHelper:
    return HangingHelper()


@pytest.fixture
async def control(
    scratch: Path, backing: Backing, helper: HangingHelper
) -> AsyncIterator[Control]:
    with trio.fail_after(60):
        async with controlling(
            str(scratch / "control"), backing, Policy(), helper=helper
        ) as made:
            yield made


@pytest.fixture
def fd(control: Control) -> Iterator[int]:
    """An fd of a file of the mount."""
    made = control.backing_fd(control.make("guest", 4))
    yield made
    os.close(made)


@pytest.fixture
def foreign() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


def getfd(name: str) -> str:
    return f'{{"execute":"getfd","arguments":{{"fdname":"{name}"}},"id":"{name}"}}'


def query(number: int) -> str:
    return f'{{"execute":"query-version","id":{number}}}'


async def answers(peer: Peer, count: int) -> dict[object, str]:
    """The outcomes of *count* commands by id: an errno's name, or ""."""
    found = {}
    for _ in range(count):
        answer = await peer.answer()
        desc = answer.get("error", {}).get("desc", "")
        found[answer.get("id")] = desc.partition(":")[0]
    return found


# --- which command --------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n"])
async def test_the_first_that_takes_one_gets_it(
    control: Control, fd: int, end: str
) -> None:
    async with control.peer() as peer:
        await peer.send(query(1) + end + getfd("a") + end + getfd("b") + end, fd)
        assert await answers(peer, 3) == {1: "", "a": "", "b": "EBADF"}


async def test_one_that_begins_before_does_not(control: Control, fd: int) -> None:
    """The kernel may join two sends in one read, or not."""
    async with control.peer() as peer:
        stop = stopped_reading(control)
        await peer.send(getfd("a") + getfd("b"))
        await peer.send(getfd("c"), fd)
        stop.set()
        assert await answers(peer, 3) == {"a": "EBADF", "b": "EBADF", "c": ""}
        stop = stopped_reading(control)
        begun = getfd("d")
        await peer.send(begun[:20])
        await peer.send(begun[20:] + query(1) + getfd("e"), fd)
        stop.set()
        assert await answers(peer, 3) == {"d": "EBADF", 1: "", "e": ""}


def stopped_reading(control: Control) -> threading.Event:
    """An event: data that is sent from now on is read at once when the event is set."""
    (served,) = control.server.peers
    inbox = served._inbox
    really_read = inbox.read
    ready = threading.Event()

    def read() -> object:
        from inaccfs.control.inbox import Event

        return really_read() if ready.is_set() else Event.NOTHING

    inbox.read = read  # type: ignore[method-assign, assignment]
    return ready


async def test_each_gets_its_own(control: Control, fd: int) -> None:
    async with control.peer() as peer:
        for name in "abc":
            await peer.send(getfd(name), fd)
        assert await answers(peer, 3) == {"a": "", "b": "", "c": ""}


@pytest.mark.parametrize("cut", [1, 30])
async def test_one_that_is_not_whole_yet_gets_it_when_it_is(
    control: Control, fd: int, cut: int
) -> None:
    async with control.peer() as peer:
        await peer.send(query(1) + getfd("a")[:cut], fd)
        assert await answers(peer, 1) == {1: ""}
        await peer.send(getfd("a")[cut:] + getfd("b"))
        assert await answers(peer, 2) == {"a": "", "b": "EBADF"}


async def test_a_long_message_is_looked_at_to_its_end(
    control: Control, fd: int
) -> None:
    async with control.peer() as peer:
        await peer.send(query(1) + " " * 20_000 + "\n" + getfd("a"), fd)
        assert await answers(peer, 2) == {1: "", "a": ""}


async def test_other_commands_go_on_in_order(control: Control, fd: int) -> None:
    async with control.peer() as peer:
        await peer.send(query(1) + query(2))
        await peer.send(query(3) + getfd("a") + query(4), fd)
        await peer.send(query(5))
        assert list(await answers(peer, 6)) == [1, 2, 3, "a", 4, 5]


# --- fds that no command takes --------------------------------------------------------


async def test_an_fd_that_no_command_takes_is_not_received(
    control: Control, helper: HangingHelper, fd: int, foreign: int
) -> None:
    async with control.peer() as peer:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            await peer.send(query(number), *[foreign] * 250)
            assert await answers(peer, 1) == {number: ""}
        assert "error" in await peer.ask("nonsense", fd)
        await peer.send("\n \n", fd)
        assert helper.reads == []
        assert await peer.do("getfd", fd, fdname="a") == {}
        assert len(os.listdir("/proc/self/fd")) == before
    assert len(helper.reads) == 1


async def test_a_command_that_turns_out_not_to_take_it_leaks_nothing(
    control: Control, fd: int
) -> None:
    async with control.peer() as peer:
        before = len(os.listdir("/proc/self/fd"))
        await peer.send(query(1)[:9], fd)
        await peer.send(query(1)[9:])
        assert await answers(peer, 1) == {1: ""}
        await peer.send('{"execute":', fd)
        await peer.send("]\n" + query(2))
        assert await answers(peer, 2) == {None: "EINVAL", 2: ""}
        assert len(os.listdir("/proc/self/fd")) == before
        await peer.send('{"execute":', fd)
        await trio.testing.wait_all_tasks_blocked()
    await control.peers_down_to(0)
    assert len(os.listdir("/proc/self/fd")) < before


async def test_out_of_band_data_is_in_the_stream(
    control: Control, helper: HangingHelper, foreign: int
) -> None:
    """Otherwise a read past it would drop the byte, and the kernel close its fd."""
    async with control.peer() as peer:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, foreign.to_bytes(4, "little"))]
        await peer.stream.socket.sendmsg([b" "], rights, socket.MSG_OOB)
        await peer.send(query(1))
        assert await answers(peer, 1) == {1: ""}
    assert helper.reads == []


# --- fds whose close hangs ------------------------------------------------------------


async def test_one_foreign_fd_of_a_peer_is_closed_at_a_time(
    control: Control, helper: HangingHelper, fd: int, foreign: int
) -> None:
    helper.hangs = True
    async with control.peer() as peer:
        await peer.send(getfd("a"), foreign)
        await peer.send(getfd("b"), foreign)
        await peer.send(getfd("c"), fd)
        assert await answers(peer, 3) == {"a": "EINVAL", "b": "EBUSY", "c": "EBUSY"}
        assert len(helper.reads) == len(helper.closings) == 1
        helper.closings[0].ended.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await peer.do("getfd", fd, fdname="c") == {}


async def test_there_are_few_of_a_user_however_many_connections_it_has(
    control: Control, helper: HangingHelper, fd: int, foreign: int
) -> None:
    helper.hangs = True
    for _ in range(10):
        async with control.peer() as peer:
            await peer.send(getfd("a"), foreign)
            await answers(peer, 1)
    assert len(helper.closings) == 4
    async with control.peer() as peer:
        assert "EBUSY" in await peer.do("getfd", fd, fdname="a")
        helper.closings[0].ended.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await peer.do("getfd", fd, fdname="a") == {}


async def test_many_peers_may_send_files_of_the_mount_at_once(
    control: Control, helper: HangingHelper, fd: int
) -> None:
    async def show() -> None:
        async with control.peer() as peer:
            assert await peer.do("getfd", fd, fdname="a") == {}

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(show)


async def test_a_helper_that_fails_costs_one_connection(
    control: Control, helper: HangingHelper, fd: int, caplog: pytest.LogCaptureFixture
) -> None:
    helper.fails = OSError(errno.EIO, "killed")
    async with control.peer() as peer, control.peer() as other:
        await peer.send(getfd("a"), fd)
        await peer.closed()
        helper.fails = None
        assert await other.do("getfd", fd, fdname="a") == {}
    assert "no fd can be received: killed" in caplog.text


async def test_closing_a_connection_drops_unread_fds(control: Control, fd: int) -> None:
    """It is closed in a thread, as gigabytes take long to free; no other peer waits."""
    memory = os.memfd_create("large")
    os.ftruncate(memory, 64 << 20)
    syscalls.fallocate(memory, 0, 0, 64 << 20)
    async with control.peer() as peer:
        (served,) = control.server.peers
        stopped_reading(control)
        await peer.send("x", memory)
        os.close(memory)
        served.disconnect("a test")
        await control.peers_down_to(0)
        await control.still_serves()
        await control.all_closed()


async def test_a_socket_that_lingers_keeps_only_its_sender_waiting(
    control: Control,
) -> None:
    """The kernel waits in close(2), for as long as the sender has chosen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        slow = socket.create_connection(server.getsockname())
        reader, _ = server.accept()
    with slow, reader:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
        slow.setblocking(False)
        try:
            while True:
                slow.send(b"x" * 100_000)
        except BlockingIOError:
            pass
        async with control.peer() as peer, control.peer() as other:
            for each in (peer, other):
                await each.send(query(1), slow.fileno())
            slow.close()
            await control.still_serves()
            await other.stream.aclose()
            await control.still_serves()
            reader.close()
            assert await answers(peer, 1) == {1: ""}


# --- a new connection -----------------------------------------------------------------


@asynccontextmanager
async def knocking(control: Control) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_unix_socket(control.path) as stream:
        yield stream


@pytest.mark.parametrize("call", ["setblocking", "getsockopt", "setsockopt", "accept"])
async def test_a_failed_call_for_one_peer_affects_no_other(
    control: Control,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    real = getattr(socket.socket, call)
    failures = 3

    def fail(self: socket.socket, *args: object) -> object:
        nonlocal failures
        # Only on the server's side of the connection.
        if failures and self.getsockname() == control.path:
            failures -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(self, *args)

    async with control.peer() as witness:
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, call, fail)
            while failures:
                async with knocking(control) as stream:
                    if call == "accept":
                        await trio.sleep(0.01)
                    else:
                        assert await stream.receive_some() == b""
        await control.still_serves()
        assert "qemu" in await witness.do("query-version")
    assert caplog.text.count("Cannot allocate memory") == 1


async def test_a_full_epoll_makes_a_peer_wait(
    control: Control,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At fs.epoll.max_user_watches it waits until another fd is removed."""
    readers = control.server.parts.readers
    real = readers.add
    failures = 3

    def add(*args: object) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)  # type: ignore[arg-type] # as they were

    monkeypatch.setattr(readers, "add", add)
    await control.still_serves()
    assert caplog.text.count("No space left") == 1


async def test_without_a_thread_a_connection_is_closed_later(
    control: Control,
    foreign: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At systemd's TasksMax threading raises RuntimeError."""
    failures = 3
    real = trio.lowlevel.start_thread_soon

    def start(*args: object) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError("can't start new thread")
        real(*args)  # type: ignore[arg-type] # as they were

    monkeypatch.setattr("trio._threads.start_thread_soon", start)
    async with control.peer() as peer:
        await peer.send(query(1), foreign)
        await control.still_serves()
        assert await answers(peer, 1) == {1: ""}
    assert failures == 0
    assert caplog.text.count("can't start new thread") == 1
