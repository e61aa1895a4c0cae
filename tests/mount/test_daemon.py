"""The daemon as a process: what it inherits, what it logs, and what it leaves."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest

import inaccfs
from tests.mount import support
from tests.mount.namespaces import quoted
from tests.mount.support import (
    ENVIRONMENT,
    PATIENCE,
    cli,
    complaint,
    inaccfs_command,
    new_file,
    outcome,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fuse

# --- a daemon that dies of an exception -------------------------------------------

BUGS: Final = {
    "an exception": "raise ZeroDivisionError('the bug')",
    "an exit": "raise SystemExit('the bug')",
    "an interrupt": "raise KeyboardInterrupt('the bug')",
    "one for users": "raise MountError('the bug')",
    "an option": "raise OptionError('the bug')",
    "one that cannot be told": "raise Untold",
}

# The loop, or the code after it, raises an exception.
BROKEN: Final = """
import signal, sys, trio
from inaccfs import daemon
from inaccfs.cli import main
from inaccfs.errors import MountError, OptionError

class Untold(BaseException):
    '''the bug'''
    def __str__(self):
        raise RuntimeError

async def end_on_signal(self):
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        if not self._stop.made:
            async for _ in signals:
                break
    {bug}

def unmount(self):
    unmount_right(self)
    {bug}

unmount_right = daemon.OwnMount.unmount
if {late}:
    daemon.OwnMount.unmount = unmount
else:
    daemon._Daemon._end_on_signal = end_on_signal
