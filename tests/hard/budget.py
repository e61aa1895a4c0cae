"""How much the hard tests do: counts that grow with the number of minutes.

They are counts and not time limits: a run of MINUTES tries the same cases on every
machine, so a failure can be repeated.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

Case = TypeVar("Case")

MINUTES: Final = int(os.environ.get("INACCFS_HARD_MINUTES", "1"))
"""The argument of `tests/hard/run MINUTES`; 1 without it, as in tests/run."""


def times(a_minute: int, most: int | None = None) -> int:
    """The count of something that a run of one minute does *a_minute* times."""
    wanted = a_minute * MINUTES
    return wanted if most is None else min(wanted, most)


def some(cases: Sequence[Case], a_minute: int) -> list[Case]:
    """As many of *cases* as there is time for, spread evenly; a long run has all."""
    count = min(times(a_minute), len(cases))
    return [cases[at * len(cases) // count] for at in range(count)]
