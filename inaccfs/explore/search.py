"""Runs schedules of a scenario, and collects what they find."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.errors import InaccfsError, NoThreadError
from inaccfs.explore.buggy import KVMS
from inaccfs.explore.calls import Calls
from inaccfs.explore.causes import cone, switches
from inaccfs.explore.choosers import Bounded, Chance
from inaccfs.explore.choosing import UnstableError
from inaccfs.explore.guard import GuardError, Things, guarded
from inaccfs.explore.schedule import Schedule, SpinError
from inaccfs.explore.states import States
from inaccfs.explore.world import World
from inaccfs.userfiles import in_a_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.explore.choosing import Chooser
    from inaccfs.explore.scenario import Scenario
    from inaccfs.explore.state import Step
    from inaccfs.semantics import Semantics

_BY_CHANCE: Final = 30
"""So many random schedules come first."""

MOST_ACTORS: Final = 62
"""So many have a letter or a digit each in the name of a schedule."""

_PACKAGE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep

# Where no line of the user's is. Modules in Python's executable have no path.
_NOT_OWN: Final = (_PACKAGE, os.path.dirname(traceback.__file__) + os.sep, "<frozen ")

MOST_SECONDS: Final = 10
"""No schedule takes longer, on however slow a machine."""


class ScenarioError(InaccfsError):
    """The scenario itself is wrong."""


class RefusedError(ScenarioError):
    """The rules refuse something that the scenario needs, such as a slot."""

    @property
    def reason(self) -> str:
        """The message of the refused call."""
        return str(getattr(self.__cause__, "strerror", "") or self)


class Case(NamedTuple):
    """A scenario under one set of rules and one KVM."""

    scenario: type[Scenario]
    semantics: Semantics
    kvm: str = "kvm"


def _never() -> bool:
    return False


class Limits(NamedTuple):
    """When a search stops early. None is no limit."""

    # Of CPU time.
    seconds: float | None = 20.0
    # Search only schedules with at most so many preemptions; None visits all states.
    preemptions: int | None = None
    schedules: int | None = None
    # Asked after each schedule: the search ends once it returns True.
    stop: Callable[[], bool] = _never


class Found(NamedTuple):
    """The shortest schedule that shows a kind of violation."""

    kind: str
    text: str
    # Which actor takes each step, up to the violation.
    choices: list[int]
    # The number of steps that led to it, and of switches among these.
    size: tuple[int, int]
    # After how many schedules, and seconds of CPU time, the kind was first found.
    schedules: int
    seconds: float


class Outcome:
    """The result of a search."""

    def __init__(self, case: Case, limits: Limits) -> None:
        self.case: Final = case
        self.limits: Final = limits
        self.schedules = 0
        self.pruned = 0
        self.steps = 0
        self.longest = 0
        self.complete = False
        self.seconds = 0.0
        self.found: Final[dict[str, Found]] = {}
        self.calls: Final = Calls()

    @property
    def kinds(self) -> list[str]:
        """The kinds of violations that were found."""
        return sorted(self.found)

    @property
    def shortest(self) -> Found | None:
        """The counterexample that is shown."""
        return min(self.found.values(), key=lambda one: one.size, default=None)


def execute(
    case: Case,
    chooser: Chooser,
    *,
    notes: bool = False,
) -> Schedule:
    """Run one schedule from its beginning. Raises `ScenarioError`."""
    threads = threading.active_count()
    schedule = Schedule(chooser, notes=notes)
    chooser.begin(schedule)
    scenario = case.scenario()
    world = World(schedule, case.semantics, KVMS[case.kvm], evicts=case.scenario.evicts)
    try:
        scenario._world = world
        scenario.setup()
        for name, act in scenario.actors():
            schedule.spawn(name, act)
        _check_actors(schedule)
        if type(scenario).always is not None:
            schedule.after = scenario.always
            _check_always(scenario)
        scenario._closed = True
        things = Things(scenario)
        with guarded():
            schedule.run()
        if not isinstance(schedule.error, KeyboardInterrupt):
            things.check()
        if schedule.error is not None:
            raise schedule.error  # noqa: TRY301 - it is reported as what setup() raises
        _check_threads(threads)
        if schedule.ended == "done":
            world.finish()
    except GuardError as exc:
        who = f"{schedule.failed}: " if schedule.failed else ""
        raise ScenarioError(f"{case.scenario.__name__}: {who}{exc}") from exc
    except (ScenarioError, UnstableError, NoThreadError, KeyboardInterrupt):
        raise
    except BaseException as exc:
        # SystemExit, too: the scenario raised it, and it must not end the command.
        who = schedule.failed or ("setup" if schedule.step < 0 else "the end")
        raise _kind(exc)(
            f"{case.scenario.__name__}: {who}: {_place(exc)}{in_a_line(exc)}"
        ) from exc
    finally:
        _discard(world, case)
        vars(scenario).clear()
    return schedule


def _discard(world: World, case: Case) -> None:
    try:
        world.discard()
    except OSError as exc:
        raise ScenarioError(
            f"{case.scenario.__name__}: it closes what is not its own: {exc.strerror}"
        ) from exc


def _kind(exc: BaseException) -> type[ScenarioError]:
    """Whether the rules refuse something, or the scenario's own code raised *exc*."""
    innermost = traceback.extract_tb(exc.__traceback__)[-1]
    refused = isinstance(exc, OSError) and innermost.filename.startswith(_PACKAGE)
    return RefusedError if refused else ScenarioError


