"""Peers that flood, do not read, or are many: no other peer is affected."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.control.limits import Limits, Policy
from inaccfs.control.outlet import Outlet
from inaccfs.control.peer import _WAITING_COMMANDS
from inaccfs.control.readers import Readers
from tests.unit.control_fakes import Control, Peer, controlling
from tests.unit.fakes import BlockedCloser, fallocate

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from inaccfs.backing.root import Backing


async def test_replies_come_in_the_order_of_the_commands(control: Control) -> None:
    control.daemon.may_tell_status = trio.Event()
    async with control.peer() as peer:
        commands = ["query-status", "query-version", "query-status", "query-stats"]
        for number, command in enumerate(commands):
            await peer.send(f'{{"execute": "{command}", "id": {number}}}\n')
        await control.daemon.status_asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        control.daemon.may_tell_status.set()
        assert [(await peer.answer())["id"] for _ in commands] == [0, 1, 2, 3]


async def test_a_flood_after_a_command_that_waits_is_not_read(
    control: Control,
) -> None:
    control.daemon.may_tell_status = trio.Event()
    async with control.peer() as peer:
        await peer.send('{"execute": "query-status"}\n')
        count = 5000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, '{"execute": "query-version"}\n' * count)
            await control.daemon.status_asked.wait()
            await trio.testing.wait_all_tasks_blocked()
            (served,) = control.server.peers
            waiting = len(served._requests)
            # One read more, at most.
            assert _WAITING_COMMANDS <= waiting < 4 * _WAITING_COMMANDS
            await control.still_serves()
            control.daemon.may_tell_status.set()
            for _ in range(count + 1):
                assert "return" in await peer.answer()


async def test_a_flood_lets_others_have_their_turn(control: Control) -> None:
    async with control.peer() as peer, trio.open_nursery() as nursery:
        count = 20_000
        nursery.start_soon(peer.send, '{"execute": "query-version"}\n' * count)
        for _ in range(10):
            await control.still_serves()
        for _ in range(count):
            assert "return" in await peer.answer()


async def test_a_peer_that_reads_late_gets_everything(
    scratch: Path, backing: Backing
) -> None:
    """Its commands wait: the daemon keeps at most the limit and one reply."""
    policy = Policy(Limits(output=10_000))
    with trio.fail_after(60):
        async with (
            controlling(str(scratch / "control"), backing, policy) as control,
            control.peer() as peer,
            trio.open_nursery() as nursery,
        ):
            count = 3000
            nursery.start_soon(peer.send, '{"execute": "query-commands"}\n' * count)
            await trio.testing.wait_all_tasks_blocked()
            (served,) = control.server.peers
            assert 10_000 < served.outlet.waiting < 15_000
            for _ in range(count):
                assert "return" in await peer.answer()


async def test_a_peer_that_never_reads_is_disconnected_in_time(
    scratch: Path, backing: Backing, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(Limits(output=10_000), ack_seconds=0.05)
    with trio.fail_after(60):
        async with (
            controlling(str(scratch / "control"), backing, policy) as control,
            control.peer() as peer,
        ):
            with pytest.raises(trio.BrokenResourceError):
                await peer.send('{"execute": "query-commands"}\n' * 100_000)
            await control.peers_down_to(0)
    assert "reads nothing: disconnected" in caplog.text


async def test_unread_events_are_bounded(
    scratch: Path, backing: Backing, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(Limits(output=10_000))
    with trio.fail_after(60):
        async with controlling(str(scratch / "control"), backing, policy) as control:
            async with control.peer():
                (served,) = control.server.peers
                event = b"x" * 5000
                # More than the socket takes, so that some waits.
                for _ in range(1000):
                    served.outlet.send(event)
                    if served.reason:
                        break
                assert served.outlet.waiting <= 20_000
                await control.peers_down_to(0)
            await control.still_serves()
    assert "of events unread: disconnected" in caplog.text


async def test_events_that_wait_are_sent_many_at_a_time(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a turn of the loop for each, a punch with 1,000 notifiers took 200 ms."""
    waits = 0
    really_wait = trio.lowlevel.wait_writable

    async def wait_writable(sock: socket.socket) -> None:
        nonlocal waits
        waits += sock is served._connection
        await really_wait(sock)

    monkeypatch.setattr(trio.lowlevel, "wait_writable", wait_writable)
    count = 5000
    async with control.peer() as peer:
        (served,) = control.server.peers
        for number in range(count):
            served.outlet.send(b'{"event": "%d"}\n' % number)
        left = len(served.outlet)
        assert left > 1000
        for number in range(count):
            assert await peer.receive() == {"event": str(number)}
    assert 0 < waits < left / 20


