"""The blocking client, against a fake daemon at a real socket."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import inaccfs
from inaccfs import MFD_CLOEXEC, MFD_INACCESSIBLE
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
from inaccfs.control.messages import (
    CloseFd,
    GetFd,
    GetMemory,
    GetPfn,
    Invalidate,
    InvalidateDone,
    MemfdCreate,
    PutPfn,
    QueryVersion,
    RegisterNotifier,
    UnregisterNotifier,
)
from inaccfs.errors import NoThreadError, NotMountedError
from inaccfs.fuse import finding
from inaccfs.semantics import V8
from tests.unit.client_fakes import (
    PATIENCE,
    FakeDaemon,
    GivenFd,
    Peer,
    hold,
    no_fds_leak,
)
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from inaccfs.client import Client


@pytest.fixture
def shim(daemon: FakeDaemon) -> Iterator[Client]:
    with inaccfs.connect(daemon.path) as made:
        yield made


@pytest.fixture
def peer(daemon: FakeDaemon, shim: Client) -> Peer:
    """The daemon's end of the commands' connection."""
    return daemon.peer()


@contextmanager
def in_thread(call: Any, *args: Any) -> Iterator[Any]:
    """Run a call in a thread during the block; gives its Future."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call, *args)


def invalidate(notifier: int = 1, sequence: int = 1) -> Invalidate:
    return Invalidate(notifier=notifier, start=2, end=5, sequence=sequence)


def invalidated(daemon: FakeDaemon, event: Invalidate | None = None) -> Peer:
    """Send the last registered notifier an event, and wait for the answer."""
    events = daemon.peer()
    events.tell(event or invalidate())
    events.next(InvalidateDone)
    return events


class Callback:
    """Remembers its calls; with *blocks* each waits for `may_return`."""

    def __init__(self, *, blocks: bool = False) -> None:
        self.calls: list[tuple[int, int]] = []
        self.thread: threading.Thread | None = None
        self.entered = threading.Event()
        self.may_return = threading.Event()
        if not blocks:
            self.may_return.set()

    def __call__(self, start: int, end: int) -> None:
        self.calls.append((start, end))
        self.thread = threading.current_thread()
        self.entered.set()
        assert self.may_return.wait(PATIENCE)


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


class CtrlC:
    """Interrupts the main thread when it is at a given place.

    A terminal sends its signal wherever the thread is; this waits for the place.
    """

    def __init__(self, innermost: str, caller: str) -> None:
        self._innermost, self._caller = innermost, caller
        self._done = threading.Event()
        # Signals without a pause would leave the thread no time to go on.
        self._handled = threading.Event()

    def _handle(self, _: int, frame: FrameType | None) -> None:
        self._handled.set()
        if self._done.is_set():
            return
        names = [found.f_code.co_name for found, _ in traceback.walk_stack(frame)]
        if names[0] == self._innermost and self._caller in names:
            self._done.set()
            raise KeyboardInterrupt

    def _signal(self) -> None:
        while not self._done.is_set():
            self._handled.clear()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            # Again, if it came just before the thread went to wait in the kernel.
            self._handled.wait(0.01)

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        before = signal.signal(signal.SIGUSR1, self._handle)
        try:
            with in_thread(self._signal):
                try:
                    yield
                finally:
                    self._done.set()
                    self._handled.set()
        finally:
            signal.signal(signal.SIGUSR1, before)


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


# --- fds --------------------------------------------------------------------------


@contextmanager
def some_file() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_file_by_its_fd(daemon: FakeDaemon, shim: Client, peer: Peer) -> None:
    came: list[os.stat_result] = []

    def getfd(peer: Peer, _: GetFd) -> None:
        fd = peer.fds.pop(0)
        came.append(os.fstat(fd))
        os.close(fd)

    daemon.handlers[GetFd] = getfd
    with some_file() as fd:
        with shim.file(fd) as memory, shim.file(fd) as other:
            assert memory.get_pfn(3).pfn == 1003
            other.get_pfn(1)
        assert [os.path.samestat(found, os.fstat(fd)) for found in came] == [True] * 2
    names = [peer.next(GetFd).fdname, peer.next(GetFd).fdname]
    assert len(set(names)) == 2
    assert [peer.next(GetPfn).file for _ in names] == names
    assert [peer.next(CloseFd).fdname for _ in names] == names[::-1]
    with pytest.raises(ValueError, match="closed"):
        memory.get_pfn(3)


def test_a_file_that_the_daemon_does_not_want(daemon: FakeDaemon, shim: Client) -> None:
    def refuse(peer: Peer, _: GetFd) -> None:
        os.close(peer.fds.pop())
        raise OSError(errno.EINVAL, "no file of this mount")

    daemon.handlers[GetFd] = refuse
    with some_file() as fd, no_fds_leak(), pytest.raises(OSError, match="no file of"):
        shim.file(fd)


def test_an_argument_that_is_no_file(shim: Client) -> None:
    with pytest.raises(ValueError, match="begins with /"):
        shim.file("guest0")
    with refused(errno.EBADF):
        shim.file(1 << 20)


@pytest.mark.parametrize("flags", [MFD_CLOEXEC | MFD_INACCESSIBLE, MFD_INACCESSIBLE])
def test_memfd_create_gives_an_fd_and_keeps_no_name(
    daemon: FakeDaemon, shim: Client, peer: Peer, flags: int
) -> None:
    made = os.memfd_create("x")
    inode = os.fstat(made).st_ino
    daemon.handlers[MemfdCreate] = lambda *_: GivenFd(made)
    fd = shim.memfd_create("guest", flags=flags, size=8192)
    try:
        assert os.fstat(fd).st_ino == inode
        assert os.get_inheritable(fd) is not bool(flags & MFD_CLOEXEC)
    finally:
        os.close(fd)
    command = peer.next(MemfdCreate)
    assert (command.memfd, command.flags, command.size) == ("guest", flags, 8192)
    assert peer.next_any() == CloseFd(fdname=command.fdname)


def test_a_memfd_whose_name_cannot_be_closed_is_closed(
    daemon: FakeDaemon, shim: Client
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "a bug")

    daemon.handlers[MemfdCreate] = lambda *_: GivenFd(os.memfd_create("x"))
    daemon.handlers[CloseFd] = refuse
    with no_fds_leak(), pytest.raises(OSError, match="a bug"):
        shim.memfd_create("guest")


def test_get_memory_gives_an_fd(daemon: FakeDaemon, shim: Client) -> None:
    daemon.handlers[GetMemory] = lambda *_: GivenFd(os.memfd_create("x"))
    fd = shim.file("/a").get_memory()
    assert not os.get_inheritable(fd)
    os.close(fd)
    fd = shim.execute(GetMemory(file="/a"))
    os.close(fd)


def test_a_forgotten_file_is_closed_with_its_client(daemon: FakeDaemon) -> None:
    """The fixture counts."""
    with some_file() as fd, inaccfs.connect(daemon.path) as shim:
        shim.file(fd)
        shim.file(fd)


# --- notifiers --------------------------------------------------------------------


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


# --- the end ----------------------------------------------------------------------


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
