"""Every system call of the daemon fails, once and for some time, with each errno.

What must be true: the mount lives, each caller gets an errno or success, nothing hangs,
at most a bug is logged, and later calls work as before.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from tests.hard.budget import MINUTES, some
from tests.hard.census import Census, children, settle
from tests.hard.daemons import Actor, actor, running, with_seam
from tests.hard.seam import NAMES, errno_name, errnos
from tests.mount import support
from tests.mount.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.hard.census import Ground
    from tests.hard.daemons import Daemon

pytestmark = pytest.mark.fuse

OPTIONS: Final = ("--ack-timeout", "600", "--size", "512m")

# How long a call fails all the time.
SECONDS: Final = 2.0 if MINUTES > 1 else 0.5

# A step takes milliseconds.
HANGS_SECONDS: Final = 20.0


class Played:
    """The process that plays rounds on a mount."""

    def __init__(self, daemon: Daemon, player: Actor) -> None:
        self.daemon = daemon
        self.player = player

    def round(self, while_: str = "all is well") -> dict[str, str]:
        """The outcome of each step. Fails when one hangs, or the daemon ends."""
        self.player.say("go")
        found: dict[str, str] = {}
        name = "nothing yet"
        while True:
            # It may have printed more than one line, which was read already.
            try:
                line = self.player.hear(HANGS_SECONDS)
            except AssertionError as exc:
                raise AssertionError(f"while {while_}: {name!r} hangs") from exc
            if not line:
                break
            name, _, found[name] = line.partition("\t")
        log = self.daemon.log.read_text()[-2000:]
        ended = self.daemon.process.poll() is not None
        assert not ended, f"while {while_}: the daemon has ended: {log}"
        return found

    def kill_idle_workers(self) -> None:
        """Kill the idle worker, so the next round needs a new one."""
        for helper in children(self.daemon.pid):
            for worker in children(helper):
                os.kill(worker, signal.SIGKILL)
            settle(partial(children, helper), [], "workers")

    def assert_well(self, after: str) -> None:
        """Play a round without faults, with a new process if it lost its mount."""
        found = self.round(f"there are no faults, after {after}")
        bad = {name: result for name, result in found.items() if result != "ok"}
        assert bad == {}, f"after {after}: {bad}; {self.daemon.log.read_text()[-2000:]}"


# A private tmpfs counts its own files; in a wrapped directory a walk counts them.
OF_WRAPPED: Final = ("os.listdir",)


@contextmanager
def _options(ground: Ground, name: str) -> Iterator[tuple[str, ...]]:
    """The options of a mount on which a round makes the call *name*."""
    if name not in OF_WRAPPED:
        yield OPTIONS
        return
    backing = ground.path / "backing"
    with support.tmpfs(backing, "size=512m"):
        yield ("--ack-timeout", "600", "--backing", str(backing))
    backing.rmdir()


@contextmanager
def playing(
    ground: Ground, point: Path, seam_path: Path, name: str
) -> Iterator[Played]:
    with (
        _options(ground, name) as options,
        running(ground, point, *options, seam_path=seam_path) as daemon,
        actor("round", point, daemon.control) as player,
    ):
        played = Played(daemon, player)
        played.assert_well("the start")
        yield played


CASES: Final = [(name, number) for name in NAMES for number in errnos(name)]
# First the first errno of each call, then the second: so a short run has most calls.
CASES.sort(key=lambda case: errnos(case[0]).index(case[1]))


def name_of(case: tuple[str, int]) -> str:
    return f"{case[0]}-{errno_name(case[1])}"


@pytest.mark.parametrize("case", some(CASES, 16), ids=name_of)
def test_a_call_fails_once(ground: Ground, point: Path, case: tuple[str, int]) -> None:
    name, number = case
    with (
        with_seam(ground) as (seam, seam_path),
        playing(ground, point, seam_path, name) as played,
    ):

        def held() -> tuple[dict[str, int], int]:
            census = Census.of(played.daemon.pid, point)
            return census.fds, census.memory

        settle(lambda: held()[1], 0, "memory of the first round")
        before = held()
        played.kill_idle_workers()
        if name == "threading.Thread.start":
            # trio's threads end when they were idle for ten seconds.
            settle(lambda: Census.of(played.daemon.pid, point).threads, 1, "threads")
        seam.arm(number, name)
        played.round(f"{name} fails with {errno_name(number)}")
        assert seam.strikes, "the daemon makes no such call: take it off the list"
        seam.disarm()
        played.assert_well("that")
        settle(held, before, "left behind")


# A reply that the device refuses is lost, and only an abort by the kernel would end its
# caller's wait.
ONLY_ONCE: Final = ("io.FileIO.write", "os.writev")
LASTING: Final = [case for case in CASES if case[0] not in ONLY_ONCE]


@pytest.mark.parametrize("case", some(LASTING, 3), ids=name_of)
def test_a_call_fails_for_some_time(
    ground: Ground, point: Path, case: tuple[str, int]
) -> None:
    name, number = case
    with (
        with_seam(ground) as (seam, seam_path),
        playing(ground, point, seam_path, name) as played,
    ):
        played.kill_idle_workers()
        started = time.monotonic()
        seam.arm(number, name, times=1 << 30, seconds=SECONDS)
        while time.monotonic() < started + SECONDS:
            played.round(f"{name} fails with {errno_name(number)}")
        seam.disarm()
        played.assert_well("that")


LATER: Final = [(case, skip) for skip in range(1, 25) for case in CASES]


@pytest.mark.parametrize(
    ("case", "skip"),
    some(LATER, 5),
    ids=lambda value: value if isinstance(value, int) else name_of(value),
)
def test_a_later_call_fails_once(
    ground: Ground, point: Path, case: tuple[str, int], skip: int
) -> None:
    """The second call of a round fails; in the next run the third, and so on."""
    name, number = case
    with (
        with_seam(ground) as (seam, seam_path),
        playing(ground, point, seam_path, name) as played,
    ):
        played.kill_idle_workers()
        seam.arm(number, name, skip=skip)
        played.round(f"call {skip} of {name} fails with {errno_name(number)}")
        seam.disarm()
        played.assert_well("that")


# --- calls without a function of Python ---------------------------------------------


# Calls by the kernel's name, with errnos of their man pages, which strace injects.
INJECTED: Final = [
    ("clone3", "EAGAIN"),
    ("accept4", "EMFILE"),
    ("recvmsg", "ENOMEM"),
    ("mmap", "ENOMEM"),
    ("sendto", "ENOBUFS"),
    ("statx", "ENOMEM"),
    ("fallocate", "ENOSPC"),
    ("io_uring_register", "ENOMEM"),
    ("madvise", "ENOMEM"),
    ("clone", "EAGAIN"),
    ("futex", "EINTR"),
    ("epoll_wait", "EINTR"),
    ("newfstatat", "ENOMEM"),
    ("openat", "ENFILE"),
    ("getdents64", "ENOENT"),
    ("write", "EINTR"),
]


@contextmanager
def injecting(daemon: Daemon, rule: str) -> Iterator[None]:
    """strace(1) on all threads of a daemon, and a *rule* of its --inject."""
    strace = subprocess.Popen(
        [
            *("strace", "-f", "-qq", "-p", str(daemon.pid)),
            *("-e", f"trace={rule.partition(':')[0]}", "-e", f"inject={rule}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        support.ask_until(lambda: _tracer(daemon.pid) == strace.pid)
        yield
    finally:
        strace.send_signal(signal.SIGTERM)
        strace.wait(PATIENCE)


def _tracer(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if "TracerPid" in line)


@pytest.mark.parametrize("mode", ["once", "for some time"])
@pytest.mark.parametrize("case", some(INJECTED, 2), ids="-".join)
def test_a_call_that_only_strace_makes_fail(
    ground: Ground, point: Path, case: tuple[str, str], mode: str
) -> None:
    name, number = case
    if shutil.which("strace") is None:
        pytest.skip("no strace(1)")
    with (
        running(ground, point, *OPTIONS) as daemon,
        actor("round", point, daemon.control) as player,
    ):
        played = Played(daemon, player)
        played.assert_well("the start")
        what = f"strace makes {name} fail with {number}"
        when = "when=1" if mode == "once" else "when=1+"
        with injecting(daemon, f"{name}:error={number}:{when}"):
            started = time.monotonic()
            played.round(what)
            while mode != "once" and time.monotonic() < started + SECONDS:
                played.round(what)
        played.assert_well(what)
