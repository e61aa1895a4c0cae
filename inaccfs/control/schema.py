"""`query-qmp-schema`: the types of all commands and events, in QEMU's own format.

It is made from the message types, so it is exactly what the server decodes and encodes.
The format is SchemaInfo of QEMU's qapi/introspect.json, and the names of arrays and
builtin types are those of its scripts/qapi/introspect.py.

Object types have the names of their classes. QEMU uses numbers, so that clients cannot
rely on names. Tools follow names from command to type and accept any string, so those
of libvirt and QEMU need no numbers; people who use qmp-shell need names.

It is imported only when a peer asks: the daemon has to start fast and stay small.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from msgspec import inspect

from inaccfs.control import messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inaccfs.control.messages import Command, Event

# One SchemaInfo; its members depend on its "meta-type".
SchemaInfo = dict[str, Any]

# QEMU's name of a builtin type, and the JSON type that it has on the wire.
_BUILTINS: Final[dict[type[inspect.Type], tuple[str, str]]] = {
    inspect.AnyType: ("any", "value"),
    # Its content is free; QEMU has no type for that either.
    inspect.DictType: ("any", "value"),
    inspect.StrType: ("str", "string"),
    inspect.IntType: ("int", "int"),
    inspect.FloatType: ("number", "number"),
    inspect.BoolType: ("bool", "boolean"),
    inspect.NoneType: ("null", "null"),
}


@cache
def schema() -> list[SchemaInfo]:
    """The return of `query-qmp-schema`. All callers share it: do not change it."""
    return introspect(messages.COMMANDS.values(), messages.EVENTS.values())


def introspect(
    commands: Iterable[type[Command]], events: Iterable[type[Event]]
) -> list[SchemaInfo]:
    """The commands, the events, and the types that these use, each once.

    Raises:
        TypeError: QMP has no type for a member, or two types have one name.
    """
    types = _Types()
    schema = [_command(command, types) for command in commands]
    schema += [
        {"name": event.name, "meta-type": "event", "arg-type": types.name_of(event)}
        for event in events
    ]
    return [*schema, *types.infos.values()]


def _command(command: type[Command], types: _Types) -> SchemaInfo:
    info: SchemaInfo = {
        "name": command.name,
        "meta-type": "command",
        "arg-type": types.name_of(command),
        "ret-type": types.name_of(command.returns),
    }
    # Where QEMU lists what a client must know and the types do not show.
    features = {
        "owner-only": command.owner_only,
        "takes-fd": command.takes_fd,
        "gives-fd": command.gives_fd,
    }
    if any(features.values()):
        info["features"] = [name for name, has in features.items() if has]
    return info


class _Types:
    """The types used so far, by name."""

    def __init__(self) -> None:
        self.infos: Final[dict[str, SchemaInfo]] = {}
        self._classes: Final[dict[str, type]] = {}

    def name_of(self, kind: object) -> str:
        """The name of a Python type; adds the type to the description."""
        return self._use(inspect.type_info(kind))

    def _use(self, kind: inspect.Type) -> str:
        match kind:
            case inspect.Metadata(inner):
                return self._use(inner)
            case inspect.StructType():
                return self._object(kind)
            case inspect.ListType(item):
                element = self._use(item)
                return self._add(f"[{element}]", "array", {"element-type": element})
            case inspect.UnionType(members):
                return self._alternate(members)
            case inspect.EnumType(cls):
                return self._enum(cls.__name__, [each.value for each in cls])
            case inspect.LiteralType(values):
                return self._enum("|".join(map(str, values)), list(values))
        if type(kind) not in _BUILTINS:
            raise TypeError(f"QMP has no type for {kind}")
        name, json_type = _BUILTINS[type(kind)]
        return self._add(name, "builtin", {"json-type": json_type})

    def _add(self, name: str, meta_type: str, rest: SchemaInfo) -> str:
        self.infos.setdefault(name, {"name": name, "meta-type": meta_type, **rest})
        return name

    def _object(self, struct: inspect.StructType) -> str:
        # All empty objects are one type, as in QEMU.
        cls = struct.cls if struct.fields else messages.Nothing
        if self._classes.setdefault(cls.__name__, cls) is not cls:
            raise TypeError(f"two types have the name {cls.__name__}")
        if cls.__name__ not in self.infos:
            members: list[SchemaInfo] = []
            # Do this before its members, one of which may have this type again.
            self._add(cls.__name__, "object", {"members": members})
            members += [self._member(field, struct) for field in struct.fields]
        return cls.__name__

    def _member(self, field: inspect.Field, struct: inspect.StructType) -> SchemaInfo:
        kind = field.type
        if (
            isinstance(kind, inspect.UnionType)
            and field.default is None
            and struct.cls.__struct_config__.omit_defaults
        ):
            # This null means "left out", so it is never sent.
            kind = inspect.UnionType(
                tuple(
                    each
                    for each in kind.types
                    if not isinstance(each, inspect.NoneType)
                )
            )
        info: SchemaInfo = {"name": field.encode_name, "type": self._use(kind)}
        if not field.required:
            # Null means that it may be left out; it is not the default.
            info["default"] = None
        return info

    def _alternate(self, members: tuple[inspect.Type, ...]) -> str:
        names = [self._use(member) for member in members]
        if len(names) == 1:
            return names[0]
        return self._add(
            "|".join(names),
            "alternate",
            {"members": [{"type": each} for each in names]},
        )

    def _enum(self, name: str, values: list[Any]) -> str:
        if not all(isinstance(value, str) for value in values):
            raise TypeError(f"QMP has enums of strings only: {name}")
        # QEMU has had the one since 2.5 and the other since 6.2.
        both = {"members": [{"name": value} for value in values], "values": values}
        return self._add(name, "enum", both)