sys.exit(main())
"""


@pytest.mark.parametrize("late", [False, True], ids=["in the loop", "as it ends"])
@pytest.mark.parametrize("bug", BUGS)
def test_a_daemon_that_dies_of_an_exception_says_so_in_its_log(
    point: Path, scratch: Path, bug: str, late: bool
) -> None:
    reader, writer = os.pipe()
    log = scratch / "log"
    program = BROKEN.format(bug=BUGS[bug], late=late)
    with subprocess.Popen(
        [
            *(sys.executable, "-c", program, "mount", "--foreground"),
            *("--log", log, "--control", scratch / "c", "--ready-fd", str(writer)),
            point,
        ],
        pass_fds=[writer],
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as daemon:
        os.close(writer)
        with open(reader, "rb") as ready:
            assert ready.read() == b"ready\n"
        daemon.terminate()
        _, output = daemon.communicate(timeout=PATIENCE)
    assert (daemon.returncode, output) == (1, b"")
    assert not support.is_mounted(point)
    said = log.read_text()
    assert "CRITICAL inaccfs.cli.mount: the daemon ends: this is a bug" in said
    assert "Traceback (most recent call last)" in said
    assert "the bug" in said or "Untold" in said


def test_a_crash_of_python_is_in_the_log(point: Path, scratch: Path) -> None:
    log = scratch / "log"
    cli("mount", "--log", log, "--control", scratch / "c", point)
    pid = support.status_of(point).pid
    os.kill(pid, signal.SIGSEGV)
    support.wait_for_exit(pid)
    cli("umount", point)
    assert "Fatal Python error: Segmentation fault" in log.read_text()


# --- what it imports --------------------------------------------------------------

# Rooms, and modules of the command, that a daemon does not import at its start, because
# unneeded imports would delay every mount.
NOT_AT_START: Final = (
    *("client", "kvm", "explore", "inprocess", "experiments", "probe", "launch"),
    *("ending", "backing.usertmpfs"),
    *("pytest_plugin", "pytest_trio_plugin"),
    *("control.schema", "control.reference"),
    # A user's own rules, and simulated frames.
    *("semantics.load", "semantics.checking", "shim.simulated", "shim.buddy"),
    *("cli.console", "cli.experiment", "cli.explore", "cli.interrupts", "cli.kvm"),
    *("cli.probe", "cli.qmp", "cli.semantics", "cli.status", "cli.umount"),
    *("cli.compare", "cli.completing", "cli.kvmmount", "cli.kvmstress", "cli.manual"),
    *("cli.commandwords", "cli.setup_system", "system"),
)


@support.needs_root
def test_a_daemon_imports_only_what_it_needs_at_its_start(point: Path) -> None:
    ready, writer = os.pipe()
    with subprocess.Popen(
        [
            *(sys.executable, "-X", "importtime", "-m", "inaccfs", "mount"),
            *("--foreground", "--ready-fd", str(writer), point),
        ],
        pass_fds=[writer],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as daemon:
        os.close(writer)
        with open(ready, "rb") as pipe:
            assert pipe.read() == b"ready\n"
        cli("umount", point)
        _, log = daemon.communicate(timeout=PATIENCE)
    imported = set(re.findall(r"^import time:.*\| +inaccfs\.(\S+)$", log, re.MULTILINE))
    assert "daemon" in imported
    for name in NOT_AT_START:
        assert importlib.util.find_spec(f"inaccfs.{name}"), name
        assert name not in imported


# --- what it inherits -------------------------------------------------------------

STARTS: Final = {
    "nohup": 'exec nohup "$@"',
    "ignored": "trap '' CHLD TERM INT HUP PIPE; exec \"$@\"",
}

BLOCKED: Final = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("start", ["nohup", "ignored", "blocked"])
def test_the_daemon_handles_signals_that_its_parent_ignored_or_blocked(
    point: Path, scratch: Path, start: str, number: int
) -> None:
    log = scratch / "log"
    mount = inaccfs_command(
        "mount", "--size", "1g", "--log", log, "--control", scratch / "c", point
    )
    before = (
        [sys.executable, "-c", BLOCKED]
        if start == "blocked"
        else ["bash", "-c", STARTS[start], "bash"]
    )
    support.run(*before, *mount)
    pid = support.status_of(point).pid
    # Its worker process could not be waited for if SIGCHLD were ignored.
    file = new_file(point / "file")
    fd = os.open(file, os.O_RDWR)
    assert outcome(os.posix_fallocate, fd, 0, 200 << 20) == "ok"
    os.close(fd)
    os.kill(pid, number)
    support.wait_for_exit(pid)
    assert not support.is_mounted(point)
    support.assert_clean(support.log_text(log))
    assert support.log_text(log) == ""


def test_a_refused_mount_is_reported_where_children_are_ignored(
    point: Path, scratch: Path
) -> None:
    """Their exit status would be lost."""
    wanted = inaccfs_command(
        "mount", "--control", scratch / "c", "--backing", "/proc", point
    )
    ran = support.run("bash", "-c", STARTS["ignored"], "bash", *wanted, status=1)
    assert ran.stderr.startswith("inaccfs: backing /proc is on proc")


def test_a_command_that_is_interrupted_while_it_waits_makes_no_mount(
    point: Path, scratch: Path
) -> None:
    reader, writer = os.pipe()
    log = scratch / "log"
    with subprocess.Popen(
        [
            *inaccfs_command("mount", "--foreground", "--log", log),
            *("--control", scratch / "c", "--ready-fd", str(writer), point),
        ],
        pass_fds=[writer],
        env=ENVIRONMENT,
    ) as daemon:
        os.close(reader)
        os.close(writer)
        assert daemon.wait(PATIENCE) == 0
    assert not support.is_mounted(point)
    assert support.log_text(log) == ""


# --- the log ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        ("ln -s H/elsewhere H/log", "it is a symbolic link; name what it leads to"),
        ("ln -s /dev/null H/log", "it is a symbolic link; name what it leads to"),
        ("mkfifo H/log", "it is neither a regular file nor a device"),
        ("mkdir H/log", "Is a directory; name another with --log"),
        (
            f"""{sys.executable} -c 'from socket import *
socket(AF_UNIX).bind("H/log")'""",
            "it is neither a regular file nor a device",
        ),
    ],
    ids=["dangling link", "link", "fifo", "directory", "socket"],
)
def test_a_log_that_is_no_place_for_one(
    point: Path, scratch: Path, make: str, reason: str
) -> None:
    support.run("sh", "-c", make.replace("H", quoted(scratch)))
    message = complaint(
        "mount", "--log", scratch / "log", "--control", scratch / "c", point
    )
    assert message.startswith(f"inaccfs: cannot write the log {scratch}/log: ")
    assert reason in message
    assert not (scratch / "elsewhere").exists()
    assert not support.is_mounted(point)


def test_a_fifo_with_a_reader_is_no_log_either(point: Path, scratch: Path) -> None:
    log = scratch / "log"
    os.mkfifo(log)
    with open(os.open(log, os.O_RDONLY | os.O_NONBLOCK), "rb"):
        message = complaint("mount", "--log", log, "--control", scratch / "c", point)
    assert "neither a regular file nor a character device" in message


