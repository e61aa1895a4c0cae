"""SIGKILL to the daemon, a peer or a caller, at each step of an operation.

Each time no process may hang, all others go on, the mount is dead only when
its daemon was killed, callers get an errno, and `inaccfs umount` cleans up.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tests.hard.budget import some
from tests.hard.census import children
from tests.hard.daemons import (
    Actor,
    actor,
    command,
    environment,
    running,
    started,
    with_seam,
)
from tests.hard.seam import WAIT
from tests.mount import raw, support
from tests.mount.peers import peer
from tests.mount.support import MIB, PAGE, PATIENCE, allocated, is_mounted, outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.hard.census import Ground
    from tests.hard.daemons import Daemon
    from tests.hard.seam import Seam

pytestmark = pytest.mark.fuse

# Longer than any test waits: a call that only this timeout ends has hung.
OPTIONS: Final = ("--ack-timeout", "600", "--size", "512m")

# The functions that punch and allocate: in the loop, in a thread, in a worker.
CHANGES: Final = ("inaccfs.syscalls.fallocate_now", "inaccfs.syscalls.fallocate")

DEAD: Final = ("ENOTCONN", "ECONNABORTED")


# --- a punch, step by step ------------------------------------------------------------


Message = dict[str, Any]


class RelayedPeer:
    """A peer that is a separate process; it answers no event by itself."""

    def __init__(self, relay: Actor) -> None:
        self.relay = relay
        assert "QMP" in self.hear()
        self.do("qmp_capabilities")

    def hear(self) -> Message:
        found: Message = json.loads(self.relay.hear())
        return found

    def say(self, command: str, **arguments: object) -> None:
        self.relay.say(json.dumps({"execute": command, "arguments": arguments}))

    def do(self, command: str, **arguments: object) -> Any:
        self.say(command, **arguments)
        while "event" in (answer := self.hear()):
            pass
        assert "return" in answer, answer
        return answer["return"]

    def answer(self, event: Message) -> None:
        """Answer an event, and do not wait for the reply."""
        data = event["data"]
        self.say(
            "invalidate-done", notifier=data["notifier"], sequence=data["sequence"]
        )

    def event(self) -> Message:
        """The next event; replies before it are dropped."""
        while "event" not in (message := self.hear()):
            pass
        return message

    def answer_all(self, unanswered: Message | None) -> None:
        """Answer all events until the connection ends."""
        # The relay ends with its connection.
        with suppress(BrokenPipeError):
            if unanswered is not None:
                self.answer(unanswered)
            while line := self.relay.hear():
                message = json.loads(line)
                if "sequence" in message.get("data", {}):
                    self.answer(message)


class Punch:
    """A punch of one file with one notifier, which can be brought to each step."""

    def __init__(
        self, daemon: Daemon, seam: Seam, caller: Actor, *, bracket: bool
    ) -> None:
        self.daemon = daemon
        self.seam = seam
        self.caller = caller
        # Whether there is an event before the change and one after it.
        self.bracket = bracket

    def go(self) -> None:
        self.caller.say("go")
        assert self.caller.hear() == "going"

    # Each step returns the event to answer, if there is one.

    def before_the_event(self, peer: RelayedPeer) -> Message | None:
        self.daemon.stop()
        self.go()
        support.ask_until(lambda: support.state(self.caller.process.pid) in "SD")
        return None

    def unanswered(self, peer: RelayedPeer) -> Message | None:
        self.go()
        return peer.hear()

    def during_the_change(self, peer: RelayedPeer) -> Message | None:
        self.seam.arm(WAIT, *CHANGES)
        self.go()
        if self.bracket:
            peer.answer(peer.hear())
        assert self.seam.wait_for_strike()
        return None

    def between_start_and_end(self, peer: RelayedPeer) -> Message | None:
        self.go()
        peer.answer(peer.hear())
        return peer.event()

    def before_the_reply(self, peer: RelayedPeer) -> Message | None:
        last = (
            self.between_start_and_end(peer) if self.bracket else self.unanswered(peer)
        )
        assert last is not None
        self.daemon.stop()
        peer.answer(last)
        return None


STEPS: Final = (
    "before_the_event",
    "unanswered",
    "during_the_change",
    "between_start_and_end",
    "before_the_reply",
)

MATRIX: Final = [
    (version, step, victim, size)
    for size in (PAGE, 16 * MIB)
    for victim in ("daemon", "peer", "caller")
    for version in ("v8", "guest_memfd", "bind")
    for step in STEPS
    # v8 has one event, which comes after the change.
    if (version, step) != ("v8", "between_start_and_end")
]


@contextmanager
def bystander(daemon: Daemon, version: str) -> Iterator[Callable[[], None]]:
    """Another file with another peer; returns a function that checks both."""
    path = daemon.path / "other"
    os.close(os.open(path, os.O_CREAT | os.O_RDWR))
    os.truncate(path, 4 * PAGE)
    with peer(daemon.control) as shim:
        _listen(shim.do, version, "/other", 4)

        def well() -> None:
            with actor("punch", path, "0", str(PAGE)) as caller:
                assert caller.hear() == "ready"
                caller.say("go")
                assert caller.hear() == "going"
                for _ in range(1 if version == "v8" else 2):
                    shim.done(shim.event())
                assert caller.hear() == "ok"
            assert shim.do("query-status")["pid"] == daemon.pid

        yield well


def _listen(do: Callable[..., Any], version: str, file: str, pages: int) -> None:
    if version == "v8":
        do("register-notifier", file=file)
    else:
        do("bind", file=file, start=0, end=pages, exclusive=True)


def name_of(case: tuple[str, str, str, int]) -> str:
    version, step, victim, size = case
    return f"{version}-{step}-{victim}-{size // 1024}K"


@pytest.mark.parametrize("case", some(MATRIX, 10), ids=name_of)
def test_a_kill_at_a_step_of_a_punch(
    ground: Ground, point: Path, case: tuple[str, str, str, int]
) -> None:
    version, step, victim, size = case
    path = point / "file"
    with (
        with_seam(ground) as (seam, seam_path),
        running(
            *(ground, point, *OPTIONS, "--semantics", version), seam_path=seam_path
        ) as daemon,
        ExitStack() as stack,
    ):
        with support.opened(path, os.O_CREAT | os.O_RDWR) as fd:
            os.ftruncate(fd, 32 * MIB)
            raw.fallocate(fd, raw.KEEP_SIZE, 0, 32 * MIB)
        caller = stack.enter_context(actor("punch", path, "0", str(size)))
        assert caller.hear() == "ready"
        relay = stack.enter_context(actor("relay", daemon.control))
        its_peer = RelayedPeer(relay)
        _listen(its_peer.do, version, "/file", 32 * MIB // PAGE)
        well = stack.enter_context(bystander(daemon, version))
        punch = Punch(daemon, seam, caller, bracket=version != "v8")

        event = getattr(punch, step)(its_peer)
        # If the daemon has read the caller's request, the kernel lets even a killed
        # caller end only after the reply.
        kill_caller = caller.process.kill
        kills = {"daemon": daemon.kill, "peer": relay.kill, "caller": kill_caller}
        kills[victim]()
        seam.disarm()
        if victim != "daemon":
            daemon.resume()
        if victim != "peer":
            answering = threading.Thread(target=its_peer.answer_all, args=[event])
            answering.start()
            stack.callback(answering.join, PATIENCE)
            stack.callback(relay.kill)

        if victim == "daemon":
            assert caller.hear() in DEAD
            assert outcome(os.listdir, point) in DEAD
            return
        assert caller.hear() == ("" if victim == "caller" else "ok")
        # The punch is completed without its caller, too; but the kernel withdraws a
        # request that was not read yet.
        unread = (step, victim) == ("before_the_event", "caller")
        left = 32 * MIB - (0 if unread else size)
        support.ask_until(lambda: allocated(path) == left)
        well()
        with peer(daemon.control) as shim:
            support.ask_until(
                lambda: (
                    len(shim.do("query-notifiers")) == (1 if victim == "peer" else 2)
                )
            )
        support.assert_clean(daemon.log.read_text())


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
