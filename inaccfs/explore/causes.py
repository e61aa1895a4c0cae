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
