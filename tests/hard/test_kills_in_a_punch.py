"""SIGKILL to the daemon, a peer or a caller, at each step of a punch.

No process may hang, and all others go on: see test_kills.py.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.hard.budget import some
from tests.hard.daemons import Actor, actor, running, with_seam
from tests.hard.kills import CHANGES, DEAD, OPTIONS, Message, RelayedPeer
from tests.hard.seam import WAIT
from tests.mount import raw, support
from tests.mount.peers import peer
from tests.mount.support import MIB, PAGE, PATIENCE, allocated, outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.hard.census import Ground
    from tests.hard.daemons import Daemon
    from tests.hard.seam import Seam

pytestmark = pytest.mark.fuse


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
            ground, point, *OPTIONS, "--semantics", version, seam_path=seam_path
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
