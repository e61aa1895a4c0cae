"""docs/tutorial.md: its commands, in one shell, print what the page shows."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.mount import support
from tests.mount.support import TOP

pytestmark = [pytest.mark.fuse, support.needs_root]

TEXT: Final = (TOP / "docs" / "tutorial.md").read_text()

# Printed before each command, to separate the outputs of the commands.
_MARK: Final = "--- next ---\n"


def commands() -> list[tuple[str, str]]:
    """Each command of the page, and its output; "..." stands for any lines."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        for line in block.splitlines(keepends=True):
            if line.startswith("$ "):
                found.append((line[2:], ""))
            elif line.startswith(">"):
                more = line[1:].removeprefix(" ")
                found[-1] = (found[-1][0] + more, found[-1][1])
            else:
                found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    steps = commands()
    script = "".join(f"echo '{_MARK.strip()}'\n{command}" for command, _ in steps)
    environment = {
        **support.ENVIRONMENT,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    outputs = done.stdout.split(_MARK)[1:]
    assert len(outputs) == len(steps), done.stdout
    for (command, expected), output in zip(steps, outputs, strict=True):
        pattern = re.sub(r"([*?[])", r"[\1]", expected).replace("...\n", "*")
        assert fnmatch.fnmatchcase(output, pattern), (command, output)


def test_the_page_says_what_explore_finds(tmp_path: Path) -> None:
    """One search finds an error, the other none."""
    (tmp_path / "bracket.py").write_text(
        next(c for c, _ in commands() if "bracket.py" in c)
        .split("\n", 1)[1]
        .partition("END\n")[0]
    )
    for rules, status in (("v8", 1), (f"{tmp_path}/bracket.py:Bracket", 0)):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "inaccfs",
                "explore",
                "mapped",
                "--semantics",
                rules,
            ],
            capture_output=True,
            check=False,
        )
        assert done.returncode == status
