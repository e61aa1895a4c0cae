"""Starts child processes, and ends them before their parent ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from inaccfs.deferring import Deferred
from inaccfs.errors import InaccfsError, not_started

if TYPE_CHECKING:
    from collections.abc import Iterator

# How long a busy child may take to end: it may have much memory to free.
_BUSY_SECONDS: Final = 60.0

# After its time a child is looked at: it hangs if it is found waiting so many times in
# a row. Once is not enough, for a daemon also waits for its helper.
_LOOKS: Final = 5
_LOOK_SECONDS: Final = 0.1

_KILLED_SECONDS: Final = 1.5


@contextmanager
def starting(what: str, kind: type[InaccfsError] = InaccfsError) -> Iterator[None]:
    """Report that no process can be started, in a with block that starts *what*.

    Raises:
        InaccfsError: there are too many processes or open files, or memory is short; of
            the *kind*.
        OSError: another error.
    """
    try:
        yield
    except OSError as exc:
        if (reason := not_started(exc)) is None:
            raise
        raise kind(f"cannot start {what}: {reason}") from exc


def fork() -> int:
    """os.fork(), which loses an exception that a signal handler raises in its hooks.

    Here it is raised after the fork, and the child is killed.
    """
    pid = 0
    try:
        with Deferred() as deferred:
            pid = os.fork()
            if pid == 0:
                deferred.drop()
    except BaseException:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
    return pid


def wait_readable(fd: int, seconds: float | None = None) -> bool:
    """Wait until a pipe has data or is at its end, or the process of a pidfd has ended.

    False if that is not so after *seconds*.
    """
    # select(2) takes no fd above 1023.
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(None if seconds is None else seconds * 1000))


def end(process: subprocess.Popen[Any], seconds: float) -> None:
    """End a child by SIGTERM, and wait for it; kill it if it hangs after *seconds*.

    One that ignores SIGTERM is killed at once: nothing else tells it to end. Its
    `returncode` is None if it hangs in the kernel. Call it in exception handlers: after
    a KeyboardInterrupt Popen's with block does not wait.
    """
    process.terminate()
    # A stopped process does not see SIGTERM.
    process.send_signal(signal.SIGCONT)
    if _ignores(process.pid, signal.SIGTERM):
        kill(process)
        return
    deadline = time.monotonic() + _BUSY_SECONDS
    idle = 0
    while idle < _LOOKS and time.monotonic() < deadline:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            # It may have little CPU time, or much memory to free.
            idle = 0 if _is_running(process.pid) else idle + 1
            seconds = _LOOK_SECONDS
        else:
            return
    kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a child and wait for it, but not for one that hangs in the kernel."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_KILLED_SECONDS)


def _ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal; false if it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            ignored = next(line for line in lines if line.startswith("SigIgn:"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(ignored.split()[1], 16) >> (number - 1) & 1)


def _is_running(pid: int) -> bool:
    """Whether a process is runnable, and does not wait."""
    return _state(pid) == "R"


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped a process."""
    return _state(pid) in ("T", "t")


def _state(pid: int) -> str:
    """The letter of a process's state in proc_pid_stat(5).

    It is "" if the process has ended, or if /proc is mounted with hidepid and hides it.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before the state is in parentheses, and may contain them.
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # If SIGCHLD is ignored there is no zombie.
        return ""
