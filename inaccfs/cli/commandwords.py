"""Commands as people type them, `get-pfn file=/guest0 offset=0x10`.

Each value is parsed by the type of its argument: a number may be 0x10, and a text is
taken literally.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from inaccfs.control import qmp
from inaccfs.control.messages import COMMANDS, Command, QmpCapabilities
from inaccfs.errors import OptionError
from inaccfs.words import integer, natural, nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

TYPED: Final = {
    name: kind for name, kind in COMMANDS.items() if kind is not QmpCapabilities
}
"""The commands that a user types: the negotiation is over before that."""


class Typed(NamedTuple):
    """A command, and the path of a file to send with it."""

    command: Command
    path: str | None


def parse(words: Sequence[str]) -> Typed:
    """Make a command of its name and NAME=VALUE words.

    Raises:
        OptionError: there is no such command, or it has no such argument.
    """
    name, *rest = words
    kind = TYPED.get(name)
    if kind is None:
        raise OptionError(
            f"no command {name!r}{_nearest(name, TYPED)} (inaccfs qmp -h lists them)"
        )
    fields = _fields(kind)
    arguments: dict[str, object] = {}
    path: str | None = None
    for word in rest:
        key, equals, text = word.partition("=")
        if not equals:
            raise OptionError(f"{name}: {word!r} is not NAME=VALUE")
        if kind.takes_fd and key == "fd":
            path = text
        elif key not in fields:
            raise OptionError(
                f"{name} has no argument {key!r}{_nearest(key, fields)} ({usage(kind)})"
            )
        else:
            arguments[key] = _value(f"{name}: {key}", text, fields[key].type)
    missing = [key for key, field in fields.items() if field.required]
    if kind.takes_fd:
        missing.append("fd")
    if set(missing) - {*arguments, *(["fd"] if path is not None else [])}:
        raise OptionError(f"{name} needs {' and '.join(missing)} ({usage(kind)})")
    try:
        return Typed(qmp.make_command(name, arguments), path)
    except ValueError as exc:
        # "get-pfn: Expected `int` >= 0 - at `$.offset`", in the order of the others.
        text, _, place = str(exc).removeprefix(f"{name}: ").partition(" - at `$.")
        what = f"{name}: {place.rstrip('`')}" if place else name
        raise OptionError(f"{what}: {text}") from None


def _nearest(name: str, names: Sequence[str] | dict[str, Any]) -> str:
    found = nearest(name, names)
    return f": did you mean {found}?" if found else ""


def _fields(kind: type[Command]) -> dict[str, msgspec.inspect.Field]:
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, msgspec.inspect.StructType)
    return {field.encode_name: field for field in described.fields}


def _plain(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """A type without its limits, and without None for an optional member."""
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        given = [
            one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)
        ]
        return _plain(given[0]) if len(given) == 1 else kind
    return kind


def _value(what: str, text: str, kind: msgspec.inspect.Type) -> object:
    match _plain(kind):
        case msgspec.inspect.StrType():
            return text
        case msgspec.inspect.IntType():
            if (number := integer(text)) is None:
                raise OptionError(
                    f"{what}: {quoted(text)} is not a whole number of at most 64 bits"
                )
            return number
        case msgspec.inspect.BoolType() if text not in ("true", "false"):
            raise OptionError(f"{what}: {quoted(text)} is not true or false")
    if "-" in text and natural(text.partition("-")[0]) is not None:
        # The start of a page of query-pins, which is not a number.
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as exc:
        raise OptionError(f"{what}: {quoted(text)} is not JSON: {exc}") from None


def usage(kind: type[Command]) -> str:
    """One line: `get-pfn file=FILE offset=N [count=N]`."""
    words = [kind.name]
    for name, field in _fields(kind).items():
        match _plain(field.type):
            case msgspec.inspect.IntType():
                value = "N"
            case msgspec.inspect.BoolType():
                value = "true|false"
            case _:
                value = name.upper()
        word = f"{name}={value}"
        words.append(word if field.required else f"[{word}]")
    if kind.takes_fd:
        words.append("fd=PATH")
    return " ".join(words)


def help_text() -> str:
    """All commands, with their arguments and what they do."""
    lines = []
    for kind in TYPED.values():
        first = (kind.__doc__ or "").partition("\n")[0]
        lines += [f"  {usage(kind)}", f"      {first}"]
    return "\n".join(lines)
