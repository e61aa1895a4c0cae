"""One schedule: actors take steps, one at a time, and a chooser says whose is next.

An actor is code that blocks nowhere but at a *point*, which is where others may go on.
What runs from one point to the next is a step. Each step leaves a record of what it
has touched, so that a search knows which steps may change places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from inaccfs.explore.carriers import Ended, carrier

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from inaccfs.explore.carriers import Thread

    Key: TypeAlias = Hashable

MOST_STEPS: Final = 2000
"""A schedule with more steps does not end."""

_MOST_LATE: Final = 20
"""If all wait so often until one is late, nobody gets on."""


class SpinError(Exception):
    """An actor takes steps without an end."""


class Step(NamedTuple):
    """What a step has done. A key is touched with True by who changes it."""

    actor: int
    touched: dict[Key, bool]
    # Locks that it has taken and kept, and that it has released after it had kept them.
    taken: list[Key]
    released: list[Key]


class Chooser(Protocol):
    """Decides which actor takes the next step."""

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """One of *enabled* for step *depth*; None ends the schedule.

        *current* has taken the last step; it is -1 at the beginning.
        """

    def record(self, step: Step) -> None:
        """A step has been taken."""

    def end(self, pending: list[tuple[int, Key]]) -> None:
        """The schedule is over. Each of *pending* waits for a lock, and has not got it.

        That is so where the schedule has ended early.
        """


class Violation(NamedTuple):
    """Something has happened that may not. See `inaccfs.explore.invariants`."""

    kind: str
    text: str
    # In which step.
    step: int


class Actor:
    """Somebody who takes steps."""

    __slots__ = (
        *("act", "daemon", "done", "index", "label", "late", "lates", "name", "ready"),
        *("thread", "wants"),
    )

    def __init__(
        self, index: int, name: str, act: Callable[[], object], *, daemon: bool
    ) -> None:
        self.index: Final = index
        self.name: Final = name
        self.act: Final = act
        # It need not come to an end.
        self.daemon: Final = daemon
        self.done = False
        # What it does next, for people; and whether it can, if that depends.
        self.label = ""
        self.ready: Callable[[], bool] | None = None
        # Which lock it wants.
        self.wants: Key = None
        # How its wait may end before it is ready: "" never, "last" if nobody can go on
        # else, "any" at any time.
        self.lates = ""
        # Its last wait has ended so.
        self.late = False
        self.thread: Thread | None = None


class Schedule:
    """One execution of a scenario."""

    def __init__(
        self, chooser: Chooser, *, by_lock: bool = False, notes: bool = False
    ) -> None:
        """With *by_lock* any two sections of one lock conflict, whatever is in them.

        With *notes* what happens is noted in words.
        """
        self.by_lock: Final = by_lock
        self.actors: Final[list[Actor]] = []
        # Who runs now; None is the setup, or the end.
        self.current: Actor | None = None
        # Which step runs.
        self.step = -1
        self.violations: Final[list[Violation]] = []
        # Why it is over: "done", "pruned", or the kind of a violation.
        self.ended = ""
        # What an actor has raised, and which.
        self.error: BaseException | None = None
        self.failed: str | None = None
        # Called after each step; an AssertionError of it is a violation.
        self.after: Callable[[], object] | None = None
        # Of each step: the actor, and what it did.
        self.log: Final[list[tuple[int, list[str]]]] = []
        self._chooser: Final = chooser
        self._notes: Final = notes
        self._touched: dict[Key, bool] = {}
        self._opened: list[Mutex] = []
        self._released: list[Key] = []
        self._dead = False
        self._starting = False
        # How often somebody had to be late.
        self._lates = 0
        self._next: Actor | None = None
        self._carrier: Final = carrier()
        self._numbers: Final[dict[str, int]] = {}

    # --- for whatever runs ------------------------------------------------------------

    def number(self, kind: str) -> tuple[str, int, int]:
        """A key for something new of a kind: the same in every schedule."""
        maker = -1 if self.current is None else self.current.index
        of_maker = f"{kind} {maker}"
        found = self._numbers[of_maker] = self._numbers.get(of_maker, 0) + 1
        return kind, maker, found

    def point(
        self,
        label: str,
        ready: Callable[[], bool] | None = None,
        *,
        wants: Key = None,
        lates: str = "",
    ) -> bool:
        """Let others go on, until *ready*, and begin a step.

        Returns whether it is ready: False only where the wait may be late.
        """
        me = self.current
        if self._dead:
            raise Ended
        if me is None:
            if ready is not None and not ready():
                raise RuntimeError(f"the setup would wait for ever: {label}")
            return True
        me.label, me.ready, me.wants, me.lates = label, ready, wants, lates
        me.late = False
        if self._starting:
            self._carrier.leave(me.thread)
        else:
            self._finish()
            chosen = self._choose()
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
        return ready is None or ready()

    def touch(self, key: Key, write: bool = True) -> None:
        """This step reads what *key* is for, or changes it."""
        if write:
            self._touched[key] = True
        else:
            self._touched.setdefault(key, False)

    @property
    def runs(self) -> bool:
        """Whether actors run: what the setup does touches nothing."""
        return self.current is not None

    def note(self, text: str) -> None:
        """This step has done something."""
        if self._notes and self.current is not None and self.log:
            self.log[-1][1].append(text)

    def violate(self, kind: str, text: str) -> None:
        """Something has happened that may not."""
        # What happens in the setup shows in the first step.
        self.violations.append(Violation(kind, text, max(self.step, 0)))
        self.note(f"*** {kind}: {text}")

    def opened(self, lock: Mutex) -> None:
        """*lock* has been taken in this step."""
        self._opened.append(lock)

    def released(self, key: Key) -> None:
        """A lock that an earlier step has taken has been released."""
        self._released.append(key)

    # --- steps ------------------------------------------------------------------------

    def _begin(self, me: Actor) -> None:
        self.step += 1
        self._touched, self._opened, self._released = {}, [], []
        if self._notes:
            self.log.append((me.index, [me.label]))

    def _finish(self) -> None:
        me = self.current
        assert me is not None
        if self.after is not None:
            self._check()
        taken: list[Key] = []
        for lock in self._opened:
            # Kept over a point: other actors that want it conflict with this.
            if lock.owner is me and lock.since == self.step:
                self._touched[lock.key] = True
                taken.append(lock.key)
        self._chooser.record(Step(me.index, self._touched, taken, self._released))

    def _check(self) -> None:
        """What the scenario says holds always, and reads as this step does."""
        assert self.after is not None
        try:
            self.after()
        except AssertionError as exc:
            self.violate("always", str(exc) or "an assertion of always() fails")
        except Exception as exc:
            # Here, as whatever code has come to this point may catch it.
            self.fail(exc)

    def _choose(self) -> Actor | None:
        if self.ended:
            return None
        if self.step >= MOST_STEPS:
            self.fail(SpinError(f"no end after {MOST_STEPS} steps"))
            return None
        enabled = [
            actor.index
            for actor in self.actors
            if not actor.done
            and (actor.ready is None or actor.lates == "any" or actor.ready())
        ]
        if not enabled:
            enabled = self._stuck()
            if not enabled:
                return None
        last = -1 if self.current is None else self.current.index
        index = self._chooser.choose(self.step + 1, enabled, last)
        if index is None:
            self.ended = self.ended or "pruned"
            return None
        return self.actors[index]

    def _stuck(self) -> list[int]:
        """Nobody can go on: who may be late goes on all the same."""
        left = [actor for actor in self.actors if not actor.done]
        if not (busy := [actor for actor in left if not actor.daemon]):
            self.ended = "done"
            return []
        late = [actor.index for actor in left if actor.lates]
        self._lates += bool(late)
        if late and self._lates <= _MOST_LATE:
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
        """One more actor. The setup calls this."""
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
        self._finish()
        self._next = None if self.ended else self._choose()

    def fail(self, exc: BaseException) -> None:
        """The actor that runs has raised, and that is the end."""
        self.error, self.ended = exc, "error"
        self.failed = None if self.current is None else self.current.name

    def run(self) -> None:
        """Run all actors to their ends."""
        carrier = self._carrier
        self._starting = True
        for actor in self.actors:
            actor.thread = carrier.thread(self._body, actor)
            # Up to its first point, where it has touched nothing yet.
            self.current = actor
            carrier.enter(actor.thread)
        self._starting = False
        self.current = None
        self._touched = {}
        self._next = None if self.ended else self._choose()
        while self._next is not None:
            self.current, self._next = self._next, None
            carrier.enter(self.current.thread)
        self.current = None
        self._chooser.end(
            [
                (actor.index, actor.wants)
                for actor in self.actors
                if not actor.done and actor.wants is not None
            ]
        )
        self._dead = True
        for actor in self.actors:
            carrier.kill(actor.thread)
        self._dead = False


class Mutex:
    """A lock of the explorer's. Taking it is a point; releasing it is none."""

    __slots__ = ("_always", "_schedule", "key", "name", "owner", "since")

    def __init__(self, schedule: Schedule, name: str, *, always: bool = False) -> None:
        """With *always* any two sections conflict: what is in them is not tracked."""
        self.key: Final[Key] = schedule.number(name)
        self.name: Final = name
        # The actor that has it; the schedule itself in the setup.
        self.owner: Actor | Schedule | None = None
        # In which step it has been taken.
        self.since = -1
        self._schedule: Final = schedule
        self._always: Final = always or schedule.by_lock

    @property
    def free(self) -> bool:
        """Whether nobody has it."""
        return self.owner is None

    def acquire(self) -> None:
        """Wait until it is free, and take it."""
        self._schedule.point(
            f"takes {self.name}", lambda: self.owner is None, wants=self.key
        )
        self.take()

    def take(self) -> None:
        """It is free."""
        schedule = self._schedule
        self.owner, self.since = schedule.current or schedule, schedule.step
        if schedule.current is not None:
            schedule.touch(self.key, self._always)
            schedule.opened(self)

    def release(self) -> None:
        """Somebody else may take it."""
        schedule = self._schedule
        if schedule.current is not None and self.since != schedule.step:
            schedule.touch(self.key)
            schedule.released(self.key)
        self.owner = None
