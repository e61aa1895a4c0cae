"""The table of docs/exploring.md: which version shows what in which scenario.

    python -m tests.explore_page [--seconds N] [--write]

Each search takes at most N seconds of CPU (300).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Final, NamedTuple

import inaccfs
from inaccfs.explore.load import versions
from inaccfs.explore.proposals import IN_PLACE
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case, Limits, explore

PAGE: Final = Path(inaccfs.__file__).parent.parent / "docs" / "exploring.md"

KVMS: Final = ("kvm", "no-retry")

SHORT: Final = {
    "use-after-free": "uaf",
    "stale-mapping": "stale",
    "unexplained-read": "read",
    "waits-for-ever": "ever",
}

# The others are about proposals, and have another table.
TABLED: Final = tuple(name for name, one in SCENARIOS.items() if one not in IN_PLACE)

_BEGIN: Final = "| scenario | KVM |"
_NOT_ALL: Final = " †"


class Place(NamedTuple):
    """A cell of the table."""

    scenario: str
    kvm: str
    version: str


def cell(scenario: str, kvm: str, version: str, limits: Limits) -> str:
    """What a search finds, in the words of the page."""
    outcome = explore(Case(SCENARIOS[scenario], versions()[version], kvm), limits)
    kinds = sorted(SHORT.get(kind, kind) for kind in outcome.kinds)
    return (", ".join(kinds) or "clean") + ("" if outcome.complete else _NOT_ALL)


def distinct() -> dict[str, list[str]]:
    """The versions that differ, each with the versions that have the same results."""
    found: dict[str, list[str]] = {}
    for name, rules in versions().items():
        found.setdefault(rules.name, []).append(name)
    return found


def compute(limits: Limits) -> dict[Place, str]:
    """All cells."""
    found = {}
    for name, kvm, version in itertools.product(TABLED, KVMS, distinct()):
        found[Place(name, kvm, version)] = cell(name, kvm, version, limits)
        print(name, kvm, version, found[Place(name, kvm, version)], file=sys.stderr)
    return found


def render(cells: dict[Place, str]) -> str:
    """The table. Neighbouring versions with the same results share a column."""
    columns: list[list[str]] = []
    for version in distinct():
        if columns and all(
            cells[Place(name, kvm, version)] == cells[Place(name, kvm, columns[-1][0])]
            for name, kvm in itertools.product(TABLED, KVMS)
        ):
            columns[-1].append(version)
        else:
            columns.append([version])
    same = distinct()
    heads = [
        ", ".join(name for each in column for name in same[each]) for column in columns
    ]
    lines = [f"{_BEGIN} {' | '.join(heads)} |", "|---" * (len(columns) + 2) + "|"]
    for name, kvm in itertools.product(TABLED, KVMS):
        texts = [cells[Place(name, kvm, column[0])] for column in columns]
        lines.append(f"| {name} | {kvm} | {' | '.join(texts)} |")
    return "\n".join(lines)


def parse(text: str) -> dict[Place, str]:
    """The cells of the page, by the name of each version."""
    lines = text[text.index(_BEGIN) :].partition("\n\n")[0].splitlines()
    heads, _, *rows = ([one.strip() for one in line.split("|")[1:-1]] for line in lines)
    return {
        Place(name, kvm, version): found
        for name, kvm, *cells in rows
        for head, found in zip(heads[2:], cells, strict=True)
        for version in head.split(", ")
    }


def main() -> None:
    """Print the table, or put it into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    table = render(compute(Limits(args.seconds)))
    if not args.write:
        print(table)
        return
    text = PAGE.read_text()
    before, _, rest = text.partition(_BEGIN)
    PAGE.write_text(before + table + "\n\n" + rest.partition("\n\n")[2])


if __name__ == "__main__":
    main()
