"""A user's private tmpfs: no other process of that user gets hold of it on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import inaccfs

TOP = Path(inaccfs.__file__).resolve().parent.parent

# What each script begins with: be a user without privileges, as a daemon is at first.
BEGIN = """
import ctypes, json, os, stat, sys
from inaccfs import mountcalls, ptraced, syscalls
from inaccfs.backing.options import TmpfsOptions
from inaccfs.backing.private import private_tmpfs

USER = 65534
prctl = ctypes.CDLL(None).prctl
PR_GET_DUMPABLE = 3

def drop():
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    os.chdir("/")

def make():
    backing = private_tmpfs(TmpfsOptions(size="1m"), fallback_name="inaccfs-test")
    private = backing.private
    backing.close()
    if not private:
        sys.exit(f"skip: {backing.warnings}")

drop()
"""

WATCHED = """
def watched(module, name):
    real = getattr(module, name)
    def call(*arguments):
        before = prctl(PR_GET_DUMPABLE)
        result = real(*arguments)
        after = prctl(PR_GET_DUMPABLE)
        fds = len(os.listdir("/proc/self/fd")) - 1
        seen = {"call": name, "dumpable": [before, after], "fds": fds}
        os.write(1, json.dumps(seen).encode() + b"\\n")
        return result
    setattr(module, name, call)

syscalls.set_dumpable(True)
ptraced.hide()
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
watched(syscalls, "unshare")
watched(syscalls, "setns")
watched(mountcalls, "detached_tmpfs")
make()
"""

VICTIM = """
syscalls.set_dumpable(True)
ptraced.hide()
print(os.getpid(), flush=True)
sys.stdin.readline()
for _ in range(60):
    make()
"""

# Looks at every fd of the victim's children, and keeps what is no file of its own
# namespace's: the tmpfs hangs in none.
THIEF = """
victim = sys.argv[1]
mounted = set()
with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
    for line in lines:
        major, minor = line.split()[2].split(":")
        mounted.add(os.makedev(int(major), int(minor)))
print("ready", flush=True)
looked = stolen = 0
while os.path.exists(f"/proc/{victim}"):
    try:
        with open(f"/proc/{victim}/task/{victim}/children") as file:
            pids = [victim, *file.read().split()]
    except OSError:
        break
    for pid in pids:
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        looked += 1
        for fd in fds:
            try:
                found = os.stat(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            stolen += stat.S_ISDIR(found.st_mode) and found.st_dev not in mounted
print(json.dumps({"looked": looked, "stolen": stolen}))
"""


def start(body: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + body, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TOP)},
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    if err.startswith("skip: "):
        pytest.skip(f"no user namespaces: {err}")
    assert process.returncode == 0, err
    return out


def test_no_process_with_the_tmpfs_was_ever_dumpable() -> None:
    """A dumpable process has no fds, not even those that the daemon had before."""
    found: list[dict[str, Any]] = [
        json.loads(line) for line in finish(start(WATCHED)).splitlines()
    ]
    assert [(one["call"], one["dumpable"]) for one in found] == [
        ("unshare", [1, 1]),
        ("setns", [0, 0]),
        ("unshare", [0, 0]),
        ("detached_tmpfs", [0, 0]),
    ]
    # Standard input, output and error, and the way to the daemon.
    assert found[0]["fds"] == 4
    assert found[1]["fds"] > 20


def test_a_thief_that_polls_gets_nothing() -> None:
    victim = start(VICTIM)
    assert victim.stdout is not None
    pid = victim.stdout.readline().strip()
    if not pid:
        finish(victim)
    thief = start(THIEF, pid)
    assert thief.stdout is not None
    if thief.stdout.readline() != "ready\n":
        finish(thief)
    finish(victim)
    found = json.loads(finish(thief).splitlines()[-1])
    assert found["stolen"] == 0
