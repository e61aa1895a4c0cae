"""Hostile and failing peers: the mount goes on, and so do other peers."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.syscalls import PUNCH
from tests.mount import support
from tests.mount.peers import Peer, peer
from tests.mount.support import MIB, PAGE, PATIENCE
from tests.mount.unanswered import unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.fuse]


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


# --- a daemon that is stopped ---------------------------------------------------------


class Punch(threading.Thread):
    """A punch in a thread, which a notifier keeps waiting."""

    def __init__(self, path: Path, length: int) -> None:
        super().__init__(daemon=True)
        self._path, self._length = path, length
        self.error: OSError | None = None

    def run(self) -> None:
        from inaccfs import syscalls

        fd = os.open(self._path, os.O_RDWR)
        try:
            syscalls.fallocate(fd, PUNCH, 0, self._length)
        except OSError as exc:
            self.error = exc
        finally:
            os.close(fd)


def stop_for(pid: int, seconds: float, meanwhile: Callable[[], None]) -> None:
    """SIGSTOP a daemon, call *meanwhile*, and continue the daemon after *seconds*."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while support.state(pid) != "T":
            time.sleep(0.001)
        meanwhile()
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("semantics", ["v8", "v10", "guest_memfd"])
def test_peers_that_answered_a_stopped_daemon_are_not_evicted(semantics: str) -> None:
    """A short punch waits in the loop, a long one in a task."""
    with (
        inaccfs.mounted(size="64m", ack_timeout=1.0, semantics=semantics) as mount,
        peer(mount.control) as one,
        peer(mount.control) as other,
    ):
        lengths = {mount.path / "quick": PAGE, mount.path / "long": 8 * MIB}
        shims = [one, other]
        for path, shim in zip(lengths, shims, strict=True):
            path.touch()
            os.truncate(path, 8 * MIB)
            watch(shim, semantics, path.name)
        punches = begin_punches(lengths)
        events = [shim.event() for shim in shims]

        def answer_all() -> None:
            for shim, event in zip(shims, events, strict=True):
                answer(shim, event)

        stop_for(mount.pid, 1.5, answer_all)
        for shim in shims:
            assert shim.answer() == {"return": {}}
        if semantics != "v8":
            for shim in shims:
                answer(shim, shim.event())
                assert shim.answer() == {"return": {}}
        end_punches(punches)
        assert [punch.error for punch in punches] == [None, None]
        assert "disconnected" not in mount.log.read_text()
        # Notifiers that do not answer are still evicted.
        punches = begin_punches(lengths)
        for shim in shims:
            shim.event()
        for shim in shims:
            assert shim.socket.recv(1) == b""
        end_punches(punches)
        assert mount.log.read_text().count("disconnected") == 2


def begin_punches(lengths: Mapping[Path, int]) -> list[Punch]:
    """Begin to punch so many bytes of each file."""
    punches = [Punch(path, length) for path, length in lengths.items()]
    for punch in punches:
        punch.start()
    return punches


def end_punches(punches: Sequence[Punch]) -> None:
    """Wait for the end of each."""
    for punch in punches:
        punch.join(PATIENCE)
        assert not punch.is_alive()


def watch(shim: Peer, semantics: str, name: str = "guest") -> None:
    """Register a notifier of the file, or of its first page."""
    made = (
        shim.do("register-notifier", file=f"/{name}")
        if semantics in ("v8", "v10")
        else shim.do("bind", file=f"/{name}", start=0, end=1)
    )
    assert list(made) == ["notifier"]


def answer(shim: Peer, event: dict[str, object]) -> None:
    """`invalidate-done` without waiting for its reply."""
    shim.begin(
        "invalidate-done", notifier=event["notifier"], sequence=event["sequence"]
    )


def test_of_a_silent_peer_there_is_one_line_however_many_its_notifiers() -> None:
    with (
        inaccfs.mounted(ack_timeout=0.5) as mount,
        peer(mount.control) as shim,
    ):
        path = mount.path / "guest"
        path.touch()
        os.truncate(path, MIB)
        for _ in range(500):
            watch(shim, "v8")
        punch = Punch(path, PAGE)
        punch.start()
        punch.join(PATIENCE)
        assert not punch.is_alive()
        with peer(mount.control) as other:
            assert other.do("query-notifiers") == []
        assert mount.log.read_text().count("\n") == 1