def _place(exc: BaseException) -> str:
    """The user's file and line that raised *exc*, or called what raised it."""
    places = [
        f"{os.path.basename(at.filename)} line {at.lineno}: "
        for at in traceback.extract_tb(exc.__traceback__)
        if not at.filename.startswith(_NOT_OWN)
    ]
    return places[-1] if places else ""


def _check_always(scenario: Scenario) -> None:
    assert scenario.always is not None
    try:
        scenario.always()
    except AssertionError as exc:
        raise ScenarioError(
            f"{type(scenario).__name__}: always() fails before any actor has begun"
            + (f": {exc}" if str(exc) else "")
        ) from exc


def _check_threads(before: int) -> None:
    if threading.active_count() > before:
        raise ScenarioError("it starts threads, of which the explorer knows nothing")


def _check_actors(schedule: Schedule) -> None:
    names = {actor.name for actor in schedule.actors}
    if not any(not actor.daemon for actor in schedule.actors):
        raise ScenarioError("there is no method actor_NAME")
    if len(names) > MOST_ACTORS:
        raise ScenarioError(
            f"it has {len(names)} actors, with one for each VM: the most is "
            f"{MOST_ACTORS}"
        )


def explore(case: Case, limits: Limits = Limits()) -> Outcome:  # noqa: B008
    """Search. Raises `ScenarioError`."""
    outcome = Outcome(case, limits)
    begin = time.process_time()
    with _no_garbage(), watched(lambda: outcome.steps):
        try:
            _search(outcome, Chance(), begin, _BY_CHANCE)
            chooser: Chooser = States()
            if limits.preemptions is not None:
                chooser = Bounded(limits.preemptions)
            outcome.complete = _search(outcome, chooser, begin, limits.schedules)
        except UnstableError as exc:
            raise ScenarioError(f"{case.scenario.__name__}: {exc}") from exc
    outcome.seconds = time.process_time() - begin
    return outcome


def _search(outcome: Outcome, chooser: Chooser, begin: float, most: int | None) -> bool:
    """Run schedules; returns whether these were all that there are."""
    limit = outcome.limits.seconds
    number = 0
    while most is None or number < most:
        number += 1
        schedule = execute(outcome.case, chooser)
        seconds = time.process_time() - begin
        _note(outcome, schedule, chooser.steps, seconds)
        if not chooser.advance():
            return True
        if (limit is not None and seconds > limit) or outcome.limits.stop():
            return False
    return False


def _note(
    outcome: Outcome, schedule: Schedule, steps: list[Step], seconds: float
) -> None:
    if schedule.ended == "pruned":
        outcome.pruned += 1
    else:
        outcome.schedules += 1
    outcome.calls.update(schedule.calls)
    outcome.steps += schedule.step + 1
    outcome.longest = max(outcome.longest, schedule.step + 1)
    seen = set()
    for kind, text, at in schedule.violations:
        if kind in seen:
            continue
        seen.add(kind)
        last = min(at, len(steps) - 1)
        old = outcome.found.get(kind)
        tried = outcome.schedules + outcome.pruned
        if old is not None and tried > old.schedules + 2000:
            # The search for a shorter one has gone on for long enough.
            continue
        # Without any step, the setup itself is to blame.
        wanted = cone(steps, last) if steps else set()
        size = len(wanted), switches([steps[each].actor for each in sorted(wanted)])
        if old is None or size < old.size:
            first = (tried, seconds) if old is None else (old.schedules, old.seconds)
            choices = [step.actor for step in steps[: last + 1]]
            outcome.found[kind] = Found(kind, text, choices, size, *first)


@contextmanager
def watched(done: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Raise `SpinError` in a step that never ends: it spins, or blocks.

    *done* changes with each schedule.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -1

    def look(*_: object) -> None:
        nonlocal last
        now = done()
        if now == last:
            raise SpinError(f"a schedule takes more than {MOST_SECONDS} seconds")
        last = now

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Collect garbage seldom: it takes long, as most objects live until the end."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
