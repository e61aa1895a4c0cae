"""Every command with standard streams that are closed, full, or without a reader.

The command ends with its usual status, and without a traceback.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import pytest

import inaccfs
from tests.mount import support
from tests.mount.support import ENVIRONMENT, PATIENCE, cli, inaccfs_command, new_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse

GONE: Final = "d=$(mktemp -d); cd $d; rmdir $d; "

# What a shell does before it runs a command, the redirections, and whether the command
# notices that its output is lost.
STATES: Final = {
    "in closed": ("", "<&-", False),
    "out closed": ("", ">&-", False),
    "err closed": ("", "2>&-", False),
    "all closed": ("", "<&- >&- 2>&-", False),
    "in full": ("", "</dev/full", False),
    "out full": ("", ">/dev/full", True),
    "err full": ("", "2>/dev/full", False),
    "both full": ("", ">/dev/full 2>&1", True),
    "in for writing": ("", "0>/dev/null", False),
    "out for reading": ("", "1</dev/null", True),
    "pipe": ("", ">&$broken", True),
    "unbuffered": ("PYTHONUNBUFFERED=1; export PYTHONUNBUFFERED; ", ">/dev/full", True),
    "no directory": (GONE, "", False),
}


def start(words: list[str], state: str) -> subprocess.Popen[str]:
    """`inaccfs` with *words* and its streams in that *state*."""
    before, redirections, _ = STATES[state]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.Popen(
            [
                # Not sh(1), because some shells cannot redirect fd 10.
                *("bash", "-c", f'broken={writer}; {before}exec "$@" {redirections}'),
                *("bash", *inaccfs_command(*words)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[writer],
            text=True,
            env=ENVIRONMENT,
        )
    finally:
        os.close(writer)


# By command: its status, and its status if its output is lost.
COMMANDS: Final = [
    ("--version", 0, 1),
    ("--help", 0, 1),
    ("nonsense", 2, 2),
    ("mount", 2, 2),
    ("mount --size=x MOUNT", 2, 2),
    ("mount MOUNT", 1, 1),
    ("umount /nowhere", 1, 1),
    ("status MOUNT", 0, 1),
    ("status --json MOUNT", 0, 1),
    ("status /nowhere", 1, 1),
    ("semantics", 0, 1),
    ("semantics --json v8", 0, 1),
    ("semantics v88", 2, 2),
    ("qmp MOUNT query-version", 0, 1),
    ("qmp MOUNT nonsense", 2, 2),
    ("qmp --help", 0, 1),
    ("kvm demo MOUNT", 0, 1),
    ("kvm stress --seconds 0.1 --vcpus 1 MOUNT", 0, 1),
    ("kvm run --mount MOUNT SCRIPT", 0, 1),
    ("kvm run /nowhere", 1, 1),
    # For this command 1 means that there are differences.
    ("probe MOUNT/file", 0, 2),
    ("probe --json memfd", 0, 2),
    ("experiment", 0, 1),
    ("experiment alignment", 0, 1),
]


Command = tuple[str, int, int]


def check(mount: Mount, scratch: Path, command: Command, states: Sequence[str]) -> None:
    """Run it once in each of *states*, all at once."""
    words, status, lost = command
    (scratch / "script.py").write_text("print('hello')\n")
    words = words.replace("SCRIPT", str(scratch / "script.py"))
    arguments = words.replace("MOUNT", str(mount.path)).split()
    with ExitStack() as stack:
        started = {}
        for number, state in enumerate(states):
            if words.startswith("probe MOUNT"):
                file = new_file(mount.path / f"file{number}")
                arguments = ["probe", str(file)]
            started[state] = stack.enter_context(start(arguments, state))
        output = {
            state: (*process.communicate(timeout=PATIENCE), process.returncode)
            for state, process in started.items()
        }
    for state, (out, err, ended) in output.items():
        assert "Traceback" not in out + err, (state, out, err)
        expected = lost if STATES[state][2] else status
        assert ended == expected, (state, out, err)


def two_of(number: int) -> list[str]:
    """Two states, one of them with lost output; after 8 numbers all have had a turn."""
    by_loss = [
        [state for state in STATES if STATES[state][2] is lost]
        for lost in (False, True)
    ]
    return [states[number % len(states)] for states in by_loss]


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda at: COMMANDS[at][0])
def test_every_command_ends_with_any_kind_of_streams(
    mount: Mount, scratch: Path, number: int
) -> None:
    """In two states each; tests/hard has all."""
    check(mount, scratch, COMMANDS[number], two_of(number))


def test_all_mounts_are_shown_with_any_kind_of_streams() -> None:
    """Mounts of other tests may be dead or stopped, so the status may be 0 or 1."""
    with ExitStack() as stack:
        started = [stack.enter_context(start(["status"], state)) for state in STATES]
        for process in started:
            out, err = process.communicate(timeout=PATIENCE)
            assert "Traceback" not in out + err
            assert process.returncode in (0, 1)


@pytest.mark.parametrize("state", STATES)
def test_a_mount_is_made_and_undone_with_any_kind_of_streams(
    point: Path, scratch: Path, state: str
) -> None:
    """If they are closed, the pipe for readiness would get their numbers."""
    log = scratch / "log"
    options = ["--size=4m", f"--log={log}", f"--control={scratch}/c"]
    with start(["mount", *options, str(point)], state) as process:
        out, err = process.communicate(timeout=PATIENCE)
        try:
            assert (process.returncode, out) == (0, ""), err
            assert support.status_of(point).size == 4 << 20
        finally:
            with start(["umount", str(point)], state) as ending:
                ending.communicate(timeout=PATIENCE)
    assert ending.returncode == 0
    assert not support.is_mounted(point)
    assert support.log_text(log) == ""


MOUNTED = """
import os
for fd in range(3):
    os.close(fd)
