"""One schedule: actors take steps, one at a time, in the order of a chooser.

An actor is code that blocks only at *points*, where other actors may go on. A step is
what runs from one point to the next. Each step records what it has touched, so that a
search knows which steps may be exchanged.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.explore.actor import Actor
from inaccfs.explore.calls import Calls
from inaccfs.explore.carriers import Ended, carrier
from inaccfs.explore.choosing import UnstableError
from inaccfs.explore.guard import GuardError
from inaccfs.explore.tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inaccfs.explore.choosing import Chooser
    from inaccfs.explore.state import Key, Step

MOST_STEPS: Final = 2000
"""A schedule with more steps does not end."""


class SpinError(Exception):
    """An actor takes too many steps, or a step takes too long."""


KINDS: Final = {
    "use-after-free": "a guest uses a frame that has been freed",
    "stale-mapping": "a punch, a truncation or memory-failure has ended, and a mapping "
    "of a page that it removed or poisoned is left",
    "wrong-kind": "a private page is mapped as shared, or a shared one as private",
    "use-after-change": "a device uses a page that was removed or converted",
    "changed-frozen": "a page of a frozen file comes or goes",
    "unpaired": "an end without its begin, or a begin without its end",
    "leaked-reference": "a reference to a page is left when all is over",
    "leaked-notifier": "a notifier is left when its VM has been closed",
    "leaked-frame": "a frame stays allocated, although no page and no client uses it",
    "freed-held": "a frame is freed to which somebody has a reference",
    "refused-put": "a client puts a reference that it does not have",
    "unexplained-read": "a guest reads what no order of the calls explains",
    "unexplained-exit": "a guest is refused a page that its file has",
    "raises": "a callback of a VM raises",
    "miscounted": "the counters of a VM do not say what it has mapped",
    "deadlock": "actors wait for each other",
    "waits-for-ever": "an actor waits for what never comes",
    "always": "an assertion of always() fails",
}
"""Each kind of violation, and its meaning."""


class Violation(NamedTuple):
    """A violation of an invariant."""

    # One of KINDS.
    kind: str
    text: str
    # The step in which it happened.
    step: int


class Schedule(Tracking):
    """One execution of a scenario."""

    def __init__(self, chooser: Chooser, *, notes: bool = False) -> None:
        """With *notes* it logs in words what each step does."""
        super().__init__(compares=chooser.compares)
        self.actors: Final[list[Actor]] = []
        self.violations: Final[list[Violation]] = []
        self.calls: Final = Calls()
        # Why the schedule has ended: "done", "pruned", or the kind of a violation.
        self.ended = ""
        # An exception that ended the schedule, and the name of the actor that raised
        # it.
        self.error: BaseException | None = None
        self.failed: str | None = None
        # Called after each step. If it raises AssertionError, that is a violation.
        self.after: Callable[[], object] | None = None
        # For each step: the actor, and what it did.
        self.log: Final[list[tuple[int, list[str]]]] = []
        self._chooser: Final = chooser
        self._notes: Final = notes
        # Repeated steps: the one that runs, and the whole sequence that it belongs to.
        self._again: Step | None = None
        self._repeated: Sequence[Step] = ()
        # The rest of that sequence.
        self._ahead: Final[deque[Step]] = deque()
        self._dead = False
        self._starting = False
        # Whether it is in `after`.
        self._checks = False
        # How often no actor could go on unless a wait timed out.
        self._timeouts = 0
        self._next: Actor | None = None
        self._carrier: Final = carrier()

    # --- for whatever runs ------------------------------------------------------------

    def point(
        self,
        label: str,
        ready: Callable[[], bool] | None = None,
        *,
        wants: Key = None,
        timeout: str = "",
    ) -> bool:
        """Let other actors run until *ready*, and begin a step.

        Returns whether it is ready: False only where the wait may be late.
        """
        me = self.current
        if self._dead:
            raise Ended
        if self._checks:
            raise GuardError(f"always() may wait for nobody, and {label}")
        if me is None:
            if ready is not None and not ready():
                raise RuntimeError(f"the setup would wait for ever: {label}")
            return True
        me.label, me.ready, me.wants, me.timeout = label, ready, wants, timeout
        me.late = False
        if self._starting:
            self._carrier.leave(me.thread)
        else:
            chosen = self._advance()
            if chosen is not me:
                if chosen is None:
                    self._next = None
                    self._carrier.leave(me.thread)
                else:
                    self.current = chosen
                    self._carrier.switch(me.thread, chosen.thread)
        if self._dead:
            raise Ended
        self._begin(me)
        me.late = not (ready is None or ready())
        return not me.late

    def note(self, text: str) -> None:
        """Log something that this step has done."""
        if self._notes and self.current is not None and self.log:
            self.log[-1][1].append(text)

    def grant(self, what: str, *numbers: int) -> None:
        """A call of the scenario, *what* with *numbers*, has succeeded."""
        self.calls.grant(self.current, what, *numbers)

    def refuse(self, why: str, what: str, *numbers: int) -> None:
        """A call of the scenario has been refused."""
        self.note(f"is refused: {why}")
        self.calls.refuse(why, self.current, what, *numbers)

    def violate(self, kind: str, text: str) -> None:
        """Record a violation; *kind* is one of KINDS."""
        assert kind in KINDS, kind
        if self._dead:
            # The schedule is over: what a stack undoes as it unwinds is no step.
            return
        # A violation in the setup counts for the first step.
        self.violations.append(Violation(kind, text, max(self.step, 0)))
        self.note(f"*** {kind}: {text}")

    def state_number(self) -> int:
        """A hash of the state between two steps."""
        return self.state.number(self.actors, self._timeouts)

    # --- steps ------------------------------------------------------------------------

    def _begin(self, me: Actor) -> None:
        self.step += 1
        me.did = me.label
        if self.tracks:
            self._anew()
        if self._notes:
            self.log.append((me.index, [me.label]))

    def _advance(self) -> Actor | None:
        """End the step; returns the actor that takes the next one."""
        try:
            if self.current is not None:
                self._finish(self.current)
            return self._choose()
        except UnstableError as exc:
            # Do not raise it here: the actor's code might catch it.
            self.fail(exc)
            return None

    def _finish(self, me: Actor) -> None:
        if self.after is not None:
            self._check()
        if (again := self._again) is not None:
            if me.label != again.label:
                raise _differs(self.step, me, "comes to", again.label)
            me.known = again.known
            return
        self._chooser.record(self._taken(me))

    def _check(self) -> None:
        """Call the scenario's `always`. This step counts as reading what it reads."""
        assert self.after is not None
        self._checks = True
        try:
            self.after()
        except AssertionError as exc:
            self.violate("always", str(exc) or "an assertion of always() fails")
        except Exception as exc:
            # Do not raise it here: the code that has reached this point might catch it.
            self.fail(exc)
        finally:
            self._checks = False

    def _choose(self) -> Actor | None:
        if self.ended:
            return None
        if self.step >= MOST_STEPS:
            self.fail(SpinError(f"no end after {MOST_STEPS} steps"))
            return None
        again = None
        if self._ahead or self._looks_ahead():
            again = self._ahead.popleft()
            actor = self.actors[again.actor]
            if actor.label != again.did:
                raise _differs(self.step + 1, actor, "is", again.did)
            if not actor.done and (actor.ready is None or actor.ready()):
                self._again = again
                return actor
        self._again = again
        enabled = self._enabled()
        if not enabled:
            enabled = self._stuck()
            if not enabled:
                return None
        if again is not None:
            if again.actor not in enabled:
                raise UnstableError(
                    f"step {self.step + 2} cannot be taken as it was the time before"
                )
            return self.actors[again.actor]
        last = -1 if self.current is None else self.current.index
        index = self._chooser.choose(self.step + 1, enabled, last)
        if index is None:
            self.ended = self.ended or "pruned"
            return None
        return self.actors[index]

    def _looks_ahead(self) -> bool:
        """Whether the next steps are repeated ones."""
        if self._repeated:
            self.state.repeat(self._repeated)
        self._repeated = self._chooser.ahead()
        self._ahead.extend(self._repeated)
        self.tracks = not self._repeated
        return bool(self._repeated)

    def _enabled(self) -> list[int]:
        return [
            actor.index
            for actor in self.actors
            if not actor.done
            and (actor.ready is None or actor.timeout == "any" or actor.ready())
        ]

    def _stuck(self) -> list[int]:
        """No actor can go on: time a wait out, or end the schedule."""
        left = [actor for actor in self.actors if not actor.done]
        if not (busy := [actor for actor in left if not actor.daemon]):
            self.ended = "done"
            return []
        late = [actor.index for actor in left if actor.timeout]
        self._timeouts += bool(late)
        # If all actors wait more often than each has been late, none of them can go on.
        if late and self._timeouts <= len(self.actors):
            return late
        waits = "; ".join(f"{actor.name} {actor.label}" for actor in busy)
        holding = any(actor.wants is not None for actor in busy)
        self._stop("deadlock" if holding else "waits-for-ever", waits)
        return []

    def _stop(self, kind: str, text: str) -> None:
        self.violate(kind, text)
        self.ended = kind

    # --- life -------------------------------------------------------------------------

    def spawn(
        self, name: str, act: Callable[[], object], *, daemon: bool = False
    ) -> Actor:
        """Add an actor. Only the setup may call this."""
        assert self.current is None, "actors are made in the setup"
        actor = Actor(len(self.actors), name, act, daemon=daemon)
        self.actors.append(actor)
        return actor

    def _body(self, actor: Actor) -> None:
        try:
            if not self._dead:
                actor.act()
        except Ended:
            return
        except (KeyboardInterrupt, SpinError) as exc:
            self.fail(exc)
        except BaseException as exc:
            if not self._dead:
                self.fail(exc)
        if self._dead:
            return
        actor.done = True
        if self._starting:
            return
        self._next = self._advance()

    def fail(self, exc: BaseException) -> None:
        """End the schedule, as the running actor has raised *exc*."""
        self.error, self.ended = exc, "error"
        self.failed = None if self.current is None else self.current.name

    def discard(self) -> None:
        """Free the actors' code and stacks; keep the results."""
        for actor in self.actors:
            actor.discard()
        self.after = None
        self._anew()
        self.state.discard()

    def run(self) -> None:
        """Run all actors to their ends."""
        carrier = self._carrier
        self._starting = True
        for actor in self.actors:
            actor.thread = carrier.thread(self._body, actor)
            # Run it to its first point, before which it touches nothing shared.
            self.current = actor
            carrier.enter(actor.thread)
        self._starting = False
        self.state.begin(self.actors)
        self.current = None
        self._next = None if self.ended else self._advance()
        while self._next is not None:
            self.current, self._next = self._next, None
            carrier.enter(self.current.thread)
        self.current = None
        self.tracks = False
        if self.error is None and self.ended != "pruned":
            self._chooser.end()
        self._dead = True
        for actor in self.actors:
            carrier.kill(actor.thread)
        self._dead = False


def _differs(step: int, actor: Actor, what: str, before: str) -> UnstableError:
    return UnstableError(
        f"step {step + 1}, of {actor.name}, {what} {actor.label!r}; the time before: "
        f"{before!r}"
    )