def test_a_peer_that_does_not_read_while_the_daemon_is_stopped_stays() -> None:
    with (
        inaccfs.mounted(ack_timeout=1.0, options="limit=output=10000") as mount,
        peer(mount.control) as shim,
    ):
        count = 1000
        sender = threading.Thread(
            target=lambda: shim.socket.sendall(b'{"execute":"query-commands"}' * count),
            daemon=True,
        )
        sender.start()
        assert "return" in shim.receive()
        stop_for(mount.pid, 1.5, lambda: None)
        for _ in range(count - 1):
            assert "return" in shim.receive()
        sender.join()
        assert mount.log.read_text() == ""


# --- fds whose close never ends -------------------------------------------------------


@support.needs_root
def test_fds_that_hang_cost_the_daemon_nothing(tmp_path: Path) -> None:
    point = tmp_path / "point"
    point.mkdir()
    with inaccfs.mounted(size="64m") as mount:
        path = mount.path / "guest"
        path.touch()
        with ExitStack() as stack:
            stuck = stack.enter_context(unanswered(point))
            before = threads(mount.pid), support.open_fds(mount.pid)
            peers = [stack.enter_context(peer(mount.control)) for _ in range(8)]
            for one in peers:
                for _ in range(4):
                    one.begin("query-stats", *[stuck] * 250)
                    assert "return" in one.answer()
                one.begin("getfd", stuck, fdname="a")
                one.begin("getfd", stuck, fdname="b")
                reply = [one.answer()["error"]["desc"][:6] for _ in range(2)]
                assert reply[0] in ("EINVAL", "EBUSY:")
                assert reply[1] == "EBUSY:"
                one.begin("query-version", *[stuck] * 250)
                one.socket.send(b'{"execute":')
            fd = os.open(path, os.O_RDWR)
            with peer(mount.control) as other:
                # This user has reached the limit.
                assert "EBUSY" in other.do("getfd", fd, fdname="a")
                assert "peers" in other.do("query-stats")
            os.close(fd)
            assert threads(mount.pid) <= before[0] + 4
            assert support.open_fds(mount.pid) <= before[1] + 4 * len(peers) + 8
            os.stat(path)


@support.needs_root
def test_killed_with_fds_that_hang_it_ends(tmp_path: Path) -> None:
    point = tmp_path / "point"
    point.mkdir()
    with ExitStack() as stack:
        # The mount is made before there is such an fd, because its processes would
        # inherit it.
        stack.enter_context(pytest.raises(inaccfs.InaccfsError, match="status -9"))
        mount = stack.enter_context(inaccfs.mounted(size="64m"))
        stuck = stack.enter_context(unanswered(point))
        shim = stack.enter_context(peer(mount.control))
        shim.begin("getfd", stuck, fdname="a")
        assert "EINVAL" in shim.answer()["error"]["desc"]
        shim.begin("query-version", *[stuck] * 250)
        assert "return" in shim.answer()
        pidfd = os.pidfd_open(mount.pid)
        stack.callback(os.close, pidfd)
        os.kill(mount.pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], PATIENCE)[0]


# --- the socket -----------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A socket whose backlog is full, because no connection is accepted."""
    path = tmp_path / "full"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        while True:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(str(path))
            except BlockingIOError:
                break
        yield path


def test_a_socket_that_accepts_no_connection_is_refused_at_once(
    tmp_path: Path, full: Path
) -> None:
    """`mount --control` checks whether a daemon listens there, and does not wait."""
    with (
        pytest.raises(inaccfs.InaccfsError, match="another daemon's"),
        inaccfs.mounted(control=full),
    ):
        pass


def test_a_client_waits_for_a_while(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inaccfs.fuse.finding.DAEMON_SECONDS", 0.1)
    with pytest.raises(
        inaccfs.client.errors.CannotConnectError, match="accepted nobody"
    ):
        inaccfs.connect(full)
