"""A daemon that is traced from its start: its owner gets a warning, others an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.mount import support
from tests.mount.support import PATIENCE, cli, inaccfs_command, run, status_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fuse

STRANGER = 12345

# Starts a command, traces it from its start, and becomes another user before it runs.
TRACER = """
import ctypes, os, sys

SEIZE, CONT, WALL = 0x4206, 7, 0x40000000
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_, uid, *command = sys.argv
go, gone = os.pipe()
child = os.fork()
if child == 0:
    os.close(gone)
    os.read(go, 1)
    os.execv(command[0], command)
if ptrace(SEIZE, child, None, None):
    sys.exit(os.strerror(ctypes.get_errno()))
os.setresuid(int(uid), int(uid), int(uid))
os.close(gone)
while True:
    _, status = os.waitpid(child, WALL)
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    signal = os.WSTOPSIG(status)
    ptrace(CONT, child, None, signal if status >> 16 == 0 else 0)
"""


def foreground(point: Path, scratch: Path, *more: str) -> list[str]:
    control = scratch / "control"
    return inaccfs_command("mount", "--foreground", "--control", control, *more, point)


def test_a_daemon_may_be_debugged_and_says_so(point: Path, scratch: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace")
    ready_read, ready_write = os.pipe()
    with (scratch / "log").open("wb") as log:
        traced = subprocess.Popen(
            [
                *("strace", "-f", "-qq", "-e", "trace=none", "-o", "/dev/null"),
                *foreground(point, scratch, "--ready-fd", str(ready_write)),
            ],
            pass_fds=[ready_write],
            stderr=log,
            env=support.ENVIRONMENT,
        )
    os.close(ready_write)
    try:
        assert support.wait_readable(ready_read)
        assert os.read(ready_read, 16) == b"ready\n", (scratch / "log").read_text()
        found = status_of(point)
        tracer = f"strace (pid {traced.pid})"
        assert found.tracer == tracer
        assert json.loads(cli("status", "--json", point).stdout)["tracer"] == tracer
        shown = cli("status", point).stdout
        assert f"  traced by  {tracer}, since it was started" in shown.splitlines()
        lines = (scratch / "log").read_text().splitlines()
        assert (
            f"inaccfs: warning: {tracer} traces this daemon: it can reach all" in lines
        )
        cli("umount", point)
        assert traced.wait(PATIENCE) == 0
    finally:
        os.close(ready_read)
        traced.kill()
        traced.wait(PATIENCE)
        if support.is_mounted(point):
            run("umount", "-l", point)


def test_a_daemon_that_is_not_traced_says_nothing(point: Path) -> None:
    with support.mounted(point) as mount:
        assert mount.status().tracer is None
        assert "tracer" not in json.loads(cli("status", "--json", point).stdout)
        assert "traced" not in cli("status", point).stdout


@support.needs_root
def test_another_users_tracer_is_refused(point: Path, scratch: Path) -> None:
    command = foreground(point, scratch)
    command[0] = sys.executable
    ran = run(sys.executable, "-c", TRACER, STRANGER, *command, status=1)
    (line,) = ran.stderr.splitlines()
    assert line.startswith("inaccfs: ")
    assert f"of user {STRANGER} traces this process" in line
    assert not support.is_mounted(point)
    assert not (scratch / "control").exists()


@support.needs_root
def test_roots_tracer_is_not(point: Path, scratch: Path) -> None:
    """So the other mount is not refused because it is traced at all."""
    missing = foreground(scratch / "missing", scratch)
    ran = run(sys.executable, "-c", TRACER, 0, *missing, status=1)
    assert "does not exist" in ran.stderr
