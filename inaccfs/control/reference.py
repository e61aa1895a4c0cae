"""The reference part of docs/control-protocol.md, made from the message types.

usage: python -m inaccfs.control.reference [FILE]

Prints it; or writes it into FILE, between the two lines that mark its place.

The description of a member is in its type (msgspec.Meta), or in the comment above it in
the source. Docstrings are copied, and the errnos that they name are the errors in the
tables.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import NODEFAULT, Struct
from msgspec import inspect as types

from inaccfs import errnos
from inaccfs.control.messages import COMMANDS, EVENTS, Command, Nothing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BEGIN: Final = "<!-- begin: python -m inaccfs.control.reference -->"
END: Final = "<!-- end -->"

_ERRNO: Final = re.compile(r"\bE[A-Z0-9]+\b")
_CLASS: Final = re.compile(r"class (\w+)")
_COMMENT: Final = re.compile(r"    # (.*)")
_MEMBER: Final = re.compile(r"    (\w+):")


def render() -> str:
    """The reference: commands, what they return, events; in Markdown."""
    commands = list(COMMANDS.values())
    parts = [
        "## Commands",
        _table(
            ("command", "arguments", "returns", "fd", "who", "errors"),
            [_summary(command) for command in commands],
        ),
        *(part for command in commands for part in _command(command)),
        "## What commands take and return, and events have",
        *(part for struct in _objects(commands) for part in _result(struct)),
        "## Events",
        _table(
            ("event", "data", "answer"),
            [
                (
                    _link(event.name),
                    _names(_fields(event)),
                    _link(event.answer.name) if event.answer else "",
                )
                for event in EVENTS.values()
            ],
        ),
        *(
            part
            for event in EVENTS.values()
            for part in (
                _heading(event.name),
                _docstring(event),
                *_members("data", _fields(event), event),
            )
        ),
    ]
    return "\n\n".join(parts) + "\n"


def update(text: str) -> str:
    """*text* with a new reference between the marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = text.partition(BEGIN + "\n")
    _, end, after = rest.partition(END + "\n")
    if not begin or not end:
        raise ValueError(f"needs a line {BEGIN} and a line {END}")
    return f"{before}{begin}\n{render()}\n{end}{after}"


# --- commands, results and events -----------------------------------------------------


def _summary(command: type[Command]) -> tuple[str, ...]:
    returns = types.type_info(command.returns)
    return (
        _link(command.name),
        _names(_fields(command)),
        "`{}`" if command.returns is Nothing else _type(returns),
        "sent" if command.takes_fd else "returned" if command.gives_fd else "",
        "root, owner" if command.owner_only else "all",
        ", ".join(_errors(command)),
    )


def _command(command: type[Command]) -> Iterator[str]:
    yield _heading(command.name)
    yield _docstring(command)
    yield from _members("argument", _fields(command), command)


def _errors(command: type[Command]) -> list[str]:
    """The errnos that a command names, in order; and EPERM if it is for owners."""
    found = [
        name
        for name in _ERRNO.findall(inspect.getdoc(command) or "")
        if name in errnos.NUMBERS
    ]
    return list(dict.fromkeys(found + ["EPERM"] * command.owner_only))


def _objects(commands: Sequence[type[Command]]) -> list[types.StructType]:
    """All objects in commands, returns and events, each once."""
    found: dict[type, types.StructType] = {}
    to_visit: list[types.Type] = []
    for event in reversed(EVENTS.values()):
        to_visit += [field.type for field in reversed(_fields(event))]
    for command in reversed(commands):
        to_visit.append(types.type_info(command.returns))
        to_visit += [field.type for field in reversed(_fields(command))]
    while to_visit:
        match to_visit.pop():
            case types.StructType(cls) as struct if cls not in {Nothing, *found}:
                found[cls] = struct
                to_visit += [field.type for field in reversed(struct.fields)]
            case types.ListType(item):
                to_visit.append(item)
            case types.UnionType(kinds):
                to_visit += kinds
            case types.Metadata(inner):
                to_visit.append(inner)
    return list(found.values())


def _result(struct: types.StructType) -> Iterator[str]:
    yield _heading(struct.cls.__name__, code=False)
    yield _docstring(struct.cls)
    yield from _members("member", struct.fields, struct.cls)


def _fields(kind: type) -> tuple[types.Field, ...]:
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    return info.fields


