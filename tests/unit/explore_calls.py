"""Calls of `inaccfs explore` in this process, and scenarios in a user's file."""

from __future__ import annotations

import json
from textwrap import dedent
from typing import TYPE_CHECKING, Any

from inaccfs.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    Run = Callable[..., tuple[int, str, str]]
    ScenarioFile = Callable[[str], str]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The status of the command, and what it prints to both outputs."""
    try:
        status = main(["explore", *words])
    except SystemExit as exc:
        status = int(exc.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def write_scenario(path: Path, actors: str) -> str:
    """Write a scenario with these actors to a file; returns the command's argument."""
    text = "from inaccfs.explore import Scenario\n\nclass Mine(Scenario):\n"
    text += "    def setup(self):\n        self.fd = self.file(pages=1)\n"
    text += "        self.one = self.vm()\n        self.slot(self.one, self.fd)\n"
    text += "        self.cpu = self.one.create_vcpu()\n        self.list = []\n"
    path.write_text(text + "".join(f"    {x}\n" for x in dedent(actors).split("\n")))
    return f"{path}:Mine"


def row_of(out: str) -> dict[str, Any]:
    """The only row of the command's JSON."""
    [row] = json.loads(out)["rows"]
    assert isinstance(row, dict)
    return row
