"""Which room may import which: the table of docs/architecture.md, without circles.

An import counts wherever it stands: in a function or under TYPE_CHECKING, too. To know
a type of another room is to know the room. So does a name in a string count, by which a
module may be imported, or run in another process.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import inaccfs

PACKAGE = Path(inaccfs.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"

# Groups of modules that may import each other, and why. They do so for types only.
CIRCLES = {
    "a mount makes its clients, and they use its files": [
        *("inprocess.client", "inprocess.mount"),
    ],
    "a client makes its files, and they use its connection": [
        *("client.blocking", "client.blockingfile"),
    ],
}


class Room(NamedTuple):
    """A row of the table."""

    row: int
    # The rooms, or modules of rooms, that it may import.
    doors: tuple[str, ...]


@cache
def rooms() -> dict[str, Room]:
    """The table of the page. The first row is the ground floor."""
    text = PAGE.read_text().partition("## The rooms")[2].partition("\n## ")[0]
    found: dict[str, Room] = {}
    lines = re.findall(r"^\| (`.*?) \| .* \| (.*) \|$", text, re.MULTILINE)
    for row, (names, doors) in enumerate(lines):
        for name in re.findall("`(.*?)`", names):
            assert name not in found, name
            room = Room(row, tuple(_dotted(door) for door in _quoted(doors)))
            found[_dotted(name)] = room
    return found


def _quoted(text: str) -> list[str]:
    return re.findall("`(.*?)`", text)


def _dotted(name: str) -> str:
    return name.rstrip("/").replace("/", ".")


@cache
def modules() -> dict[str, Path]:
    """Each module by its name without "inaccfs."; the package itself is __init__."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        is_package = parts[-1] == "__init__" and len(parts) > 1
        found[".".join(parts[:-1] if is_package else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of this package that a module imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names |= {f"{node.module}.{each.name}" for each in node.names}
    ours = {name for name in names if name.split(".")[0] == "inaccfs"}
    return frozenset(_module(name.partition(".")[2]) for name in ours)


@cache
def named(module: str) -> frozenset[str]:
    """What a module names in strings: modules, or the package of a name that it makes.

    As in import_module(f"inaccfs.cli.{name}"), or the command of another process.
    """
    strings = {
        node.value
        for node in ast.walk(ast.parse(modules()[module].read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    names = {text.rstrip(".") for text in strings if _NAME.fullmatch(text)}
    return frozenset(_module(name.partition(".")[2]) for name in names)


_NAME = re.compile(r"inaccfs(\.\w+)+\.?")


@cache
def runs(module: str) -> frozenset[str]:
    """What an import of a module runs: its imports, and the packages that have them."""
    packages = {
        package
        for imported in imports(module)
        for package in _packages(imported)
        if not _leads_to(package, module)
    }
    return imports(module) | packages


def _packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _module(name: str) -> str:
    """The module of a *name*, which may be the name of something in the module."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name or "__init__"


def _room(module: str) -> str:
    return module.partition(".")[0]


def _leads_to(door: str, module: str) -> bool:
    return module == door or module.startswith(f"{door}.")


def test_every_module_is_in_a_room_of_the_table() -> None:
    assert {_room(module) for module in modules()} == set(rooms())


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_exactly_what_the_table_says(room: str) -> None:
    ground = {name for name, other in rooms().items() if other.row == 0}
    used = {
        imported
        for module in modules()
        if _room(module) == room
        for imported in imports(module)
        if _room(imported) not in (room, *ground)
    }
    doors = rooms()[room].doors
    assert [m for m in used if not any(_leads_to(door, m) for door in doors)] == []
    assert [d for d in doors if not any(_leads_to(d, m) for m in used)] == []


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_none_below_it_in_the_table(room: str) -> None:
    """So there is no circle of rooms."""
    row, doors = rooms()[room]
    assert [door for door in doors if rooms()[_room(door)].row >= row] == []


@pytest.mark.parametrize("module", [name for name in modules() if named(name)])
def test_a_module_names_only_what_its_room_may_import(module: str) -> None:
    room = _room(module)
    doors = (room, *rooms()[room].doors)
    strangers = [
        name
        for name in named(module)
        if not any(_leads_to(door, name) for door in doors)
    ]
    assert strangers == []


def test_the_ground_floor_stands_on_nothing() -> None:
    ground = {name for name, room in rooms().items() if room.row == 0}
    used = {imported for module in ground for imported in imports(module)}
    assert used <= ground


def test_no_modules_import_each_other_but_those_that_may() -> None:
    found = [set(circle) for circle in circles() if len(circle) > 1]
    groups = [set(group) for group in CIRCLES.values()]
    assert [c for c in found if not any(c <= group for group in groups)] == []
    # A group without a circle must be removed from the list.
    assert [g for g in groups if not any(c <= g for c in found)] == []


def circles() -> list[tuple[str, ...]]:
    """The strongly connected modules; see Tarjan, 1972."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in runs(module):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == order[module]:
            at = stack.index(module)
            found.append(tuple(sorted(stack[at:])))
            del stack[at:]

    for module in sorted(modules()):
        if module not in order:
            visit(module)
    return found
