"""SIGKILL to the daemon and to umount at each of their system calls, and to workers.

Each time no process may hang, all others go on, the mount is dead only when
its daemon was killed, callers get an errno, and `inaccfs umount` cleans up.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tests.hard.budget import some
from tests.hard.census import children
from tests.hard.daemons import actor, command, environment, running, started, with_seam
from tests.hard.kills import CHANGES, DEAD, OPTIONS, RelayedPeer
from tests.hard.seam import WAIT
from tests.mount import raw, support
from tests.mount.support import MIB, PAGE, PATIENCE, allocated, is_mounted, outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hard.census import Ground
    from tests.hard.daemons import Daemon

pytestmark = pytest.mark.fuse


# --- the daemon, at each of its system calls ------------------------------------------


class Begun(NamedTuple):
    """An operation that a process waits for."""

    over: Callable[[], object]
    # Raises when it hangs.
    wait: Callable[[], object]


class Killed:
    """An operation whose daemon is killed at one of its system calls."""

    def __init__(self, ground: Ground, point: Path) -> None:
        self.ground = ground
        self.point = point

    def prepare(self, daemon: Daemon) -> ExitStack:
        """Prepare the operation; what is returned is closed after the kill."""
        return ExitStack()

    def begin(self, daemon: Daemon) -> Begun:
        """Begin the operation; what is returned must end by itself after the kill."""
        raise NotImplementedError


def _seal(stack: ExitStack, path: Path, size: int) -> None:
    fd = stack.enter_context(support.opened(path, os.O_CREAT | os.O_RDWR))
    os.ftruncate(fd, size)


class SmallPunch(Killed):
    length = PAGE

    def prepare(self, daemon: Daemon) -> ExitStack:
        stack = ExitStack()
        _seal(stack, self.point / "file", 64 * MIB)
        raw.fallocate(
            stack.enter_context(support.opened(self.point / "file")), 0, 0, 64 * MIB
        )
        self.actor = stack.enter_context(self.make())
        assert self.actor.hear() == "ready"
        return stack

    def make(self) -> Any:
        return actor("punch", self.point / "file", "0", str(self.length))

    def begin(self, daemon: Daemon) -> Begun:
        self.actor.say("go")
        assert self.actor.hear() == "going"
        return Begun(self.actor.has_spoken, self.actor.hear)


class LargePunch(SmallPunch):
    length = 32 * MIB


class LongAllocation(SmallPunch):
    """More than 128 MiB, which a worker of the helper allocates."""

    def make(self) -> Any:
        return actor("allocate", self.point / "file", str(200 * MIB))


class MemfdCreate(Killed):
    def prepare(self, daemon: Daemon) -> ExitStack:
        stack = ExitStack()
        self.relay = stack.enter_context(actor("relay", daemon.control))
        self.peer = RelayedPeer(self.relay)
        return stack

    def begin(self, daemon: Daemon) -> Begun:
        self.peer.say("memfd-create", name="m", fdname="m", size=PAGE)
        return Begun(self.relay.has_spoken, self.relay.hear)


class Umount(Killed):
    def begin(self, daemon: Daemon) -> Begun:
        umount = subprocess.Popen(
            command(None, "umount", self.point),
            stderr=subprocess.DEVNULL,
            env=environment(None),
        )

        def wait() -> None:
            try:
                umount.wait(PATIENCE)
            finally:
                umount.kill()
                umount.wait()

        return Begun(lambda: umount.poll() is not None, wait)


OPERATIONS: Final[tuple[type[Killed], ...]] = (
    *(SmallPunch, LargePunch, LongAllocation, MemfdCreate, Umount),
)

# More than the calls of any operation; the test does not wait for calls that never
# come.
AT: Final = [(operation, at) for at in range(24) for operation in OPERATIONS]


@pytest.mark.parametrize(
    ("operation", "at"),
    some(AT, 10),
    ids=lambda value: value if isinstance(value, int) else value.__name__,
)
def test_a_daemon_killed_at_one_of_its_calls(
    ground: Ground, point: Path, operation: type[Killed], at: int
) -> None:
    case = operation(ground, point)
    with (
        with_seam(ground) as (seam, seam_path),
        running(ground, point, *OPTIONS, seam_path=seam_path) as daemon,
        case.prepare(daemon),
    ):
        seam.arm(WAIT, skip=at)
        over, wait = case.begin(daemon)
        # The operation succeeds if it makes fewer calls.
        seam.wait_for_strike(over)
        daemon.kill()
        seam.disarm()
        wait()


# --- the start ------------------------------------------------------------------------


@pytest.mark.parametrize("at", some(range(60), 5))
def test_a_daemon_killed_as_it_starts(ground: Ground, point: Path, at: int) -> None:
    with with_seam(ground) as (seam, seam_path):
        seam.arm(WAIT, skip=at)
        with started(ground, point, *OPTIONS, seam_path=seam_path) as (daemon, notify):
            seam.wait_for_strike(lambda: support.wait_readable(notify.fileno(), 0))
            daemon.kill()
            seam.disarm()
            if is_mounted(point):
                assert outcome(os.listdir, point) in DEAD
    # The next mount finds nothing in its way.
    with running(ground, point, *OPTIONS) as daemon:
        assert os.listdir(point) == []


# --- umount(1) itself -----------------------------------------------------------------


@pytest.mark.parametrize("at", some(range(16), 2))
def test_an_umount_killed_at_one_of_its_calls(
    ground: Ground, point: Path, at: int
) -> None:
    with (
        with_seam(ground) as (seam, seam_path),
        running(ground, point, *OPTIONS) as daemon,
    ):
        seam.arm(WAIT, skip=at)
        with subprocess.Popen(
            command(seam_path, "umount", point),
            env=environment(seam_path),
            cwd=support.TOP,
        ) as umount:
            seam.wait_for_strike(lambda: umount.poll() is not None)
            umount.kill()
        seam.disarm()
        if not is_mounted(point):
            assert daemon.process.wait(PATIENCE) == 0


# --- workers and helpers --------------------------------------------------------------


@pytest.mark.parametrize("victim", ["worker", "helper", "caller"])
def test_a_kill_during_a_long_allocation(
    ground: Ground, point: Path, victim: str
) -> None:
    """The OOM killer may kill any of them: the next allocation works."""
    path = point / "file"
    with (
        with_seam(ground) as (seam, seam_path),
        running(ground, point, *OPTIONS, seam_path=seam_path) as daemon,
    ):
        os.close(os.open(path, os.O_CREAT | os.O_RDWR))
        with actor("allocate", path, str(200 * MIB)) as caller:
            assert caller.hear() == "ready"
            seam.arm(WAIT, *CHANGES)
            caller.say("go")
            assert caller.hear() == "going"
            assert seam.wait_for_strike()
            if victim == "caller":
                caller.kill()
            else:
                _kill_below(daemon, victim)
                # A new helper is started, without a seam, and repeats the allocation.
                wanted = "ENOMEM" if victim == "worker" else "ok"
                assert caller.hear() == wanted
            seam.disarm()
        left = 200 * MIB if victim == "helper" else 0
        support.ask_until(lambda: allocated(path) == left)
        support.run("fallocate", "-p", "-l", 200 * MIB, path)
        assert allocated(path) == 0
        support.run("fallocate", "-l", 200 * MIB, path)
        assert allocated(path) == 200 * MIB
        os.unlink(path)


def _kill_below(daemon: Daemon, victim: str) -> None:
    """Kill the worker that allocates, or the helper that has forked it."""
    workers = {
        worker: helper for helper in children(daemon.pid) for worker in children(helper)
    }
    assert len(workers) == 1
    ((worker, helper),) = workers.items()
    os.kill(worker if victim == "worker" else helper, 9)
