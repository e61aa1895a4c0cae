"""The order that conflicts impose on steps: causes, and equivalent schedules."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.explore.state import Key, Step


def cone(steps: Sequence[Step], last: int) -> set[int]:
    """The steps that step *last* depends on by a chain of conflicts, and *last*."""
    wanted = {last}
    actors: set[int] = set()
    keys: dict[Key, bool] = {}
    for index in range(last, -1, -1):
        step = steps[index]
        if index != last and step.actor not in actors:
            for key, write in step.touched.items():
                found = keys.get(key)
                if found is not None and (write or found):
                    break
            else:
                continue
        wanted.add(index)
        actors.add(step.actor)
        for key, write in step.touched.items():
            keys[key] = keys.get(key, False) or write
    return wanted


def switches(actors: Sequence[int]) -> int:
    """How often the next step is another actor's."""
    return sum(one != other for one, other in itertools.pairwise(actors))


def fingerprint(steps: Sequence[Step]) -> int:
    """A hash that is equal for schedules that order all conflicting steps alike."""
    clocks: dict[int, dict[int, int]] = {}
    counts: dict[int, int] = {}
    by_key: dict[Key, list[tuple[dict[int, int], bool]]] = {}
    found = []
    for step in steps:
        actor = step.actor
        clock = dict(clocks.get(actor, ()))
        for key, write in step.touched.items():
            for other, wrote in by_key.get(key, ()):
                if write or wrote:
                    for each, count in other.items():
                        if clock.get(each, 0) < count:
                            clock[each] = count
        counts[actor] = clock[actor] = counts.get(actor, 0) + 1
        clocks[actor] = clock
        for key, write in step.touched.items():
            by_key.setdefault(key, []).append((clock, write))
        found.append((actor, counts[actor], tuple(sorted(clock.items()))))
    return hash(tuple(sorted(found)))