def _members(title: str, fields: Sequence[types.Field], cls: type) -> Iterator[str]:
    """A table of the members; empty if there are none."""
    if not fields:
        return
    meanings = comments(cls)
    header = [title, "type", "default", "meaning"]
    rows = [
        [
            f"`{field.encode_name}`",
            _type(field.type, none=field.default is not None),
            "" if field.required else _default(field),
            _description(field.type) or meanings.get(field.name, ""),
        ]
        for field in fields
    ]
    if all(field.required for field in fields):
        for row in (header, *rows):
            del row[2]
    yield _table(header, rows)


def _default(field: types.Field) -> str:
    """The default of an optional member."""
    if field.default_factory is not NODEFAULT:
        return f"`{field.default_factory()}`"
    if field.default in (None, NODEFAULT):
        return "left out"
    return f"`{field.default}`"


def comments(cls: type) -> dict[str, str]:
    """The comment above each member of a class, in its source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Struct) and base is not Struct:
            found |= _comments_in(base.__module__).get(base.__name__, {})
    return found


@cache
def _comments_in(module: str) -> dict[str, dict[str, str]]:
    """As `comments`, for all classes of a module."""
    found: dict[str, dict[str, str]] = {}
    members: dict[str, str] = {}
    comment: list[str] = []
    for line in inspect.getsource(sys.modules[module]).splitlines():
        if match := _COMMENT.fullmatch(line):
            comment.append(match[1])
            continue
        if match := _CLASS.match(line):
            members = found.setdefault(match[1], {})
        elif (match := _MEMBER.match(line)) and comment:
            members[match[1]] = " ".join(comment)
        comment = []
    return found


# --- types as text --------------------------------------------------------------------


def _type(kind: types.Type, *, none: bool = True) -> str:
    """The type in words. Without *none*, None only means that it may be left out."""
    match kind:
        case types.Metadata(inner):
            return _type(inner)
        case types.StructType(cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case types.ListType(item):
            empty = ", empty" if kind.max_length == 0 else ""
            return f"array of {_type(item)}{empty}"
        case types.UnionType(kinds):
            return " or ".join(
                _type(each)
                for each in kinds
                if none or not isinstance(each, types.NoneType)
            )
        case types.LiteralType(values):
            return " or ".join(f"`{value}`" for value in values)
        case types.DictType():
            return "object"
        case types.StrType():
            return "string" + _range(
                kind.min_length, kind.max_length, " of", " characters"
            )
        case types.IntType():
            return "int" + _range(kind.ge, kind.le, ",", "")
        case types.NoneType():
            return "null"
        case types.BoolType():
            return "bool"
    raise TypeError(f"there is no name for {kind}")


def _range(low: int | None, high: int | None, before: str, after: str) -> str:
    if high is not None:
        return f"{before} {low or 0} to {_number(high)}{after}"
    return "" if low is None else f"{before} {low} or more{after}"


def _number(number: int) -> str:
    """A number, for people."""
    bits = (number + 1).bit_length() - 1
    return f"2^{bits} - 1" if number == (1 << bits) - 1 and bits > 16 else f"{number}"


def _description(kind: types.Type) -> str:
    match kind:
        case types.Metadata():
            return str((kind.extra_json_schema or {}).get("description", ""))
        case types.UnionType(kinds):
            return next(filter(None, map(_description, kinds)), "")
    return ""


# --- Markdown -------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        for row in (header, *rows)
    ]
    lines.insert(1, "|---" * len(header) + "|")
    return "\n".join(lines)


def _heading(name: str, *, code: bool = True) -> str:
    return f"### `{name}`" if code else f"### {name}"


def _link(name: str) -> str:
    anchor = name.lower()
    if name in EVENTS and anchor in COMMANDS:
        # GitHub's anchor for the second heading of that name.
        anchor += "-1"
    return f"[`{name}`](#{anchor})"


def _names(fields: Sequence[types.Field]) -> str:
    return ", ".join(
        f"`{field.encode_name}`" if field.required else f"[`{field.encode_name}`]"
        for field in fields
    )


def _docstring(cls: type) -> str:
    text = inspect.getdoc(cls)
    assert text is not None
    return text


def main(arguments: Sequence[str]) -> int:
    """Print the reference, or write it into the named file."""
    if not arguments:
        sys.stdout.write(render())
        return 0
    path = Path(arguments[0])
    path.write_text(update(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
