"""One schedule: actors take steps, one at a time, and a chooser says whose is next.

An actor is code that blocks nowhere but at a *point*, which is where others may go on.
What runs from one point to the next is a step. Each step leaves a record of what it
has touched, so that a search knows which steps may change places.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from inaccfs.explore.carriers import Ended, carrier
from inaccfs.explore.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.explore.carriers import Thread
    from inaccfs.explore.state import Key

MOST_STEPS: Final = 2000
"""A schedule with more steps does not end."""

_MOST_LATE: Final = 20
"""If all wait so often until one is late, nobody gets on."""


class SpinError(Exception):
    """An actor takes steps without an end."""


class UnstableError(Exception):
    """The same choices have led somewhere else."""


class Step(NamedTuple):
    """What a step has done. A key is touched with True by who changes it."""

    actor: int
    touched: dict[Key, bool]
    # Those of the keys that it has counted, and has not looked at.
    counted: set[Key]
    # What the actor knows after it: see `Actor.known`.
    known: int


class Chooser(Protocol):
    """Decides which actor takes the next step."""

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """One of *enabled* for step *depth*; None ends the schedule.

        *current* has taken the last step; it is -1 at the beginning.
        """

    def record(self, step: Step) -> None:
        """A step has been taken."""

    def end(self) -> None:
        """The schedule has come to its end, and was not ended by `choose`."""


class Kept(Protocol):
    """A lock that has been taken in a step."""

    @property
    def key(self) -> Key:
        """What who wants it conflicts in."""

    @property
    def kept(self) -> bool:
        """Whether the actor that runs has taken it in this step, and has it still."""


class Violation(NamedTuple):
    """Something has happened that may not. See `inaccfs.explore.invariants`."""

    kind: str
    text: str
    # In which step.
    step: int


class Actor:
    """Somebody who takes steps."""

    __slots__ = (
        *(
            "act",
            "base",
            "daemon",
            "done",
            "index",
            "known",
            "label",
            "late",
            "lates",
            "made",
        ),
        *("name", "ready", "thread", "wants"),
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
        # A hash of what it has seen: see `inaccfs.explore.state`. And how many things
        # it has made, which have numbers.
        self.known = index
        self.made = 0
        # What it knew when it began an access, which it begins anew after a fault.
        self.base: int | None = None


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
        self.state: Final = State()
        # It evaluates what somebody waits for.
        self.asks = False
        self._touched: dict[Key, bool] = {}
        # What the actor has learned from what it has touched; and what it has counted.
        self._seen: dict[Key, bool] = {}
        self._counted: set[Key] = set()
        self._opened: list[Kept] = []
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
        maker = -1
        if self.current is not None:
            maker = self.current.index
            self.current.made += 1
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
            chosen = self._finish_and_choose()
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

    def touch(self, key: Key, write: bool = True) -> None:
        """This step reads what *key* is for, or is about to change it."""
        self.state.meet(key)
        if write:
            self._touched[key] = self._seen[key] = True
        else:
            self._touched.setdefault(key, False)
            self._seen.setdefault(key, False)

    def count(self, key: Key) -> None:
        """This step is about to count what *key* is for up or down, and looks not.

        So the order of two that count does not matter.
        """
        self.state.meet(key)
        self._touched.setdefault(key, False)
        self._counted.add(key)

    def forget(self, before: int | None = None, result: object = None) -> None:
        """What the actor has seen since it knew *before* has come to *result* only.

        Without *before* it is as at its beginning.
        """
        if (me := self.current) is not None:
            before = me.index if before is None else before
            me.known = hash((before, me.made, result))
            self._seen = {}

    def restart(self) -> None:
        """The actor begins its access anew."""
        if (me := self.current) is not None and me.base is not None:
            me.known = me.base
            self._seen = {}

    @contextmanager
    def access(self) -> Iterator[None]:
        """A vCPU's access, in a with block: all that is left of it is how it ended."""
        me = self.current
        if me is None:
            yield
            return
        before = me.base = me.known
        try:
            yield
        except Exception as exc:
            self.forget(before, repr(exc))
            raise
        finally:
            me.base = None
        self.forget(before, "accessed")

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

    def opened(self, lock: Kept) -> None:
        """*lock* has been taken in this step."""
        self._opened.append(lock)

    def state_number(self) -> int:
        """A hash of the state between two steps."""
        return self.state.number(self.actors, self._lates)

    # --- steps ------------------------------------------------------------------------

    def _begin(self, me: Actor) -> None:
        self.step += 1
        self._touched, self._opened = {}, []
        self._seen, self._counted = {}, set()
        if self._notes:
            self.log.append((me.index, [me.label]))

    def _finish_and_choose(self) -> Actor | None:
        try:
            self._finish()
            return self._choose()
        except UnstableError as exc:
            # Not in the code of the actor, which may catch it.
            self.fail(exc)
            return None

    def _finish(self) -> None:
        me = self.current
        assert me is not None
        if self.after is not None:
            self._check()
        for lock in self._opened:
            # Kept over a point: other actors that want it conflict with this.
            if lock.kept:
                self._touched[lock.key] = True
        self.state.step(me, self._seen, self._touched, self._counted)
        self._chooser.record(Step(me.index, self._touched, self._counted, me.known))

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
        self._next = self._finish_and_choose()

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
        self.state.begin(self.actors)
        self.current = None
        self._touched = {}
        self._next = None if self.ended else self._choose()
        while self._next is not None:
            self.current, self._next = self._next, None
            carrier.enter(self.current.thread)
        self.current = None
        if self.error is None and self.ended != "pruned":
            self._chooser.end()
        self._dead = True
        for actor in self.actors:
            carrier.kill(actor.thread)
        self._dead = False
