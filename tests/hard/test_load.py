"""Many peers, files and references; afterwards nothing of them is left."""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.hard.budget import times
from tests.hard.census import Census, settle
from tests.hard.daemons import actor, running
from tests.mount import raw, support
from tests.mount.peers import Peer, peer
from tests.mount.support import MIB, PAGE, new_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hard.census import Ground
    from tests.hard.daemons import Daemon

pytestmark = pytest.mark.fuse

PEERS: Final = times(32, 256)
FILES: Final = times(2500, 100_000)
REFERENCES: Final = times(60_000, 1_000_000)

# The pages of a file that all peers fetch from: 64 MiB.
PAGES: Final = 16384

# The most CPU time that the daemon's loop may use for other work while a stat(2) waits;
# and the most time that the stat may take, without what both sides waited for a CPU.
# The target in docs/reliability.md is a time on a quiet machine.
CPU_SECONDS: Final = 0.5
STAT_SECONDS: Final = 2.0


def scheduled(pid: int, tid: int) -> tuple[float, float]:
    """For how many seconds a thread has run, and has waited for a CPU."""
    text = Path(f"/proc/{pid}/task/{tid}/schedstat").read_text()
    ran, waited, _ = text.split()
    return int(ran) / 1e9, int(waited) / 1e9


class Latency:
    """The times of stat(2) of a file, which a thread calls again and again."""

    def __init__(self, path: Path, pid: int) -> None:
        """*pid* is the daemon's."""
        self._path = path
        self._loop = pid, pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seconds: list[float] = []
        # What does not depend on what else runs on the machine: the CPU time of the
        # daemon's loop meanwhile, and the times without the waits for a CPU.
        self.cpu_seconds: list[float] = []
        self.own_seconds: list[float] = []

    def _run(self) -> None:
        me = os.getpid(), threading.get_native_id()
        while not self._over.wait(0.001):
            cpu, delays = scheduled(*self._loop)
            delays += scheduled(*me)[1]
            before = time.perf_counter()
            os.stat(self._path)
            seconds = time.perf_counter() - before
            cpu_after, delays_after = scheduled(*self._loop)
            delays_after += scheduled(*me)[1]
            self.seconds.append(seconds)
            self.cpu_seconds.append(cpu_after - cpu)
            self.own_seconds.append(seconds - (delays_after - delays))

    @contextmanager
    def measured(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()

    def __str__(self) -> str:
        found = sorted(self.seconds)
        p50, p99 = (found[len(found) * part // 100] * 1000 for part in (50, 99))
        return (
            f"stat: p50 {p50:.3f} ms, p99 {p99:.3f} ms, worst {found[-1] * 1000:.1f}, "
            f"CPU time of the loop at most {max(self.cpu_seconds) * 1000:.1f}"
        )


def fetch(shim: Peer, first: int, count: int) -> list[dict[str, Any]]:
    """get-pfn of a range, in as many calls as it takes."""
    found: list[dict[str, Any]] = []
    while count:
        extents = shim.do("get-pfn", file="/guest", offset=first, count=count)
        assert "extents" in extents, extents
        got = sum(extent["count"] for extent in extents["extents"])
        assert got
        first, count = first + got, count - got
        found += extents["extents"]
    return found


def punch_with_all(mount: Daemon, peers: list[Peer], first: int) -> None:
    """A punch; every peer gets the event and answers it."""
    with actor(
        "punch", mount.path / "guest", str(first * PAGE), str(8 * PAGE)
    ) as punch:
        assert punch.hear() == "ready"
        punch.say("go")
        assert punch.hear() == "going"
        by_fd = {one.socket.fileno(): one for one in peers}
        left = set(by_fd)
        while left:
            readable, _, _ = select.select(left, [], [], support.PATIENCE)
            assert readable, f"{len(left)} peers have not been told"
            for fd in readable:
                event = by_fd[fd].event()
                assert by_fd[fd].done(event) == {}
                left.discard(fd)
        assert punch.hear() == "ok"


@contextmanager
def loaded(ground: Ground, point: Path, *options: str) -> Iterator[Daemon]:
    """A daemon without idle threads, which must end well."""
    with ExitStack() as stack:
        with running(
            ground, point, *options, module="tests.hard.lean_daemon"
        ) as daemon:
            # The log is open because its name is removed with the mount.
            log = stack.enter_context(daemon.log.open(errors="replace"))
            # The second helper starts after the daemon is ready.
            support.ask_until(lambda: len(support.children_of(daemon.pid)) == 2)
            yield daemon
        assert daemon.process.returncode == 0
        support.assert_clean(log.read())


@pytest.mark.parametrize("source", ["simulated", "auto"])
def test_a_load_leaves_nothing(
    ground: Ground,
    point: Path,
    source: str,
    record_property: Callable[[str, object], None],
) -> None:
    options = ("--size=512m", "--pfn-source", source, "--ack-timeout=600")
    with loaded(ground, point, *options) as mount:
        new_file(point / "asked", PAGE)
        with peer(mount.control) as shim:
            shim.do("query-status")
        before = Census.calm(mount.pid, point)
        latency = Latency(point / "asked", mount.pid)
        with latency.measured():
            _load(mount)
        record_property("latency", str(latency))
        print(f"{PEERS} peers, {FILES} files, {REFERENCES} references: {latency}")
        assert max(latency.cpu_seconds) < CPU_SECONDS, str(latency)
        assert max(latency.own_seconds) < STAT_SECONDS, str(latency)
        with peer(mount.control) as shim:
            support.ask_until(lambda: shim.do("query-stats")["peers"] == 1)
            stats = shim.do("query-stats")
        for name in ("references", "fetched", "notifiers", "evictions"):
            assert stats[name] == 0, stats
        settle_to(before, mount)


def settle_to(before: Census, mount: Daemon) -> None:
    """Wait until no resource is above its count *before*."""
    settle(lambda: Census.of(mount.pid, mount.path).more_than(before), {}, "left")


def _load(mount: Daemon) -> None:
    guest = new_file(mount.path / "guest", PAGES * PAGE)
    os.mkdir(mount.path / "many")
    for number in range(FILES):
        os.mknod(mount.path / "many" / str(number))
    share = REFERENCES // PEERS
    with ExitStack() as stack:
        peers = [stack.enter_context(peer(mount.control)) for _ in range(PEERS)]
        got = []
        for number, one in enumerate(peers):
            assert "notifier" in one.do("register-notifier", file="/guest")
            first = number * 977 % (PAGES - share % PAGES)
            got.append(_fetch_share(one, first, share))
        stats = peers[0].do("query-stats")
        assert stats["references"] == sum(map(len_of, got)) >= share * PEERS
        assert stats["notifiers"] == PEERS
        for first in (0, 8, PAGES - 8):
            punch_with_all(mount, peers, first)
        # Half of the peers put their references, the others only disconnect.
        for one, extents in zip(peers[::2], got[::2], strict=True):
            for extent in extents:
                put = {"pfn": extent["pfn"], "count": extent["count"]}
                assert one.do("put-pfn", file="/guest", **put) == {}
        assert len(os.listdir(mount.path / "many")) == FILES
    with support.opened(guest) as fd:
        raw.punch(fd, 0, PAGES * PAGE)
    os.unlink(guest)
    for number in range(FILES):
        os.unlink(mount.path / "many" / str(number))
    os.rmdir(mount.path / "many")


def _fetch_share(one: Peer, first: int, share: int) -> list[dict[str, Any]]:
    """Fetch *share* pages from page *first* on, from the start again at the end."""
    found: list[dict[str, Any]] = []
    while share:
        count = min(share, PAGES - first)
        found += fetch(one, first, count)
        first, share = 0, share - count
    return found


def len_of(extents: list[dict[str, Any]]) -> int:
    """The number of pages."""
    return sum(extent["count"] for extent in extents)


def test_peers_that_come_and_go(ground: Ground, point: Path) -> None:
    """Each peer has an fd, a notifier and references that it does not put."""
    with loaded(ground, point, "--pfn-source", "simulated") as mount:
        guest = new_file(point / "guest", MIB)
        with peer(mount.control) as shim:
            shim.do("query-status")
        before = Census.calm(mount.pid, point)
        with support.opened(guest) as fd:
            for _ in range(times(100)):
                with peer(mount.control) as shim:
                    assert shim.do("getfd", fd, fdname="mine") == {}
                    assert "notifier" in shim.do("register-notifier", file="mine")
                    assert "extents" in shim.do(
                        "get-pfn", file="mine", offset=0, count=MIB // PAGE
                    )
            raw.punch(fd, 0, MIB)
        settle_to(before, mount)
