"""Is the search to be believed? What chance finds must be among what it has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from inaccfs.explore.causes import fingerprint
from inaccfs.explore.choosers import All, Chance
from inaccfs.explore.search import execute, twins_of

if TYPE_CHECKING:
    from inaccfs.explore.schedule import Violation
    from inaccfs.explore.search import Case


class Checked(NamedTuple):
    """What has come of a check."""

    # Classes of schedules that the search has visited, and those that chance has hit.
    classes: int
    hit: int
    # A schedule of a class that the search has not visited.
    missed: list[list[int]]
    # Kinds of violations that each has found.
    kinds: set[str]
    kinds_by_chance: set[str]
    # How many schedules the search has run to their ends.
    schedules: int


def check(case: Case, samples: int, *, by_lock: bool = False, seed: int = 1) -> Checked:
    """Search to the end; then draw schedules at random.

    With *by_lock* any two sections of a lock conflict: a search that needs no tracking
    of what is in them.
    """
    search = All(twins_of(case))
    visited: set[int] = set()
    kinds: set[str] = set()
    schedules = 0
    while True:
        schedule = execute(case, search, by_lock=by_lock)
        kinds |= _kinds(schedule.violations)
        if schedule.ended != "pruned":
            schedules += 1
            visited.add(fingerprint(search.steps))
        if not search.advance():
            break
    chance = Chance(seed)
    hit: set[int] = set()
    missed: list[list[int]] = []
    by_chance: set[str] = set()
    for _ in range(samples):
        by_chance |= _kinds(execute(case, chance, by_lock=by_lock).violations)
        found = fingerprint(chance.steps)
        if found in visited:
            hit.add(found)
        else:
            missed.append([step.actor for step in chance.steps])
    return Checked(len(visited), len(hit), missed, kinds, by_chance, schedules)


def _kinds(violations: list[Violation]) -> set[str]:
    return {each.kind for each in violations}
