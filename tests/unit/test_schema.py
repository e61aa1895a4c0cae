"""query-qmp-schema: it has QEMU's format, and describes the messages as they are."""

from __future__ import annotations

import enum
import subprocess
import sys
from typing import Annotated, Any, ClassVar, Literal, get_args

import msgspec
import pytest
from msgspec import Meta

from inaccfs.control import messages, qmp
from inaccfs.control.messages import COMMANDS, EVENTS, Command, Nothing, Result
from inaccfs.control.schema import introspect, schema
from inaccfs.shim.trace import What

# --- SchemaInfo, as QEMU's qapi/introspect.json has it ----------------------------


class _Info(
    msgspec.Struct, forbid_unknown_fields=True, tag_field="meta-type", kw_only=True
):
    name: str
    features: list[str] = []


class CommandInfo(_Info, tag="command"):
    arg_type: str = msgspec.field(name="arg-type")
    ret_type: str = msgspec.field(name="ret-type")
    allow_oob: bool = msgspec.field(name="allow-oob", default=False)

    def uses(self) -> list[str]:
        return [self.arg_type, self.ret_type]


class EventInfo(_Info, tag="event"):
    arg_type: str = msgspec.field(name="arg-type")

    def uses(self) -> list[str]:
        return [self.arg_type]


class BuiltinInfo(_Info, tag="builtin"):
    json_type: Literal[
        "string", "number", "int", "boolean", "null", "object", "array", "value"
    ] = msgspec.field(name="json-type")

    def uses(self) -> list[str]:
        return []


class Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    features: list[str] = []


class EnumInfo(_Info, tag="enum"):
    members: list[Named]
    # Since 6.2 QEMU has both this member and the old one.
    values: list[str]

    def uses(self) -> list[str]:
        return []


class ArrayInfo(_Info, tag="array"):
    element_type: str = msgspec.field(name="element-type")

    def uses(self) -> list[str]:
        return [self.element_type]


