"""The blocking client, against a fake daemon at a real socket."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.client import (
    CannotConnectError,
    ClientClosedError,
    ConnectionLostError,
    ControlError,
    NotControlSocketError,
    Pfn,
    wire,
)
from inaccfs.control import messages, queries
from inaccfs.control.messages import GetPfn, PutPfn, QueryVersion
from inaccfs.errors import NotMountedError
from inaccfs.fuse import finding
from inaccfs.semantics import V8
from tests.unit.client_calls import CtrlC, in_thread
from tests.unit.client_fakes import PATIENCE, FakeDaemon, Peer, hold, no_fds_leak

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.client import Client

# --- connecting -------------------------------------------------------------------


def test_the_package_itself_needs_neither_msgspec_nor_trio() -> None:
    """A program that only mounts must not import the client."""
    code = (
        "import sys, inaccfs; assert not {'msgspec', 'trio'} & set(sys.modules);"
        "inaccfs.connect; assert 'trio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


def test_lazy_names_of_the_package_are_listed() -> None:
    names = set(dir(inaccfs))
    assert {"connect", "ControlError", "MFD_INACCESSIBLE"} <= names
    assert set(inaccfs.__all__) <= names
    with pytest.raises(AttributeError, match="nope"):
        inaccfs.nope  # noqa: B018


def test_flags_are_those_of_memfd_create() -> None:
    assert os.MFD_CLOEXEC == inaccfs.MFD_CLOEXEC
    assert os.MFD_ALLOW_SEALING == inaccfs.MFD_ALLOW_SEALING
    assert os.MFD_HUGETLB == inaccfs.MFD_HUGETLB
    assert inaccfs.MFD_INACCESSIBLE == 8


@pytest.mark.parametrize("kind", ["nothing", "file", "directory"])
def test_a_path_that_is_neither_a_mount_nor_a_socket(scratch: Path, kind: str) -> None:
    path = scratch / "x"
    if kind == "file":
        path.touch()
    if kind == "directory":
        path.mkdir()
    with pytest.raises(NotMountedError, match="neither an inaccfs mount nor") as caught:
        inaccfs.connect(path)
    assert str(path) in str(caught.value)


def test_a_socket_without_a_listener(scratch: Path) -> None:
    path = str(scratch / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(CannotConnectError, match="daemon is dead") as caught:
        inaccfs.connect(path)
    assert isinstance(caught.value, inaccfs.InaccfsError)
    assert isinstance(caught.value, OSError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("accepting", [False, True], ids=["full", "mute"])
def test_a_daemon_that_is_stopped(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, accepting: bool
) -> None:
    """The kernel takes peers in for it, until its backlog is full."""
    monkeypatch.setattr(finding, "DAEMON_SECONDS", 0.05)
    path = str(scratch / "socket")
    with socket.socket(socket.AF_UNIX) as listener, no_fds_leak():
        listener.bind(path)
        listener.listen(0)
        waiting = []
        if not accepting:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[0].connect(path)
        with pytest.raises(CannotConnectError, match=r"\(stopped\?\)|running\?"):
            inaccfs.connect(path)
        for other in waiting:
            other.close()


def test_a_user_that_is_not_admitted_gets_an_error(daemon: FakeDaemon) -> None:
    daemon.greeting = b""
    daemon.handlers[messages.QmpCapabilities] = lambda peer, _: peer.hang_up()

    def turn_away() -> None:
        daemon.peer().hang_up()

    with in_thread(turn_away), pytest.raises(ControlError, match="--allow-uid"):
        inaccfs.connect(daemon.path)


def test_a_server_of_another_kind(daemon: FakeDaemon) -> None:
    daemon.greeting = b"220 mail.example.org ESMTP\r\n"
    with pytest.raises(NotControlSocketError, match="control socket"):
        inaccfs.connect(daemon.path)


# --- commands ---------------------------------------------------------------------


def test_pages_are_got_and_put(shim: Client, peer: Peer) -> None:
    memory = shim.file("/guest0")
    assert memory.get_pfn(3) == Pfn(1003, 0)
    assert memory.get_pfns(0, 262_144) == [messages.Extent(0, 1000, 262_144, 0)]
    memory.put_pfn(1003)
    memory.put_pfn(1000, 5)
    assert [peer.next_any() for _ in range(4)] == [
        GetPfn(file="/guest0", offset=3),
        GetPfn(file="/guest0", offset=0, count=262_144),
        PutPfn(file="/guest0", pfn=1003),
        PutPfn(file="/guest0", pfn=1000, count=5),
    ]


def test_queries_return_their_types(daemon: FakeDaemon, shim: Client) -> None:
    semantics = queries.semantics(V8())
    pins = messages.Pins(pinning="none", extents=[], references=[])
    daemon.handlers |= {
        messages.QuerySemantics: lambda *_: semantics,
        messages.QueryPins: lambda *_: pins,
        messages.QueryFiles: lambda *_: [],
        messages.QueryNotifiers: lambda *_: [],
    }
    assert shim.query_semantics() == semantics
    assert shim.query_pins() == pins
    assert shim.query_files() == []
    assert shim.query_notifiers() == []
    assert shim.query_version() == messages.version()
    assert shim.execute(QueryVersion()) == messages.version()
    assert shim.execute(PutPfn(file="/a", pfn=1)) == messages.Nothing()


def test_a_refusal_is_an_oserror(daemon: FakeDaemon, shim: Client) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "offset 7 lies past the end (4 pages)")

    daemon.handlers[GetPfn] = refuse
    with pytest.raises(OSError, match="past the end") as caught:
        shim.file("/a").get_pfn(7)
    assert caught.value.errno == errno.EINVAL
    assert not isinstance(caught.value, ControlError)
    assert shim.query_version() == messages.version()


def test_threads_share_a_client(shim: Client) -> None:
    memory = shim.file("/a")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(memory.get_pfn, range(400)))
    assert [pfn for pfn, _ in found] == [1000 + n for n in range(400)]


def test_the_end_of_the_daemon_is_raised_in_waiting_and_later_calls(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    daemon.handlers[GetPfn] = lambda peer, _: peer.hang_up()
    memory = shim.file("/a")
    for _ in range(2):
        with pytest.raises(ConnectionLostError, match="hung up"):
            memory.get_pfn(1)
    with pytest.raises(ConnectionError):
        shim.query_version()


def test_ctrl_c_in_a_command_gives_its_result_back_later(
    daemon: FakeDaemon, shim: Client, peer: Peer
) -> None:
    daemon.handlers[GetPfn] = hold
    with CtrlC("read", "do").interrupts(), pytest.raises(KeyboardInterrupt):
        shim.file("/a").get_pfn(1)
    peer.next(GetPfn)
    peer.release(messages.Frames(pfn=77, order=0))
    assert shim.query_version() == messages.version()
    assert peer.next(PutPfn) == PutPfn(file="/a", pfn=77)


@pytest.mark.parametrize("where", ["take", "send_all"])
def test_ctrl_c_among_the_bytes_ends_the_connection(
    shim: Client, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Nobody knows which bytes are lost; the daemon drops all references."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    memory = shim.file("/a")
    with monkeypatch.context() as patch:
        patch.setattr(wire, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            memory.get_pfn(1)
    with pytest.raises(ClientClosedError, match="interrupted"):
        memory.get_pfn(1)
