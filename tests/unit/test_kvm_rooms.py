"""The simulated KVM is an ordinary client; see the rooms of docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import inaccfs.kvm

DOORS = ("inaccfs.kvm", "inaccfs.client", "inaccfs.errors", "inaccfs.syscalls")


def imported(path: Path) -> set[str]:
    """The modules that a file imports, also where it does so late or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            package = {"inaccfs", "inaccfs.kvm"}
            found |= (
                {f"{module}.{each.name}" for each in node.names}
                if module in package
                else {module}
            )
    return found


def test_it_imports_what_any_client_may() -> None:
    files = list(Path(inaccfs.kvm.__file__).parent.glob("*.py"))
    ours = {
        name
        for path in files
        for name in imported(path)
        if name.partition(".")[0] == "inaccfs"
    }
    assert len(files) > 10
    assert "inaccfs.kvm.uapi" in ours
    strangers = [
        name
        for name in ours
        if not any(name == door or name.startswith(f"{door}.") for door in DOORS)
    ]
    assert strangers == []