class Member(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    type: str
    default: msgspec.UnsetType | None = msgspec.UNSET
    features: list[str] = []

    @property
    def optional(self) -> bool:
        return self.default is None


class ObjectInfo(_Info, tag="object"):
    members: list[Member]

    def uses(self) -> list[str]:
        return [member.type for member in self.members]


class Variant(msgspec.Struct, forbid_unknown_fields=True):
    type: str


class AlternateInfo(_Info, tag="alternate"):
    members: list[Variant]

    def uses(self) -> list[str]:
        return [member.type for member in self.members]


SchemaInfo = (
    CommandInfo
    | EventInfo
    | BuiltinInfo
    | EnumInfo
    | ArrayInfo
    | ObjectInfo
    | AlternateInfo
)


def parse(infos: list[dict[str, Any]]) -> dict[str, SchemaInfo]:
    """A schema as a client reads it, after encoding and decoding."""
    found = msgspec.json.decode(msgspec.json.encode(infos), type=list[SchemaInfo])
    names = [info.name for info in found]
    assert len(names) == len(set(names))
    return {info.name: info for info in found}


@pytest.fixture
def parsed() -> dict[str, SchemaInfo]:
    return parse(schema())


def arguments(parsed: dict[str, SchemaInfo], name: str) -> dict[str, Member]:
    """The arguments of a command, or the data of an event."""
    info = parsed[name]
    assert isinstance(info, CommandInfo | EventInfo)
    kind = parsed[info.arg_type]
    assert isinstance(kind, ObjectInfo)
    return {member.name: member for member in kind.members}


# --- the schema of inaccfs ---------------------------------------------------------


def test_every_command_and_event_is_in_the_schema(
    parsed: dict[str, SchemaInfo],
) -> None:
    assert [
        name for name, info in parsed.items() if isinstance(info, CommandInfo)
    ] == list(COMMANDS)
    assert [
        name for name, info in parsed.items() if isinstance(info, EventInfo)
    ] == list(EVENTS)


def test_the_schema_has_exactly_the_types_in_use(
    parsed: dict[str, SchemaInfo],
) -> None:
    used: set[str] = set()
    to_visit = [*COMMANDS, *EVENTS]
    while to_visit:
        name = to_visit.pop()
        if name not in used:
            used.add(name)
            to_visit += parsed[name].uses()
    assert used == set(parsed)


SAMPLES: dict[str, Any] = {
    "str": "x",
    "int": 1,
    "bool": True,
    "[str]": [],
    "[Extent]": [],
    "[PutExtent]": [{"pfn": 1}],
    "int|str": "1-2-3-4",
    f"[{'|'.join(sorted(get_args(What)))}]": ["punch"],
    "Zaps": {"start": 5, "end": 7},
    "[TraceRecord]": [{"time": 1, "kind": "punch", "ino": 5}],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_the_members_of_the_schema_and_needs_those_not_optional(
    parsed: dict[str, SchemaInfo], name: str
) -> None:
    members = arguments(parsed, name)
    full = {member.name: SAMPLES[member.type] for member in members.values()}
    qmp.make_command(name, full)
    with pytest.raises(ValueError, match="unknown field"):
        qmp.make_command(name, {**full, "surplus": 1})
    for member in members.values():
        less = {key: value for key, value in full.items() if key != member.name}
        if member.optional:
            qmp.make_command(name, less)
        else:
            with pytest.raises(ValueError, match="missing required field"):
                qmp.make_command(name, less)
        with pytest.raises(ValueError, match="Expected `"):
            qmp.make_command(name, {**full, member.name: 1.5})


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_has_the_data_of_the_schema(
    parsed: dict[str, SchemaInfo], name: str
) -> None:
    members = arguments(parsed, name)
    data = {member.name: SAMPLES[member.type] for member in members.values()}
    event = msgspec.convert(data, EVENTS[name])
    assert msgspec.to_builtins(event) == data


def test_members_have_their_names_on_the_wire(parsed: dict[str, SchemaInfo]) -> None:
    assert list(arguments(parsed, "memfd-create")) == [
        "name",
        "flags",
        "fdname",
        "size",
    ]


def test_a_number_that_may_be_left_out_is_a_number(
    parsed: dict[str, SchemaInfo],
) -> None:
    assert arguments(parsed, "get-pfn")["count"] == Member("count", "int", None)


def test_a_null_that_is_sent_is_in_the_schema(parsed: dict[str, SchemaInfo]) -> None:
    info = parsed["NotifierInfo"]
    assert isinstance(info, ObjectInfo)
    (waiting,) = (member for member in info.members if member.name == "waiting")
    assert not waiting.optional
    assert sorted(parsed[waiting.type].uses()) == ["int", "null"]


def test_all_that_is_empty_has_one_type(parsed: dict[str, SchemaInfo]) -> None:
    assert parsed["quit"].uses() == ["Nothing", "Nothing"]
    assert parsed["Nothing"] == ObjectInfo(name="Nothing", members=[])


def test_features_show_facts_that_types_cannot(parsed: dict[str, SchemaInfo]) -> None:
    assert parsed["getfd"].features == ["takes-fd"]
    assert parsed["get-memory"].features == ["owner-only", "gives-fd"]
    assert parsed["get-pfn"].features == []


def test_the_schema_is_made_once() -> None:
    assert schema() is schema()


def test_a_daemon_does_without_until_it_is_asked() -> None:
    program = (
        "import sys, inaccfs.daemon; sys.exit('inaccfs.control.schema' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- types that messages may have later ----------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Tree(Result, frozen=True, kw_only=True):
    leaves: list[Tree]
    owner: int | None
    colour: Colour
    shape: Literal["round", "flat"]
    weight: float
    flag: Annotated[bool, Meta(description="whether")]
    anything: dict[str, Any]


class Grow(Command, frozen=True, kw_only=True):
    name: ClassVar[str] = "grow"
    returns: ClassVar[Any] = Tree


def an_enum(name: str, *values: str) -> EnumInfo:
    return EnumInfo(name=name, members=list(map(Named, values)), values=list(values))


def test_types_of_all_kinds() -> None:
    parsed = parse(introspect([Grow], []))

    tree = parsed["Tree"]
    assert isinstance(tree, ObjectInfo)
    assert {member.name: member.type for member in tree.members} == {
        "leaves": "[Tree]",
        "owner": "int|null",
        "colour": "Colour",
        "shape": "flat|round",
        "weight": "number",
        "flag": "bool",
        "anything": "any",
    }
    assert parsed["Colour"] == an_enum("Colour", "red", "blue")
    assert parsed["flat|round"] == an_enum("flat|round", "flat", "round")
    assert {
        info.name: info.json_type
        for info in parsed.values()
        if isinstance(info, BuiltinInfo)
    } == {
        "bool": "boolean",
        "int": "int",
        "null": "null",
        "number": "number",
        "any": "value",
    }


class Bytes(Command, frozen=True, kw_only=True):
    name: ClassVar[str] = "bytes"

    data: bytes


class Numbers(Command, frozen=True, kw_only=True):
    name: ClassVar[str] = "numbers"

    level: Literal[1, 2]


@pytest.mark.parametrize("command", [Bytes, Numbers])
def test_a_member_without_a_qmp_type_is_refused(command: type[Command]) -> None:
    with pytest.raises(TypeError, match="QMP has"):
        introspect([command], [])


class GetPfn(Command, frozen=True, kw_only=True):
    name: ClassVar[str] = "another-get-pfn"
    returns: ClassVar[Any] = Nothing

    what: str


def test_two_types_of_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match="two types have the name GetPfn"):
        introspect([messages.GetPfn, GetPfn], [])
