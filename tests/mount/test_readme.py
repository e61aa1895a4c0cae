"""README.md: its commands, as root types them, and what they say there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from inaccfs.machine import Machine
from tests.mount import support
from tests.mount.support import TOP

pytestmark = [pytest.mark.fuse, support.needs_root]

TEXT: Final = (TOP / "README.md").read_text()


def block(before: str) -> list[str]:
    """The lines of the first program after *before*."""
    found = re.search(r"(?:^(?:    .*)?\n)+", TEXT.partition(before)[2], re.MULTILINE)
    assert found is not None
    return [line[4:] for line in found[0].strip("\n").splitlines()]


def shell(commands: list[str], directory: Path) -> str:
    """What they print, on both streams; each runs, whatever the last has said."""
    done = subprocess.run(
        ["bash", "-c", "\n".join(commands)],
        cwd=directory,
        env={
            **support.ENVIRONMENT,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return support.without_progress(done.stdout)


def loose(line: str) -> str:
    """A row of a table without its time, and without the width of its columns."""
    if not line.startswith("mapped "):
        return line
    return " ".join(re.sub(r"\d+\.\d+", "", line).split())


def test_the_first_screen_is_a_real_transcript(tmp_path: Path) -> None:
    own = block("## Change a rule")
    end = next(at for at, line in enumerate(own) if line.startswith("# "))
    (tmp_path / "bracket.py").write_text("\n".join(own[1:end]))
    lines = block("rules you can change.")
    # After that there is the picture.
    lines = lines[: next(at for at, line in enumerate(lines) if "a VMM," in line)]
    commands = [line[2:] for line in lines if line.startswith("# ")]
    said = iter(map(loose, shell(commands, tmp_path).splitlines()))
    for line in lines:
        if line and not line.startswith("# "):
            # The page may lack lines, and the ends of lines.
            assert any(one.startswith(loose(line)) for one in said), line
    assert not (tmp_path / "guests").exists()


def test_the_program_in_python(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("\n".join(block("## From Python")))
    assert shell(["python program.py"], tmp_path) == "invalidate 0 16384\n"


def test_the_commands_that_change_a_rule(tmp_path: Path) -> None:
    if reason := Machine().guest_memfd():
        pytest.skip(f"the last of them asks the kernel's guest_memfd: {reason}")
    lines = block("## Change a rule")
    assert lines[0] == "$ cat bracket.py"
    end = next(at for at, line in enumerate(lines) if line.startswith("# "))
    (tmp_path / "bracket.py").write_text("\n".join(lines[1:end]))
    (tmp_path / "workload.py").write_text("print(mount.pid and shim.query_stats())")
    # The suite has /tmp for all.
    guests = str(tmp_path / "guests")
    commands = [line[2:].replace("/tmp/guests", guests) for line in lines[end:]]
    said = shell(commands, tmp_path)
    # Another test's mount namespace may have a copy of the mount: umount says so.
    complaints = [line for line in said.splitlines() if line.startswith("inaccfs: ")]
    assert all(" is unmounted; " in line for line in complaints), complaints
    rows = re.search(r"(\d+) system calls", TEXT)
    assert rows is not None
    assert f"\n{rows[1]} rows, " in said
    assert "Traceback" not in said
    assert not support.is_mounted(guests)
