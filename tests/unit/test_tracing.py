"""trace-start, TRACE and trace-stop: who may, what comes, and what is lost."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from inaccfs.control import feed as feed_
from inaccfs.control.caller import Caller
from inaccfs.control.feed import MOST_WAITING, command_of
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE
from tests.unit.control_fakes import PAGE, Control, Peer

if TYPE_CHECKING:
    import pytest

    from inaccfs.fuse.nodes import Node

ME = os.getpid()


def allocate(control: Control, node: Node, count: int = 1) -> None:
    """Calls of this process, as the kernel would bring them."""
    file = control.namespace.opens.open(node, os.O_RDWR)
    for _ in range(count):
        file.begin(FALLOC_FL_KEEP_SIZE, 0, PAGE, lambda: lambda exc: None, who=ME)


async def records(peer: Peer) -> list[dict[str, Any]]:
    event = await peer.event()
    assert (event["event"], event["lost"]) == ("TRACE", 0)
    found: list[dict[str, Any]] = event["records"]
    return found


async def test_a_peer_is_sent_what_happens_with_names(control: Control) -> None:
    node = control.make("guest", 4)
    async with control.peer() as peer:
        assert await peer.do("trace_start") == {}
        allocate(control, node)
        (record,) = await records(peer)
        assert 0 < record["began"] <= record["time"]
        del record["began"], record["time"]
        assert record == {
            "kind": "allocate",
            "ino": node.ino,
            "file": "/guest",
            "end": PAGE,
            "pid": ME,
            "command": command_of(ME),
        }
        await peer.do("get_pfn", file="/guest", offset=2)
        (record,) = await records(peer)
        assert (record["kind"], record["peer"], record["pid"]) == ("get", 1, ME)
        assert (record["start"], record["end"]) == (2 * PAGE, 3 * PAGE)


async def test_a_trace_has_only_the_kinds_that_it_is_to_have(control: Control) -> None:
    node = control.make("guest", 4)
    async with control.peer() as peer:
        await peer.do("trace_start", kinds=["get"])
        allocate(control, node)
        await peer.do("get_pfn", file="/guest", offset=2)
        (record,) = await records(peer)
        assert record["kind"] == "get"


async def test_an_unknown_kind_is_refused(control: Control) -> None:
    async with control.peer() as peer:
        assert (await peer.do("trace_start", kinds=["pnuch"])).startswith("EINVAL")
        assert (await peer.do("trace_stop")).startswith("EINVAL")
        # The connection has no trace by that.
        assert await peer.do("trace_start") == {}
        assert (await peer.do("trace_start")).startswith("EBUSY")


async def test_all_of_it_has_come_when_the_trace_is_stopped(control: Control) -> None:
    node = control.make("guest", 4)
    async with control.peer() as peer:
        await peer.do("trace_start")
        allocate(control, node, 1000)
        assert await peer.do("trace_stop") == {"records": 1000, "lost": 0}
        assert sum(len(one["data"]["records"]) for one in peer.events) == 1000
        listeners = control.namespace.trace.listeners
        assert not listeners
        # And once more.
        assert await peer.do("trace_start") == {}
        assert len(listeners) == 1
    await control.peers_down_to(0)
    assert not listeners


async def test_who_does_not_read_loses_records_and_stays(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_, "MOST_WAITING", 300)
    node = control.make("guest", 4)
    async with control.peer() as peer:
        await peer.do("trace_start")
        made = 0
        # Until the socket is full, and what waits is, too.
        while not (lost := lost_of(control)):
            allocate(control, node, 200)
            made += 200
            await trio.testing.wait_all_tasks_blocked(0.005)
        summary = await peer.do("trace_stop")
    assert summary["lost"] == lost
    assert summary["records"] + lost == made
    last = peer.events[-1]["data"]
    assert last["lost"] == lost
    assert sum(len(one["data"]["records"]) for one in peer.events) == made - lost
    times = [each["time"] for one in peer.events for each in one["data"]["records"]]
    assert times == sorted(times)


def lost_of(control: Control) -> int:
    (hear,) = control.namespace.trace.listeners
    lost: int = hear.__self__.lost  # type: ignore[attr-defined] # a Feed's
    return lost


async def test_long_names_do_not_make_a_message_too_long(control: Control) -> None:
    """A message goes as a whole or not at all only up to 32 KiB."""
    node = control.make("\x01" * 255, 4)
    async with control.peer() as peer:
        await peer.do("trace_start")
        allocate(control, node, 100)
        assert await peer.do("trace_stop") == {"records": 100, "lost": 0}
    assert len(peer.events) > 1


async def test_only_root_and_the_owner_may_trace(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Caller, "is_owner", False)
    async with control.peer() as peer:
        assert (await peer.do("trace_start")).startswith("EPERM")
        assert (await peer.do("trace_stop")).startswith("EPERM")
        assert not control.namespace.trace.listeners


async def test_a_bug_in_a_trace_ends_the_trace_and_nothing_else(
    control: Control, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = control.make("guest", 4)
    async with control.peer() as peer:
        await peer.do("trace_start")
        monkeypatch.setattr(feed_.Feed, "first", None)
        allocate(control, node)
        while control.namespace.trace.listeners:  # noqa: ASYNC110
            await trio.sleep(0.001)
        await control.still_serves()
        assert await peer.do("trace_start") == {}
    assert "bug in a trace" in caplog.text
    caplog.clear()


async def test_the_last_records_come_before_the_daemon_ends(control: Control) -> None:
    node = control.make("guest", 4)
    async with control.peer() as peer:
        await peer.do("trace_start")
        allocate(control, node)
        control.server.shut_down("quit")
        assert [(await peer.event())["event"] for _ in range(2)] == [
            "TRACE",
            "SHUTDOWN",
        ]


def test_so_much_may_wait_that_a_reader_can_be_late() -> None:
    assert MOST_WAITING > 10_000


def test_a_command_that_cannot_be_known_is_empty() -> None:
    assert command_of(0) == command_of(2**30) == ""


def test_there_is_room_for_a_message() -> None:
    """One of 32 KiB goes as a whole: `Outlet.offer` counts on it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert ours.send(bytes(32 << 10)) == 32 << 10
