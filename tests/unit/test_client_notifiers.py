"""Notifiers of the blocking client, against a fake daemon at a real socket."""

from __future__ import annotations

import errno
import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.client import ConnectionLostError, Pfn
from inaccfs.control import messages
from inaccfs.control.messages import (
    CloseFd,
    GetFd,
    InvalidateDone,
    RegisterNotifier,
    UnregisterNotifier,
)
from tests.unit.client_calls import (
    Callback,
    CtrlC,
    in_thread,
    invalidate,
    invalidated,
    some_file,
)
from tests.unit.client_fakes import PATIENCE, FakeDaemon, Peer, hold
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from inaccfs.client import Client


def test_an_event_is_answered_when_the_callback_returns(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    callback = Callback(blocks=True)
    with shim.file("/a").register_notifier(callback) as notifier:
        assert (notifier.number, notifier.registered) == (1, True)
        events = daemon.peer()
        assert events.next_any() == RegisterNotifier(file="/a")
        events.tell(invalidate())
        assert callback.entered.wait(PATIENCE)
        # While it runs another command can be sent, and the event is not answered yet.
        assert shim.query_version() == messages.version()
        assert events.nothing_more()
        callback.may_return.set()
        assert events.next_any() == InvalidateDone(notifier=1, sequence=1)
    assert callback.calls == [(2, 5)]
    assert callback.thread is not threading.current_thread()
    assert events.next_any() == UnregisterNotifier(notifier=1)
    assert not notifier.registered


def test_a_client_without_notifiers_has_one_connection(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    shim.file("/a").get_pfn(0)
    assert len(daemon.peers) == 1
    for _ in range(3):
        with shim.file("/a").register_notifier(print):
            assert len(daemon.peers) == 2


def test_a_notifier_of_an_fd(daemon: FakeDaemon, shim: Client, peer: Peer) -> None:
    """Each connection has its own fdnames, so the fd is sent on this one, too."""
    with (
        some_file() as fd,
        shim.file(fd) as memory,
        memory.register_notifier(print),
    ):
        events = daemon.peer()
        name = events.next(GetFd).fdname
        assert events.next_any() == RegisterNotifier(file=name)
        assert events.next_any() == CloseFd(fdname=name)


def test_a_registration_that_is_refused(daemon: FakeDaemon, shim: Client) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, "1024 notifiers are registered")

    daemon.handlers[RegisterNotifier] = refuse
    with refused(errno.EDQUOT, "1024"):
        shim.file("/a").register_notifier(print)


def test_an_fd_that_is_refused_for_a_notifier(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    """The error is the one of `getfd`, not that the fdname does not exist."""
    with some_file() as fd, shim.file(fd) as memory:

        def refuse(peer: Peer, _: GetFd) -> None:
            os.close(peer.fds.pop())
            raise OSError(errno.EMFILE, "64 fdnames are taken")

        def no_name(*_: object) -> None:
            raise OSError(errno.ENOENT, "no fdname 'fd0'")

        daemon.handlers[GetFd] = refuse
        daemon.handlers[RegisterNotifier] = no_name
        with pytest.raises(OSError, match="64 fdnames"):
            memory.register_notifier(print)


def test_events_of_several_in_one_piece(daemon: FakeDaemon, shim: Client) -> None:
    first, second = Callback(), Callback()
    memory = shim.file("/a")
    daemon.peer()
    with memory.register_notifier(first), memory.register_notifier(second):
        events = daemon.peer()
        events.tell(invalidate(1, 11), invalidate(2, 12), invalidate(1, 13))
        answers = [events.next(InvalidateDone) for _ in range(3)]
    assert [answer.sequence for answer in answers] == [11, 12, 13]
    assert (len(first.calls), len(second.calls)) == (2, 1)


def test_a_callback_may_use_the_client(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    found: list[Pfn] = []
    memory = shim.file("/a")
    with memory.register_notifier(lambda start, _: found.append(memory.get_pfn(start))):
        invalidated(daemon)
    assert found == [Pfn(1002, 0)]


def test_an_exception_of_a_callback_is_raised_by_the_block(
    daemon: FakeDaemon, shim: Client, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(start: int, end: int) -> None:
        raise ZeroDivisionError(f"{start} {end}")

    with (
        pytest.raises(ZeroDivisionError, match="2 5"),
        shim.file("/a").register_notifier(fail),
    ):
        events = invalidated(daemon)
    assert "ZeroDivisionError" in caplog.text
    # The notifier is unregistered in any case, and the error is raised once.
    events.next(UnregisterNotifier)
    shim.close()


def test_an_exception_of_a_callback_does_not_hide_the_blocks_own(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    def fail(start: int, end: int) -> None:
        raise ZeroDivisionError

    mine = KeyError("mine")

    def leave() -> None:
        with shim.file("/a").register_notifier(fail):
            invalidated(daemon)
            raise mine

    with pytest.raises(KeyError):
        leave()
    assert mine.__notes__ == ["besides, of a notifier: ZeroDivisionError()"]


def test_an_exception_not_raised_yet_is_raised_when_the_client_closes(
    daemon: FakeDaemon,
) -> None:
    def leave(start: int, end: int) -> None:
        sys.exit("as a thread may not")

    shim = inaccfs.connect(daemon.path)
    daemon.peer()
    shim.file("/a").register_notifier(leave)
    invalidated(daemon)
    with pytest.raises(SystemExit, match="as a thread"), shim:
        pass
    shim.close()


@pytest.mark.parametrize("which", ["own", "other"])
def test_a_callback_may_unregister(
    daemon: FakeDaemon, shim: Client, peer: Peer, which: str
) -> None:
    """Neither callback is called for events that were sent before the daemon knew."""
    daemon.handlers[UnregisterNotifier] = hold
    returned = threading.Event()
    calls: list[int] = []
    memory = shim.file("/a")

    def unregister(start: int, end: int) -> None:
        calls.append(start)
        (own if which == "own" else other).unregister()
        returned.set()

    own = memory.register_notifier(unregister)
    second = Callback()
    other = memory.register_notifier(second)
    number = 1 if which == "own" else 2
    events = daemon.peer()
    events.tell(invalidate(1, 11), invalidate(number, 12))
    assert returned.wait(PATIENCE)
    commands = [events.next(InvalidateDone)]
    commands.append(events.next(InvalidateDone))
    assert [command.sequence for command in commands] == [11, 12]
    assert (calls, second.calls) == ([2], [])
    # The reply may come late; a thread that unregisters outside waits for it.
    with in_thread(own.unregister if which == "own" else other.unregister) as waiter:
        assert not waiter.done()
        events.release()
        waiter.result(PATIENCE)
    daemon.handlers.pop(UnregisterNotifier)
    own.unregister()
    other.unregister()


def test_unregister_waits_for_a_running_callback(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    """The daemon would take it for the answer, though the callback still uses pages."""
    callback = Callback(blocks=True)
    notifier = shim.file("/a").register_notifier(callback)
    events = daemon.peer()
    events.tell(invalidate())
    assert callback.entered.wait(PATIENCE)
    with in_thread(notifier.unregister) as waiter:
        events.next(RegisterNotifier)
        assert not waiter.done()
        callback.may_return.set()
        assert events.next_any() == InvalidateDone(notifier=1, sequence=1)
        assert events.next_any() == UnregisterNotifier(notifier=1)
        waiter.result(PATIENCE)


def test_a_callback_cannot_register(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    memory = shim.file("/a")
    with (
        pytest.raises(OSError, match="callback cannot register") as caught,
        memory.register_notifier(lambda *_: memory.register_notifier(print)),
    ):
        invalidated(daemon)
    assert caught.value.errno == errno.EDEADLK


def test_a_client_that_was_disconnected_gets_an_error_and_may_register_again(
    daemon: FakeDaemon, shim: Client, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    memory = shim.file("/a")
    lost = memory.register_notifier(print)
    daemon.peer().hang_up()
    assert lost._left.wait(PATIENCE)
    with pytest.raises(ConnectionLostError, match="log says why"):
        lost.unregister()
    assert not lost.registered
    assert "registered no more" in caplog.text
    assert memory.get_pfn(1).pfn == 1001
    callback = Callback()
    with memory.register_notifier(callback):
        invalidated(daemon, invalidate(2))
    assert callback.calls == [(2, 5)]


def test_ctrl_c_in_a_registration_undoes_it(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    # The connection and its thread exist from now on.
    shim.file("/a").register_notifier(print).unregister()
    daemon.handlers[RegisterNotifier] = hold
    with CtrlC("wait", "register").interrupts(), pytest.raises(KeyboardInterrupt):
        shim.file("/a").register_notifier(print)
    events = daemon.peer()
    events.next(UnregisterNotifier)
    events.next(RegisterNotifier)
    events.release(messages.Notifier(notifier=5))
    assert events.next_any() == UnregisterNotifier(notifier=5)
