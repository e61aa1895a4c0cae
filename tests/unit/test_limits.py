"""Places that start a process, where no more processes or fds are allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import inaccfs
from inaccfs.errors import NO_PROCESS, NoThreadError

if TYPE_CHECKING:
    from collections.abc import Iterable

TOP: Final = str(Path(inaccfs.__file__).resolve().parent.parent)

# Makes calls at a limit. Root has no limit of processes.
CODE = """
import os, resource, sys
from contextlib import ExitStack
from inaccfs import InaccfsError
from inaccfs.backing.usertmpfs import detached_in_user_namespace
from inaccfs.experiments import parts
from inaccfs.explore.carriers import Batons
from inaccfs.explore.trial import ends_in_time
from inaccfs.kvm.live import boot, kernel, places
from inaccfs.launch import _spawn
from inaccfs.machine import Machine
from inaccfs.probe.children import Child

class Mount:
    path = "/"

def victim():
    with parts.victim(Mount, 0, 1):
        pass

if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
pool = parts.threads(ExitStack(), 1)
limit = getattr(resource, sys.argv[1])
most = 1
if sys.argv[1] == "RLIMIT_NOFILE":
    most = os.open("/", os.O_RDONLY)
    os.close(most)
resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))
for call in sys.argv[2:]:
    try:
        print(eval(call))
    except InaccfsError as exc:
        print(f"{type(exc).__name__}: {exc}")
"""

STARTS: Final = {
    "victim()": "InaccfsError: cannot start the process that is to be killed: ",
    "boot._emulate([], 1)": "LiveError: cannot start QEMU: ",
    "kernel._run(['true'], '/', sys.stdout)": "LiveError: cannot start true: ",
    "places._installed(('bc',))": "LiveError: cannot start dpkg-query: ",
    "_spawn([], [], None)": "MountError: cannot start the daemon: ",
    "Machine().user_namespaces()": "cannot try it with unshare(1): ",
}

FORKS: Final = {
    "ends_in_time(int, 1)": "InaccfsError: cannot start a process that tries one "
    "schedule: ",
    "Child(int, 1)": "InaccfsError: cannot start the child for a row: ",
    "detached_in_user_namespace({})": "BackingError: cannot start a process that makes "
    "the private tmpfs: ",
}


def said(limit: str, calls: Iterable[str], folder: Path) -> list[str]:
    """A line for each call; *folder* has the programs that this machine may lack."""
    folder.chmod(0o755)
    for name in ("qemu-system-x86_64", "dpkg-query", "unshare"):
        program = folder / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": TOP,
    }
    ran = subprocess.run(
        [sys.executable, "-c", CODE, limit, *calls],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ran.stderr == ""
    return ran.stdout.splitlines()


def test_no_more_processes(scratch: Path) -> None:
    calls = STARTS | FORKS
    threads = ["Batons().thread(print, None)", "pool.submit(str, 1).result()"]
    assert said("RLIMIT_NPROC", [*calls, *threads], scratch) == [
        *(f"{begin}{NO_PROCESS}" for begin in calls.values()),
        f"NoThreadError: {NoThreadError()}",
        "1",
    ]


def test_no_more_fds(scratch: Path) -> None:
    reason = "Too many open files: raise the limit of open files (ulimit -n)"
    assert said("RLIMIT_NOFILE", STARTS, scratch) == [
        f"{begin}{reason}" for begin in STARTS.values()
    ]
