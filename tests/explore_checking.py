"""Checks the search: it must have found all that random schedules find."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from inaccfs.explore.choosers import Chance, difference
from inaccfs.explore.search import execute
from inaccfs.explore.states import States

if TYPE_CHECKING:
    from inaccfs.explore.choosing import Execution
    from inaccfs.explore.schedule import Violation
    from inaccfs.explore.search import Case
    from inaccfs.explore.state import Step


class Checked(NamedTuple):
    """The result of a check."""

    # How many states the search has visited, and how many of these random schedules
    # have reached.
    states: int
    hit: int
    # Random schedules that reached a state that the search has not visited.
    missed: list[list[int]]
    # Steps of one actor that differed although they began in states with one hash.
    unlike: list[str]
    # The kinds of violations that the search found, and that random schedules found.
    kinds: set[str]
    kinds_by_chance: set[str]
    # How many schedules the search has run, to their ends or to a known state.
    schedules: int

    def assert_sound(self) -> None:
        """Random schedules must find nothing that the search has not found."""
        assert (self.missed, self.unlike) == ([], [])
        assert self.kinds_by_chance <= self.kinds


class _Watched(Chance):
    """Draws schedules at random, and records the states that they reach."""

    compares = True

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._schedule: Execution | None = None
        self.states: list[int] = []

    def begin(self, schedule: Execution) -> None:
        super().begin(schedule)
        self._schedule, self.states = schedule, []

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        assert self._schedule is not None
        self.states.append(self._schedule.state_number())
        return super().choose(depth, enabled, current)


def check(case: Case, samples: int, *, seed: int = 1) -> Checked:
    """Search to the end; then draw schedules at random, and compare."""
    search = States()
    kinds: set[str] = set()
    schedules = 0
    while True:
        kinds |= _kinds(execute(case, search).violations)
        schedules += 1
        if not search.advance():
            break
    steps = {
        (state, actor): step
        for state, visited in search.visited.items()
        for actor, step in visited.taken.items()
    }
    chance = _Watched(seed)
    hit: set[int] = set()
    missed: list[list[int]] = []
    unlike: list[str] = []
    by_chance: set[str] = set()
    for _ in range(samples):
        by_chance |= _kinds(execute(case, chance).violations)
        hit.update(chance.states)
        if not search.visited.keys() >= set(chance.states):
            missed.append([step.actor for step in chance.steps])
        unlike += _unlike(chance, steps)
    hit &= search.visited.keys()
    return Checked(
        len(search.visited), len(hit), missed, unlike, kinds, by_chance, schedules
    )


def _unlike(chance: _Watched, steps: dict[tuple[int, int], Step]) -> list[str]:
    """Compare each step with an earlier one from the same state.

    This finds steps that depend on something that is missing in the state.
    """
    found = []
    for state, step in zip(chance.states, chance.steps, strict=False):
        before = steps.setdefault((state, step.actor), step)
        if before.known != step.known or before.touched != step.touched:
            found.append(f"actor {step.actor} {difference(before, step)}")
    return found


def _kinds(violations: list[Violation]) -> set[str]:
    return {each.kind for each in violations}
