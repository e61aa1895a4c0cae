"""What rooms of the package import; see docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import inaccfs

PACKAGE = Path(inaccfs.__file__).parent
# What each room may import of inaccfs. The KVM is an ordinary client.
DOORS = {
    "backing": ("backing", "errors", "mountinfo", "syscalls", "words"),
    "kvm": ("kvm", "client", "errors", "syscalls"),
    "inprocess": (
        *("inprocess", "client.errors", "client.notifying", "semantics", "shim"),
        "syscalls",
    ),
}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, also where it does so late or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            package = {"inaccfs", *(f"inaccfs.{room}" for room in DOORS)}
            found |= (
                {f"{module}.{each.name}" for each in node.names}
                if module in package
                else {module}
            )
    return found


@pytest.mark.parametrize("room", DOORS)
def test_a_room_imports_what_it_may(room: str) -> None:
    files = list((PACKAGE / room).glob("*.py"))
    ours = {
        name
        for path in files
        for name in imported(path)
        if name.partition(".")[0] == "inaccfs"
    }
    assert len(files) > 3
    assert any(name.startswith(f"inaccfs.{room}.") for name in ours)
    doors = [f"inaccfs.{door}" for door in DOORS[room]]
    strangers = [
        name
        for name in ours
        if not any(name == door or name.startswith(f"{door}.") for door in doors)
    ]
    assert strangers == []


def test_nobody_but_users_imports_the_shim_in_one_process() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith("inaccfs.inprocess") for name in imported(path))
    }
    assert importers == {"inprocess"}
