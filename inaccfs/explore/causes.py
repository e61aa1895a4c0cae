"""The order that conflicts impose on steps: causes, and equivalent schedules."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inaccfs.explore.state import Key, Step


def conflict(one: Step, other: Step) -> bool:
    """Whether the order of two steps matters."""
    if len(one.touched) > len(other.touched):
        one, other = other, one
    theirs = other.touched
    for key, write in one.touched.items():
        found = theirs.get(key)
        if found is not None and (write or found):
            return True
    # A step that counts changes what a step that looks has seen. The order of two
    # counting steps does not matter, but the hash of the state after both is not the
    # xor that `States._settle` computes.
    return not (
        one.counted.isdisjoint(theirs) and other.counted.isdisjoint(one.touched)
    )


def cone(steps: Sequence[Step], last: int) -> set[int]:
    """The steps that step *last* depends on by a chain of conflicts, and *last*."""
    wanted: set[int] = set()
    actors = {steps[last].actor}
    # How the wanted steps access each key.
    accesses: dict[Key, set[str]] = defaultdict(set)
    for index in range(last, -1, -1):
        step = steps[index]
        mine = list(_accesses(step))
        if step.actor in actors or any(
            _matters(access, other) for key, access in mine for other in accesses[key]
        ):
            wanted.add(index)
            actors.add(step.actor)
            for key, access in mine:
                accesses[key].add(access)
    return wanted


def _accesses(step: Step) -> Iterator[tuple[Key, str]]:
    for key, write in step.touched.items():
        yield key, "write" if write else "count" if key in step.counted else "read"


def _matters(one: str, other: str) -> bool:
    """Whether the order of two accesses to a key does: of two reads it does not."""
    return one != other or one == "write"


def switches(actors: Sequence[int]) -> int:
    """How often the next step is another actor's."""
    return sum(one != other for one, other in itertools.pairwise(actors))
