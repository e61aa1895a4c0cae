"""inaccfs semantics: the rules of the versions, side by side."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs import errnos
from inaccfs.cli import output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from inaccfs.semantics import Semantics

_GAP: Final = "  "


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "semantics",
        help="show the rules of the versions",
        description="Show the rules of all versions of the interface, or of those that "
        "are named, side by side. A rule in which they differ is marked with *. "
        "docs/semantics.md explains the rules.",
    )
    parser.add_argument(
        "names",
        metavar="NAME|FILE.py:CLASS",
        nargs="*",
        help="a version, or your own; inaccfs mount --semantics takes the same",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the table."""
    from inaccfs.semantics import VERSIONS, load

    shown = [load.load(name) for name in args.names] or [make() for make in VERSIONS]
    rules = ["events", *load.rules()]
    if args.json:
        output.say_json(msgspec.json.encode([_as_dict(one, rules) for one in shown]))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        output.say("\n\n".join(_tables(shown, rules, width)))
    return 0


def _as_dict(one: Semantics, rules: Sequence[str]) -> dict[str, Any]:
    words = {"name": one.name, "source": one.source}
    return words | {rule: getattr(one, rule) for rule in rules}


def _tables(
    shown: Sequence[Semantics], rules: Sequence[str], width: int
) -> Iterator[str]:
    """As many tables as the *width* takes; one, if there is none."""
    cells = {rule: [_cell(rule, getattr(one, rule)) for one in shown] for rule in rules}
    marks = {rule: "*" if len(set(row)) > 1 else " " for rule, row in cells.items()}
    labels = ["", *(f"{marks[rule]} {rule}" for rule in rules)]
    first = _widest(labels)
    columns = [
        [one.name, *(cells[rule][at] for rule in rules)] for at, one in enumerate(shown)
    ]
    while columns:
        block: list[list[str]] = []
        used = first
        while columns and (
            not block or not width or used + len(_GAP) + _widest(columns[0]) <= width
        ):
            used += len(_GAP) + _widest(columns[0])
            block.append(columns.pop(0))
        yield "\n".join(
            _GAP.join(
                [
                    label.ljust(first),
                    *(column[row].ljust(_widest(column)) for column in block),
                ]
            ).rstrip()
            for row, label in enumerate(labels)
        )


def _widest(column: Sequence[str]) -> int:
    return max(map(len, column))


def _cell(rule: str, value: object) -> str:
    """A value for people."""
    if rule == "events":
        assert isinstance(value, list)
        return ", ".join(event.removeprefix("INVALIDATE_") for event in value)
    if rule == "magic":
        return f"{value:#x}"
    if rule.endswith("errno"):
        assert isinstance(value, int)
        return errnos.NAMES.get(value, os.strerror(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
