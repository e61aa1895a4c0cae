"""Traces in both faces of the client, against a daemon that a test plays."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import inaccfs
from inaccfs.client import aio
from inaccfs.client.errors import ClientClosedError, ConnectionLostError
from inaccfs.control import messages
from inaccfs.control.messages import TraceRecord, TraceStart, TraceStop, TraceSummary
from tests.unit.client_fakes import FakeDaemon, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs.client.tracing import Trace


def records(*times: int) -> messages.Trace:
    made = [TraceRecord(time=time, kind="punch", ino=5) for time in times]
    return messages.Trace(records=made, lost=0)


@pytest.fixture
def daemon(scratch: Path) -> Iterator[FakeDaemon]:
    made = FakeDaemon(str(scratch / "control"))
    made.handlers[TraceStop] = lambda *_: TraceSummary(records=2, lost=7)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def tracing(daemon: FakeDaemon) -> Iterator[tuple[Trace, Peer]]:
    with inaccfs.connect(daemon.path) as client:
        daemon.peer()
        with client.trace("punch", "answer") as trace:
            peer = daemon.peer()
            assert peer.next(TraceStart).kinds == ["punch", "answer"]
            yield trace, peer


def test_what_happens_is_read_in_order_up_to_the_end(daemon: FakeDaemon) -> None:
    with tracing(daemon) as (trace, peer):
        peer.tell(records(1, 2), records(3))
        times = []
        for record in trace:
            times.append(record.time)
            if record.time == 3:
                peer.tell(records(4))
                trace.stop()
        assert trace.over
        assert trace.lost == 7
        assert trace.read() == []
    assert times[:3] == [1, 2, 3]


def test_a_wait_can_be_limited(daemon: FakeDaemon) -> None:
    with tracing(daemon) as (trace, peer):
        assert trace.read(0) == []
        assert not trace.over
        peer.tell(records(1))
        assert [record.time for record in trace.read(60)] == [1]


def test_it_ends_with_the_daemon(daemon: FakeDaemon) -> None:
    with tracing(daemon) as (trace, peer):
        peer.tell(records(1), messages.Shutdown(reason="quit"))
        peer.hang_up()
        assert [record.time for record in trace] == [1]
        assert trace.over


def test_a_daemon_that_is_killed_is_an_error(daemon: FakeDaemon) -> None:
    with tracing(daemon) as (trace, peer):
        peer.tell(records(1))
        assert len(trace.read()) == 1
        peer.hang_up()
        with pytest.raises(ConnectionLostError):
            trace.read()


def test_a_refusal_is_an_oserror_and_leaves_no_connection(daemon: FakeDaemon) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "for root and the mount's owner only")

    daemon.handlers[TraceStart] = refuse
    with pytest.raises(PermissionError), tracing(daemon):
        pass


def test_it_outlives_its_client(daemon: FakeDaemon) -> None:
    client = inaccfs.connect(daemon.path)
    daemon.peer()
    with client.trace() as trace:
        client.close()
        daemon.peer().tell(records(1))
        assert len(trace.read()) == 1
    trace.close()
    with pytest.raises(ClientClosedError):
        trace.read()


async def test_in_trio_it_is_the_same(daemon: FakeDaemon) -> None:
    async with aio.connect(daemon.path) as client:
        daemon.peer()
        async with client.trace("punch") as trace:
            peer = daemon.peer()
            assert peer.next(TraceStart).kinds == ["punch"]
            peer.tell(records(1, 2))
            times = []
            async for record in trace:
                times.append(record.time)
                if record.time == 2:
                    trace.stop()
            assert times == [1, 2]
            assert trace.lost == 7
            assert trace.over


async def test_a_cancelled_read_loses_nothing(daemon: FakeDaemon) -> None:
    async with aio.connect(daemon.path) as client, client.trace() as trace:
        daemon.peer()
        peer = daemon.peer()
        with trio.move_on_after(0):
            await trace.read()
        peer.tell(records(1))
        assert [record.time for record in await trace.read()] == [1]
