"""The outcomes of rows, as a table for people or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

from inaccfs.kvm.probe.asking import ABSENT
from inaccfs.probe.report import MARK, fold, widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.kvm.probe.table import Result, Side


def table(sides: Sequence[Side], results: Sequence[Result], width: int | None) -> str:
    """One line for each row, in groups; cells are folded to fit into *width*.

    A row that differs is followed by a sentence that says what it does.
    """
    names = [side.name for side in sides]
    cells = [[result.row.name, *result.outcomes] for result in results]
    columns = widths([["", *names], *cells], width)
    lines = [f"{side.name}: {side.origin}" for side in sides if side.origin]
    lines += fold(" ", ["", *names], columns)
    for group, members in groupby(results, key=lambda result: result.row.group):
        lines += ["", group]
        for result in members:
            mark = MARK if result.differs else " "
            lines += fold(mark, [result.row.name, *result.outcomes], columns)
            if result.differs:
                lines.append(f"      {result.row.sentence}")
    return "\n".join([*lines, "", *_summary(results)])


def _summary(results: Sequence[Result]) -> list[str]:
    parts = [f"{len(results)} rows"]
    if len(results[0].answers) == 2:
        parts.append(f"{sum(result.differs for result in results)} differ")
    lacking = Counter(
        answer.why
        for result in results
        for answer in result.answers[-1:]
        if answer.outcome == ABSENT
    )
    if lacking:
        parts.append(f"{lacking.total()} absent")
    return [
        ", ".join(parts),
        *(f"  absent, for want of {why}: {count}" for why, count in lacking.items()),
    ]


def as_json(
    about: dict[str, Any], sides: Sequence[Side], results: Sequence[Result]
) -> str:
    """One object; docs/live-kvm.md describes it."""
    rows = [_row(result) for result in results]
    kvms = [side.name for side in sides]
    origins = [side.origin for side in sides]
    found = {**about, "kvms": kvms, "origins": origins, "rows": rows}
    return json.dumps(found, indent=2)


def _row(result: Result) -> dict[str, Any]:
    row = {
        "group": result.row.group,
        "name": result.row.name,
        "what": result.row.sentence,
        "outcomes": result.outcomes,
        "differs": result.differs,
    }
    if result.row.allowed:
        row["allowed"] = sorted(result.row.allowed)
    lacks = [answer.why for answer in result.answers]
    if any(lacks):
        row["lacks"] = lacks
    return row