import inaccfs
with inaccfs.mounted() as mount:
    status = mount.status()
    assert all(os.stat(fd).st_rdev == os.stat("/dev/null").st_rdev for fd in range(3))
os._exit(42 if status.pid == mount.pid else 1)
"""


def test_mounted_does_without_streams() -> None:
    support.run(sys.executable, "-c", MOUNTED, status=42)


@pytest.mark.parametrize("state", ["in full", "in for writing"])
def test_commands_are_not_read_for_ever(mount: Mount, state: str) -> None:
    """/dev/full has no end, and no lines."""
    with start(["qmp", str(mount.path)], state) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("inaccfs: ")
    assert err.count("\n") == 1


def test_a_relative_path_in_a_removed_directory_is_reported() -> None:
    with start(["umount", "relative"], "no directory") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("inaccfs: ")
    assert "working directory" in err
    assert "has been removed" in err
    assert err.count("\n") == 1


# --- names with control characters ------------------------------------------------


EVIL: Final = "a\x1b[31m\x9b2Jb\nc\u202e"


def test_names_reach_no_terminal_as_they_are(scratch: Path) -> None:
    point = scratch / EVIL
    point.mkdir()
    with inaccfs.mounted(point) as mount:
        new_file(mount.path / EVIL)
        said = [
            cli("status", point),
            # Mounts of other tests may be stopped.
            support.run(*inaccfs_command("status"), status=None),
            support.run(*inaccfs_command("status", "--json"), status=None),
            support.run(*inaccfs_command("mount", point), status=1),
            support.run(*inaccfs_command("probe", point / EVIL / "x"), status=2),
            support.run(*inaccfs_command("qmp", point, "query-files")),
            support.run(*inaccfs_command("qmp", mount.control, EVIL), status=2),
            support.run(*inaccfs_command("kvm", "run", point / "none"), status=1),
            support.run(*inaccfs_command("status", "a", EVIL), status=2),
            support.run(*inaccfs_command("mount", "-o", EVIL, point), status=2),
            support.run(*inaccfs_command("semantics", f"{point}/x.py:X"), status=2),
        ]
    for ran in said:
        for line in (ran.stdout + ran.stderr).split("\n"):
            assert line.isprintable(), ran
    assert said[3].stderr.count("\n") == 1


def test_names_in_a_log_are_one_line(scratch: Path) -> None:
    point = scratch / EVIL
    point.mkdir()
    log = scratch / "log"
    cli("mount", "-v", "--log", log, "--control", scratch / "c", point)
    cli("umount", point)
    lines = log.read_text().splitlines()
    assert all(line.isprintable() for line in lines)
    assert any("mounted: " in line and "\\x1b[31m" in line for line in lines)
    with suppress(OSError):
        os.unlink(log)
