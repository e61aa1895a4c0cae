"""How the blocking client ends: closed, forgotten, forked, without its daemon."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.client import ClientClosedError, ConnectionLostError, Pfn
from inaccfs.control import messages
from inaccfs.control.messages import GetPfn, RegisterNotifier
from inaccfs.errors import NoThreadError
from tests.unit.client_calls import Callback, in_thread, invalidate, some_file
from tests.unit.client_fakes import PATIENCE, FakeDaemon, Peer, hold

if TYPE_CHECKING:
    from inaccfs.client import Client


def test_a_closed_client_says_so(daemon: FakeDaemon) -> None:
    shim = inaccfs.connect(daemon.path)
    memory = shim.file("/a")
    shim.close()
    shim.close()
    with pytest.raises(ClientClosedError, match="connect anew"):
        memory.get_pfn(0)
    with pytest.raises(ClientClosedError, match="connect anew"):
        memory.register_notifier(print)
    memory.close()


def test_a_file_is_closed_quietly_after_the_end_of_the_daemon(
    shim: Client, peer: Peer
) -> None:
    with some_file() as fd, shim.file(fd) as memory:
        peer.hang_up()
        with pytest.raises(ConnectionLostError):
            memory.get_pfn(0)


def test_close_wakes_a_waiting_thread(daemon: FakeDaemon) -> None:
    daemon.handlers[GetPfn] = hold
    shim = inaccfs.connect(daemon.path)
    peer = daemon.peer()
    with in_thread(shim.file("/a").get_pfn, 0) as waiter:
        peer.next(GetPfn)
        shim.close()
        with pytest.raises(ClientClosedError):
            waiter.result(PATIENCE)


def test_close_wakes_a_registering_thread(daemon: FakeDaemon) -> None:
    daemon.handlers[RegisterNotifier] = hold
    shim = inaccfs.connect(daemon.path)
    daemon.peer()
    with in_thread(shim.file("/a").register_notifier, print) as waiter:
        daemon.peer().next(RegisterNotifier)
        shim.close()
        with pytest.raises(ClientClosedError):
            waiter.result(PATIENCE)


def test_to_close_waits_for_a_running_callback(daemon: FakeDaemon) -> None:
    """The callback may use the client until it returns."""
    found: list[Pfn] = []
    entered, may_return = threading.Event(), threading.Event()

    def callback(start: int, end: int) -> None:
        entered.set()
        assert may_return.wait(PATIENCE)
        found.append(memory.get_pfn(start))

    shim = inaccfs.connect(daemon.path)
    daemon.peer()
    memory = shim.file("/a")
    memory.register_notifier(callback)
    daemon.peer().tell(invalidate())
    assert entered.wait(PATIENCE)
    with in_thread(shim.close) as closing:
        assert not closing.done()
        may_return.set()
        closing.result(PATIENCE)
    assert found == [Pfn(1002, 0)]


def test_to_close_ends_though_a_callback_does_not(
    daemon: FakeDaemon,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("inaccfs.client.threads.CALLBACK_SECONDS", 0.05)
    callback = Callback(blocks=True)
    shim = inaccfs.connect(daemon.path)
    daemon.peer()
    shim.file("/a").register_notifier(callback)
    daemon.peer().tell(invalidate())
    assert callback.entered.wait(PATIENCE)
    shim.close()
    assert "has not returned" in caplog.text
    callback.may_return.set()
    assert callback.thread is not None
    callback.thread.join(PATIENCE)


def test_a_callback_may_close_the_client(daemon: FakeDaemon) -> None:
    closed = threading.Event()
    shim = inaccfs.connect(daemon.path)
    daemon.peer()

    def close(start: int, end: int) -> None:
        shim.close()
        closed.set()

    shim.file("/a").register_notifier(close)
    daemon.peer().tell(invalidate())
    assert closed.wait(PATIENCE)
    shim.close()


def test_quit_takes_notifiers_along(daemon: FakeDaemon, shim: Client) -> None:
    def end(*_: object) -> None:
        for peer in daemon.peers:
            peer.tell(messages.Shutdown(reason="quit"))

    daemon.handlers[messages.Quit] = end
    with shim.file("/a").register_notifier(print) as notifier:
        shim.quit()
        for peer in daemon.peers:
            peer.hang_up()
        assert notifier._left.wait(PATIENCE)
    with pytest.raises(ConnectionLostError, match=r"ended \(quit\)"):
        shim.query_version()


FORGOTTEN = """
import sys, inaccfs
shim = inaccfs.connect(sys.argv[1])
shim.file("/a").register_notifier(print)
print("done")
"""


def test_an_interpreter_ends_with_a_forgotten_client(daemon: FakeDaemon) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORGOTTEN, daemon.path],
        check=True,
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n"


NO_THREAD = """
import os, sys, threading, inaccfs, trio
from inaccfs.client import aio

def fds():
    return len(os.listdir("/proc/self/fd"))

async def connect():
    async with aio.connect(sys.argv[1]):
        print("connected")

shim = inaccfs.connect(sys.argv[1])
memory = shim.file("/a")
before = fds()
# As at a limit of processes: no address space has room for such a stack.
threading.stack_size(1 << 62)
for ask in (lambda: memory.register_notifier(print), lambda: trio.run(connect)):
    try:
        ask()
    except inaccfs.InaccfsError as exc:
        print(exc, fds() - before)
threading.stack_size(0)
memory.register_notifier(print).unregister()
trio.run(connect)
shim.close()
"""


def test_without_a_thread_a_client_says_so_and_works_on(daemon: FakeDaemon) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_THREAD, daemon.path],
        check=True,
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    said = f"{NoThreadError()} 0"
    assert done.stdout.splitlines() == [said, said, "connected"]


FORKED = """
import os, sys, inaccfs

shim = inaccfs.connect(sys.argv[1])
memory = shim.file(os.open("/dev/null", os.O_RDWR))
notifier = memory.register_notifier(print)
memory.put_pfn(1, wait=False)
pid = os.fork()
if pid == 0:
    fds = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    names = [os.readlink(fd) for fd in fds if os.path.exists(fd)]
    print(sum(name.startswith("socket:") for name in names))
    try:
        shim.query_version()
    except inaccfs.ControlError as exc:
        print("parent" in str(exc))
    notifier.unregister()
    shim.close()
    memory.close()
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(memory.get_pfn(1).pfn)
notifier.unregister()
shim.close()
"""


def test_a_child_has_no_part_in_its_parents_client(daemon: FakeDaemon) -> None:
    """The child neither sends on the parent's connections nor keeps them open."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, daemon.path],
        check=True,
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["0", "True", "1001"]