async def test_replies_to_what_came_together_go_together(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send(2) for each reply took longer than 128 put-pfns did."""
    sends = 0
    really_transmit = Outlet._transmit

    def transmit(self: Outlet, data: bytes | memoryview, fd: int) -> int:
        nonlocal sends
        sends += 1
        return really_transmit(self, data, fd)

    monkeypatch.setattr(Outlet, "_transmit", transmit)
    async with control.peer() as peer:
        sends = 0
        await peer.send("".join(f'{{"execute":"x","id":{n}}}\n' for n in range(100)))
        assert [(await peer.answer())["id"] for _ in range(100)] == list(range(100))
    # A send has 2 KiB, or the replies to one read.
    assert 0 < sends < 20


async def test_one_reply_may_be_longer_than_the_limit(
    scratch: Path, backing: Backing
) -> None:
    policy = Policy(Limits(output=1000, message=2 << 20))
    with trio.fail_after(60):
        async with (
            controlling(str(scratch / "control"), backing, policy) as control,
            control.peer() as peer,
        ):
            long = "x" * (1 << 20)
            answer = await peer.ask(
                json.dumps({"execute": "query-version", "id": long})
            )
            assert answer["id"] == long


async def test_two_hundred_peers_at_once(control: Control) -> None:
    control.make("guest", 4)
    async with AsyncExitStack() as stack:
        peers: list[Peer] = [
            await stack.enter_async_context(control.peer()) for _ in range(200)
        ]
        for peer in peers:
            await peer.send(peer.line("register-notifier", file="/guest") + "\n")
        numbers = {(await peer.answer())["return"]["notifier"] for peer in peers}
        assert len(numbers) == 200
        assert (await peers[0].do("query-stats"))["peers"] == 200
    await control.peers_down_to(0)


async def test_a_peer_that_ends_its_side_still_gets_its_replies(
    control: Control,
) -> None:
    """As of `printf ... | socat - UNIX-CONNECT:...`."""
    control.daemon.may_tell_status = trio.Event()
    async with control.peer() as peer:
        await peer.send('{"execute": "query-status"}\n{"execute": "query-version"}\n')
        await control.daemon.status_asked.wait()
        await peer.stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        control.daemon.may_tell_status.set()
        assert "mountpoint" in (await peer.answer())["return"]
        assert "qemu" in (await peer.answer())["return"]
        await peer.closed()


async def test_shutdown_is_sent_to_peers_that_have_negotiated(
    control: Control,
) -> None:
    async with control.peer() as peer, control.peer(negotiate=False) as stranger:
        control.server.shut_down("SIGTERM")
        assert await peer.event() == {"event": "SHUTDOWN", "reason": "SIGTERM"}
        assert "error" in await stranger.ask('{"execute": "query-version"}')


async def test_a_bug_in_a_command_ends_nothing(
    control: Control, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(control.server.context.files, "all", buggy)
    async with control.peer() as peer:
        assert "EIO: a bug" in await peer.do("query-files")
        assert "return" in await peer.ask('{"execute": "query-version"}')
    assert "bug in the command query-files" in caplog.text


async def test_a_peer_that_hangs_up_with_commands_unread_leaves_nothing_open(
    control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    """The first reply fails, and later commands must not begin."""
    node = control.make("guest", 2000)
    for _ in range(20):
        async with control.peer() as peer:
            line = peer.line("get-pfn", file="/guest", offset=0, count=500) + "\n"
            await peer.send('{"execute": "query-version"}\n' * 100 + line * 100)
        await control.peers_down_to(0)
        assert node.opens == 1
    assert caplog.text == ""


async def test_a_peer_that_is_not_read_from_and_dies_holds_up_no_punch(
    control: Control,
) -> None:
    node = control.make("guest", 4)
    assert node.file is not None
    async with trio.open_nursery() as nursery, control.peer() as peer:
        await peer.do("register-notifier", file="/guest")
        nursery.start_soon(fallocate, node.file, 3, 0, 4096, trio.Event())
        await peer.event()
        register = peer.line("register-notifier", file="/guest") + "\n"
        await peer.send(register * (2 * _WAITING_COMMANDS))
        await trio.testing.wait_all_tasks_blocked()
        (served,) = control.server.peers
        assert served._paused
    assert not node.file.notifiers


async def test_nothing_is_registered_for_a_peer_that_has_said_its_last(
    control: Control,
) -> None:
    control.make("guest", 4)
    control.daemon.may_tell_status = trio.Event()
    async with control.peer() as peer:
        await peer.send('{"execute": "query-status"}\n')
        await peer.send(peer.line("register-notifier", file="/guest") + "\n")
        await control.daemon.status_asked.wait()
        await peer.stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        control.daemon.may_tell_status.set()
        assert "return" in await peer.answer()
        assert "ESHUTDOWN" in (await peer.answer())["error"]["desc"]


async def test_get_pfn_waits_for_memory_that_is_on_its_way_back(
    control: Control,
) -> None:
    """An allocation waits, too: closing a large file takes a while."""
    node = control.make("guest", 4)
    space = BlockedCloser()
    object.__setattr__(control.server.context.superblock, "frees", space)
    space.claim()
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0)
        control.frames.opened[0].full = True
        await peer.send(peer.line("get-pfn", file="/guest", offset=1) + "\n")
        while not space.awaited:  # noqa: ASYNC110 - a thread comes first
            await trio.sleep(0.001)
        control.frames.opened[0].full = False
        space.let_go()
        assert "pfn" in (await peer.answer())["return"]
        control.frames.opened[0].full = True
        assert "ENOSPC" in await peer.do("get-pfn", file="/guest", offset=2)
    await control.peers_down_to(0)
    assert node.opens == 1


def test_a_connection_that_epoll_has_refused_can_be_removed(tmp_path: Path) -> None:
    """epoll_ctl(2) refuses a regular file, as it refuses a socket without room."""
    with closing(Readers()) as readers, open(tmp_path / "file", "wb") as file:
        with pytest.raises(PermissionError):
            readers.add(file.fileno(), lambda times, until: False)
        readers.remove(file.fileno())
