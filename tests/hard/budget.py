"""How much the hard tests do: counts that grow with the minutes they may take.

Counts and not clocks: a run of so many minutes tries the same cases on every machine,
so what fails once fails again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

Case = TypeVar("Case")

MINUTES: Final = int(os.environ.get("INACCFS_HARD_MINUTES", "1"))
"""What `tests/hard/run MINUTES` was given; 1 where nothing was, as in tests/run."""


def times(a_minute: int, most: int | None = None) -> int:
    """How often to do what is done *a_minute* times in a run of one minute."""
    wanted = a_minute * MINUTES
    return wanted if most is None else min(wanted, most)


def some(cases: Sequence[Case], a_minute: int) -> list[Case]:
    """As many of *cases* as there is time for, spread evenly; all of them at last."""
    count = min(times(a_minute), len(cases))
    return [cases[at * len(cases) // count] for at in range(count)]
