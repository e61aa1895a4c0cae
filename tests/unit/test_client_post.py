"""The blocking client's posts, which do not wait for replies, against a fake daemon."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import inaccfs
from inaccfs.client import ClientClosedError, ConnectionLostError, Pfn, wire
from inaccfs.client.commands import UNAWAITED
from inaccfs.control import messages
from inaccfs.control.messages import GetPfn, PutPfn
from tests.unit.client_fakes import PATIENCE, FakeDaemon, Hold, Peer, hold
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.client import Client, File


@pytest.fixture
def memory(shim: Client) -> File:
    return shim.file("/a")


def refuse(*_: object) -> None:
    raise OSError(errno.EINVAL, "frame 7 was not got")


def put(memory: File, count: int) -> None:
    for pfn in range(count):
        memory.put_pfn(pfn, wait=False)


@contextmanager
def putting(memory: File, count: int) -> Iterator[Any]:
    """Put from another thread; gives its Future."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(put, memory, count)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_it_is_sent_and_not_waited_for(
    daemon: FakeDaemon, memory: File, peer: Peer
) -> None:
    daemon.handlers[PutPfn] = hold
    memory.put_pfn(7, 2, wait=False)
    assert peer.next(PutPfn) == PutPfn(file="/a", pfn=7, count=2)
    peer.release()


def test_commands_stay_in_order(memory: File, peer: Peer) -> None:
    memory.put_pfn(1, wait=False)
    memory.put_pfn(2, wait=False)
    assert memory.get_pfn(3) == Pfn(1003, 0)
    memory.put_pfn(4, wait=False)
    memory.put_pfn(5)
    assert [peer.next_any() for _ in range(5)] == [
        PutPfn(file="/a", pfn=1),
        PutPfn(file="/a", pfn=2),
        GetPfn(file="/a", offset=3),
        PutPfn(file="/a", pfn=4),
        PutPfn(file="/a", pfn=5),
    ]


def test_a_refusal_is_logged_when_the_client_is_used_next(
    daemon: FakeDaemon,
    shim: Client,
    memory: File,
    caplog: pytest.LogCaptureFixture,
) -> None:
    daemon.handlers[PutPfn] = refuse
    memory.put_pfn(7, wait=False)
    memory.put_pfn(7, wait=False)
    assert shim.query_version() == messages.version()
    assert caplog.messages == ["put-pfn: frame 7 was not got"] * 2


def test_a_refusal_is_logged_when_the_client_is_closed(
    daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.handlers[PutPfn] = refuse
    with inaccfs.connect(daemon.path) as shim:
        put(shim.file("/a"), 3)
    assert caplog.messages == ["put-pfn: frame 7 was not got"] * 3


def test_so_many_answers_are_outstanding_and_no_more(
    daemon: FakeDaemon, memory: File, peer: Peer
) -> None:
    """A thread that only posts waits for replies then, and reads them itself."""
    counts = []

    def hold(peer: Peer, _: PutPfn) -> type[Hold]:
        counts.append(len(peer.waiting) + 1)
        return Hold

    daemon.handlers[PutPfn] = hold
    with putting(memory, 5 * UNAWAITED) as teller:
        for _ in range(UNAWAITED + 1):
            peer.next(PutPfn)
        for _ in range(4 * UNAWAITED - 1):
            peer.release()
            peer.next(PutPfn)
        peer.release()
        teller.result(PATIENCE)
    assert max(counts) == UNAWAITED + 1
    while peer.waiting:
        peer.release()


def test_close_wakes_a_thread_that_waits_for_room(
    daemon: FakeDaemon, memory: File, shim: Client, peer: Peer
) -> None:
    daemon.handlers[PutPfn] = hold
    with putting(memory, 2 * UNAWAITED) as teller:
        for _ in range(UNAWAITED + 1):
            peer.next(PutPfn)
        shim.close()
        with pytest.raises(ClientClosedError):
            teller.result(PATIENCE)


def test_a_dead_daemon_is_reported_soon(
    daemon: FakeDaemon, memory: File, peer: Peer
) -> None:
    daemon.handlers[PutPfn] = lambda peer, _: peer.hang_up()
    for count in (UNAWAITED + 1, 1):
        with pytest.raises(ConnectionLostError, match="hung up"):
            put(memory, count)


def test_close_does_not_wait_for_ever(
    daemon: FakeDaemon,
    memory: File,
    shim: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("inaccfs.client.commands.UNAWAITED_SECONDS", 0.05)
    daemon.handlers[PutPfn] = hold
    put(memory, 3)
    shim.close()
    assert caplog.messages == [f"{daemon.path}: closed, with answers outstanding: 3"]
    with pytest.raises(ClientClosedError):
        memory.put_pfn(1, wait=False)


def test_close_does_not_wait_for_abandoned_commands(
    daemon: FakeDaemon,
    memory: File,
    shim: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a Ctrl-C in a get-pfn the reference is dropped with the client."""
    monkeypatch.setattr("inaccfs.client.commands.UNAWAITED_SECONDS", 0.05)
    daemon.handlers[GetPfn] = hold
    with monkeypatch.context() as patch:
        patch.setattr(wire, "read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            memory.get_pfn(1)
    shim.close()
    assert not caplog.messages


def test_ctrl_c_while_waiting_for_room_harms_nothing(
    daemon: FakeDaemon,
    memory: File,
    shim: Client,
    peer: Peer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon.handlers[PutPfn] = hold
    with monkeypatch.context() as patch:
        patch.setattr(wire, "read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            put(memory, 2 * UNAWAITED)
    for _ in range(UNAWAITED + 1):
        peer.next(PutPfn)
        peer.release()
    assert shim.query_version() == messages.version()


def test_ctrl_c_among_the_bytes_ends_the_connection(
    memory: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(wire, "send_all", interrupt)
        with pytest.raises(KeyboardInterrupt):
            memory.put_pfn(1, wait=False)
    with pytest.raises(ClientClosedError, match="interrupted"):
        memory.put_pfn(1, wait=False)


def test_a_name_that_cannot_be_sent_harms_nothing(shim: Client) -> None:
    with refused(errno.EILSEQ, "UTF-8"):
        shim.file("/\udcff").put_pfn(1, wait=False)
    assert shim.query_version() == messages.version()
