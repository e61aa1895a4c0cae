"""The outcomes of all rows, as a table for people or as JSON."""

from __future__ import annotations

import json
import os
import textwrap
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any, Final

from inaccfs.probe import outcomes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inaccfs.probe.table import Result
    from inaccfs.probe.targets import Target

MARK: Final = "!"
"""Printed before a row that differs."""

_GAP: Final = "  "

# No column is narrower than this on any terminal: a signal or an errno fits in.
_LEAST: Final = 12


# --- for people -----------------------------------------------------------------------


def table(
    targets: Sequence[Target], results: Sequence[Result], width: int | None
) -> str:
    """One line for each row, in groups; cells are folded to fit into *width*."""
    names = [_printable(target.name) for target in targets]
    cells = [[result.row.name, *result.outcomes] for result in results]
    columns = widths([["", *names], *cells], width)
    lines = [
        f"{name}: {target.origin}"
        for name, target in zip(names, targets, strict=True)
        if not target.fresh
    ]
    lines += fold(" ", ["", *names], columns)
    for group, members in groupby(results, key=lambda result: result.row.group):
        lines += ["", group]
        for result in members:
            mark = MARK if result.differs else " "
            lines += fold(mark, [result.row.name, *result.outcomes], columns)
    return "\n".join([*lines, "", _summary(results)])


def _summary(results: Sequence[Result]) -> str:
    parts = [f"{len(results)} rows"]
    if len(results[0].outcomes) == 2:
        parts.append(f"{sum(result.differs for result in results)} differ")
    missing = sum(
        not all(map(outcomes.was_tried, result.outcomes)) for result in results
    )
    if missing:
        parts.append(f"{missing} not tried")
    return ", ".join(parts)


def _printable(name: str) -> str:
    """The name with escapes for bytes that are not UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def widths(cells: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """The width of each column: that of its longest cell, if all fit into *width*."""
    found = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if width is None:
        return found
    # A line is the mark and a space, the name, and the outcomes with a gap before each.
    room = width - 2 - len(_GAP) * (len(found) - 1)
    share = room // (len(found) + 1)
    outcome_widths = [min(one, max(share, _LEAST)) for one in found[1:]]
    return [
        min(found[0], max(room - sum(outcome_widths), _LEAST)),
        *outcome_widths,
    ]


def fold(mark: str, row: Sequence[str], columns: Sequence[int]) -> Iterator[str]:
    """The lines of one row. Long cells continue on the next lines."""
    cells = [
        textwrap.wrap(cell, width) or [""]
        for cell, width in zip(row, columns, strict=True)
    ]
    for parts in zip_longest(*cells, fillvalue=""):
        padded = _GAP.join(
            part.ljust(width) for part, width in zip(parts, columns, strict=True)
        )
        yield f"{mark} {padded}".rstrip()
        mark = " "


# --- for programs ---------------------------------------------------------------------


def as_json(targets: Sequence[Target], results: Sequence[Result]) -> str:
    """One object; docs/probe.md describes it."""
    target, *others = [{"name": one.name, "file": one.origin} for one in targets]
    report: dict[str, Any] = {
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "target": target,
        "against": others[0] if others else None,
        "rows": [_row(result) for result in results],
    }
    return json.dumps(report, indent=2)


def _row(result: Result) -> dict[str, Any]:
    outcome, *others = result.outcomes
    return {
        "group": result.row.group,
        "name": result.row.name,
        "outcome": outcome,
        "against": others[0] if others else None,
        "differs": result.differs if others else None,
    }
