"""All rows, in the order in which they are tried and printed, and their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.probe import (
    asking,
    attempts,
    mapping,
    opening,
    outcomes,
    reading,
    sizing,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inaccfs.probe.attempts import Row
    from inaccfs.probe.targets import Target

ROWS: Final[list[Row]] = [
    # First: a file that the user has named gets its first size only once.
    *sizing.ROWS,
    *reading.ROWS,
    *writing.ROWS,
    *mapping.ROWS,
    *asking.ROWS,
    *opening.ROWS,
    # Last: a seal on such a file stays.
    *opening.SEALS,
]


class Result(NamedTuple):
    """The outcomes of one row."""

    row: Row
    outcomes: list[str]
    """One for each target, in order."""

    @property
    def differs(self) -> bool:
        """Whether the targets, if there are two, behave differently."""
        return len(self.outcomes) == 2 and outcomes.differ(*self.outcomes)


def try_all(
    targets: Sequence[Target],
    step: Callable[[], object] = lambda: None,
) -> list[Result]:
    """Try all rows on each of one or two targets; call *step* before each.

    Raises:
        ProbeError: a target cannot make files any more.
    """
    # One target after the other: two names may lead to the same file.
    columns: list[list[str]] = []
    for target in targets:
        columns.append([])
        for row in ROWS:
            step()
            columns[-1].append(attempts.attempt(target, row))
    return [
        Result(row, list(found))
        for row, found in zip(ROWS, zip(*columns, strict=True), strict=True)
    ]
