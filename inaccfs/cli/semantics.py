"""inaccfs semantics: the rules of the versions, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from inaccfs import errnos
from inaccfs.cli import output, terminal
from inaccfs.streams import printable

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
        description="Show the rules of all versions of the interface, or of the given "
        "ones, side by side. A rule in which they differ is marked with "
        "*, and so is a method that FILE.py overrides. Into a pipe the "
        "command writes one table. docs/semantics.md explains the rules.",
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
    from inaccfs.semantics import VERSIONS, checking, load

    shown = [load.load(name) for name in args.names] or [make() for make in VERSIONS]
    rules = ["events", *checking.rules()]
    code = [checking.own_code(one) for one in shown]
    if args.json:
        table = [
            _as_dict(one, rules, own) for one, own in zip(shown, code, strict=True)
        ]
        output.say_json(msgspec.json.encode(table))
    else:
        rows = [*(_row(rule, shown) for rule in rules), *_code_rows(code)]
        names = [printable(one.name) for one in shown]
        output.say("\n\n".join(_tables(names, rows, terminal.width())))
    return 0


def _as_dict(
    one: Semantics, rules: Sequence[str], code: dict[str, object]
) -> dict[str, Any]:
    words = {"name": one.name, "source": one.source}
    return (
        words
        | {rule: getattr(one, rule) for rule in rules}
        | ({"code": sorted(code)} if code else {})
    )


class _Row(NamedTuple):
    """A rule, and its value in each of the semantics."""

    label: str
    cells: list[str]


def _row(rule: str, shown: Sequence[Semantics]) -> _Row:
    cells = [_cell(rule, getattr(one, rule)) for one in shown]
    return _Row(_marked(rule, set(cells)), cells)


def _code_rows(code: Sequence[dict[str, object]]) -> Iterator[_Row]:
    """The rows of methods that users' classes define, which no rule shows."""
    for method in dict.fromkeys(name for own in code for name in own):
        cells = ["its own code" if method in own else "by the rules" for own in code]
        yield _Row(_marked(method, {own.get(method) for own in code}), cells)


def _marked(name: str, values: set[Any]) -> str:
    return f"{'*' if len(values) > 1 else ' '} {name}"


def _tables(names: Sequence[str], rows: Sequence[_Row], width: int) -> Iterator[str]:
    """The table, split into several of at most *width* columns; one without *width*."""
    labels = ["", *(row.label for row in rows)]
    first = _widest(labels)
    columns = [
        [name, *(row.cells[at] for row in rows)] for at, name in enumerate(names)
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
    """A value, for people."""
    if rule == "events":
        assert isinstance(value, list)
        return ", ".join(event.removeprefix("INVALIDATE_") for event in value)
    if rule == "magic":
        return f"{value:#x}"
    if rule.endswith("errno"):
        assert isinstance(value, int)
        return errnos.name(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