def logged(point: Path, scratch: Path, *options: str) -> list[str]:
    """The log of a mount on which some things happen."""
    log = scratch / "log"
    cli("mount", *options, "--log", log, "--control", scratch / "c", point)
    try:
        file = new_file(point / "file", support.PAGE)
        assert outcome(os.truncate, file, 5) == "EPERM"
        fd = os.open(file, os.O_RDWR)
        assert outcome(os.pread, fd, 1, 0) in ("EINVAL", "ESPIPE")
        os.close(fd)
        support.run("fallocate", "-p", "-o", "1", "-l", "5", file, status=1)
        with inaccfs.connect(point) as shim:
            shim.query_version()
    finally:
        cli("umount", point)
    lines = support.log_text(log).splitlines()
    with suppress(FileNotFoundError):
        log.unlink()
    return [line.split(" ", 2)[2] for line in lines]


def test_verbose_says_what_happens(point: Path, scratch: Path) -> None:
    lines = logged(point, scratch, "-v", "--pfn-source", "simulated")
    peer = f"peer 1 (pid {os.getpid()}, uid {os.geteuid()})"
    output = "\n".join(lines)
    for part in (
        f"INFO inaccfs.daemon: mounted: {point}: private tmpfs, control socket ",
        "INFO inaccfs.daemon: rules: v8 (v8 1/8, ",
        "INFO inaccfs.daemon: page frames: simulated, pinned by simulated",
        "INFO inaccfs.daemon: mmap: ",
        f"INFO inaccfs.control.server: {peer}: connected",
        f"INFO inaccfs.control.server: {peer}: gone",
        f"INFO inaccfs.daemon: unmounted: {point}",
        "INFO inaccfs.daemon: ending: unmounted",
    ):
        assert part in output
    assert "DEBUG" not in output


def test_very_verbose_says_what_the_rules_refuse(point: Path, scratch: Path) -> None:
    output = "\n".join(logged(point, scratch, "-vv"))
    assert "v8: check_size(current=4096, new=5, page_size=4096): EPERM" in output
    assert re.search(
        r"v8: check_fallocate\(mode=3, offset=1, length=5, .*\): EINVAL", output
    )


def test_plain_says_nothing(point: Path, scratch: Path) -> None:
    assert logged(point, scratch) == []


# --- Ctrl-C -----------------------------------------------------------------------


INTERRUPTED: Final = """
import signal, sys
from importlib.machinery import PathFinder

wanted = sys.argv.pop(1)

find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    if name == wanted:
        signal.raise_signal(signal.SIGINT)
    return find(name, path, target)

# The command's own finder uses it, too.
PathFinder.find_spec = find_spec
from inaccfs.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("inaccfs.cli.dispatch", "status"),
        ("argparse", "status"),
        ("msgspec", "status"),
        ("inaccfs.cli.mount", "mount --help"),
        ("inaccfs.cli.umount", "--help"),
        ("inaccfs.semantics.load", "semantics"),
        ("inaccfs.client", "kvm demo"),
        ("inaccfs.kvm.demo", "kvm demo"),
        ("inaccfs.probe.table", "probe memfd"),
        ("inaccfs.experiments.lab", "experiment"),
        ("inaccfs.explore.search", "explore mapped"),
        ("inaccfs.explore.scenarios", "explore mapped"),
        ("trio", "mount --foreground /nowhere"),
        ("pyfuse3", "mount --foreground /nowhere"),
    ],
)
def test_an_interrupt_during_imports_leaves_no_traceback(
    module: str, words: str
) -> None:
    ran = support.run(
        sys.executable, "-c", INTERRUPTED, module, *words.split(), status=130
    )
    assert (ran.stdout, ran.stderr) == ("", "")


def test_an_interrupted_stress_reports_its_seed_and_what_it_found() -> None:
    with subprocess.Popen(
        inaccfs_command("kvm", "stress", "--seconds", "1000", "--seed", "77"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        # Its VM has threads once it is at work.
        tasks = f"/proc/{process.pid}/task"
        support.ask_until(lambda: len(os.listdir(tasks)) > 4)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, "")
    assert re.match(r"\d.* s in \d+ rounds, interrupted: 4 vCPUs, .* seed 77\n", out)
    assert out.endswith("violations: none\n")
