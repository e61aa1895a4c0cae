"""How clients of real mounts end: killed, closed, without their daemon, too many."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.client import CannotConnectError, ClientClosedError, ConnectionLostError
from inaccfs.errors import DeadDaemonError, NoAnswerError, NotMountedError
from inaccfs.fuse import finding
from tests.mount import support
from tests.mount.client.files import punch
from tests.mount.support import MIB, PATIENCE

if TYPE_CHECKING:
    from inaccfs.client import Client

pytestmark = pytest.mark.fuse

KILLED = """
import sys, threading, inaccfs

def callback(start, end):
    print("got the event", flush=True)
    threading.Event().wait()

shim = inaccfs.connect(sys.argv[1])
memory = shim.file("/guest0")
memory.get_pfns(0, 10)
memory.register_notifier(callback)
print("registered", flush=True)
threading.Event().wait()
"""


def test_a_client_that_is_killed_in_a_callback_delays_no_other(
    mount: inaccfs.Mount, shim: Client, fd: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(mount.path)],
        stdout=subprocess.PIPE,
        env=support.ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"registered\n"
        with ThreadPoolExecutor(1) as pool:
            punching = pool.submit(punch, fd)
            assert process.stdout.readline() == b"got the event\n"
            assert not punching.done()
            process.kill()
            punching.result(PATIENCE)
    support.ask_until(lambda: shim.query_pins().references == [])
    assert shim.query_notifiers() == []


def test_a_closed_client_has_left_nothing(mount: inaccfs.Mount, fd: int) -> None:
    with inaccfs.connect(mount.path) as witness:
        with inaccfs.connect(mount.path) as shim:
            memory = shim.file(fd)
            memory.register_notifier(lambda *_: None)
            memory.get_pfns(0, 10)
            assert witness.query_stats().references == 10
        support.ask_until(lambda: witness.query_stats().peers == 1)
        assert witness.query_stats().references == 0
        with pytest.raises(ClientClosedError, match="connect anew"):
            memory.get_pfn(0)


def test_quit_ends_the_daemon_and_its_notifiers_quietly() -> None:
    with support.mounted() as mount, inaccfs.connect(mount.path) as shim:
        support.new_file(mount.path / "guest0", MIB)
        with shim.file("/guest0").register_notifier(lambda *_: None):
            shim.quit()
            assert mount.process.wait(PATIENCE) == 0
        with pytest.raises(ConnectionLostError, match=r"ended \(quit\)"):
            shim.query_version()


def test_a_daemon_that_dies_is_an_error(mount: inaccfs.Mount) -> None:
    with support.doomed() as doomed, inaccfs.connect(doomed.path) as shim:
        support.new_file(doomed.path / "guest0", MIB)
        notifier = shim.file("/guest0").register_notifier(lambda *_: None)
        support.kill(doomed)
        with pytest.raises(ConnectionLostError, match="hung up"):
            shim.query_version()
        with pytest.raises(ConnectionLostError, match="hung up"):
            notifier.unregister()
        with pytest.raises(DeadDaemonError, match="inaccfs umount"):
            inaccfs.connect(doomed.path)
        with pytest.raises(CannotConnectError, match="daemon is dead"):
            inaccfs.connect(doomed.control)


def test_a_daemon_that_is_stopped_is_an_error(
    mount: inaccfs.Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "DAEMON_SECONDS", 0.1)
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        with pytest.raises(NoAnswerError, match=r"stopped\?"):
            inaccfs.connect(mount.path)
        with pytest.raises(CannotConnectError, match="no greeting came"):
            inaccfs.connect(mount.control)
    finally:
        os.kill(mount.pid, signal.SIGCONT)


def test_a_limit_is_an_error_of_the_command_that_meets_it() -> None:
    """A client with notifiers is two peers."""
    with support.mounted(options="limit=peers=1") as mount:
        support.new_file(mount.path / "guest0", MIB)
        with inaccfs.connect(mount.path) as shim:
            with pytest.raises(ConnectionLostError, match="1 peers are connected"):
                inaccfs.connect(mount.path)
            with pytest.raises(ConnectionLostError, match="--limit peers"):
                shim.file("/guest0").register_notifier(lambda *_: None)
            assert shim.file("/guest0").query().notifiers == 0


def test_a_path_that_is_no_mount(mount: inaccfs.Mount, fd: int) -> None:
    for path in (mount.path / "guest0", mount.path.parent, mount.path / "none"):
        with pytest.raises(NotMountedError, match="neither an inaccfs mount nor"):
            inaccfs.connect(path)


def test_two_hundred_clients_at_once(mount: inaccfs.Mount, fd: int) -> None:
    """These are more than a backlog has room for; some of them have notifiers."""
    events: list[int] = []
    with ExitStack() as stack, ThreadPoolExecutor(20) as pool:
        shims = [
            stack.enter_context(made)
            for made in pool.map(lambda _: inaccfs.connect(mount.path), range(200))
        ]
        for shim in shims[:20]:
            stack.enter_context(
                shim.file("/guest0").register_notifier(lambda *_: events.append(1))
            )
        punch(fd)
        assert len(events) == 20
        assert shims[0].query_stats().peers == 220
