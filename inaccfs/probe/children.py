"""Run work in a child process: it may be killed, run another program, or hang."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from inaccfs import syscalls
from inaccfs.children import fork, starting, wait_readable
from inaccfs.probe import outcomes

if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[[str], None]

LIMIT = 5.0
"""In seconds. Every attempt takes milliseconds, unless it hangs."""

HANGS: Final = "hangs"

# How many seconds a killed child may take to end. If a FUSE server has read the child's
# request and does not answer, the child ends only when that server does.
_GRACE: Final = 1.0

# A message of the child is one of these characters, a text, and NUL.
_STAGE: Final = "+"
_RESULT: Final = "="
_BUG: Final = "!"


class Ending(NamedTuple):
    """How a child has ended."""

    stages: list[str]
    """The outcomes that it reported on its way, in order."""

    result: str | None
    """The result of its work; None if it did not return."""

    fate: str
    """How it ended: a signal, "hangs", or an exit status, in words."""


class ChildFailedError(RuntimeError):
    """The work raised an exception; the message is its traceback."""


def run(work: Callable[[Say], str]) -> Ending:
    """Run *work* in a child, which is killed after `LIMIT` seconds.

    *work* gets a function to report how far it is. Its changes to memory and its fds
    end with the child.

    Raises:
        ChildFailedError: *work* raised an exception.
    """
    return Child(work, LIMIT).ending()


class Child:
    """A child that runs *work*, and is killed after *limit* seconds.

    Others may be started before its end is waited for.
    """

    def __init__(self, work: Callable[[Say], str], limit: float) -> None:
        """Fork. Call `ending` or `kill`."""
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        with starting("the child for a row"):
            self._pid: Final = fork()
        if self._pid == 0:
            _be_child(work, writer)
        os.close(writer)
        self._child: Final = os.pidfd_open(self._pid)
        self._deadline: Final = time.monotonic() + limit

    def ending(self) -> Ending:
        """Wait for the end.

        Raises:
            ChildFailedError: *work* raised an exception.
        """
        in_time = False
        try:
            said = _read_all(self._reader, self._deadline)
            in_time = _wait(self._child, self._deadline)
        finally:
            status = self.kill()
        return _ending(said, status if in_time else None)

    def kill(self) -> int:
        """Kill it, if it has not ended; what waitpid(2) tells of it."""
        # kill(2) is safe here: the child has not been reaped, so its pid is not reused.
        os.kill(self._pid, signal.SIGKILL)
        gone = _wait(self._child, time.monotonic() + _GRACE)
        os.close(self._child)
        os.close(self._reader)
        # A child that has not ended yet becomes init's when this process ends.
        _, status = os.waitpid(self._pid, 0 if gone else os.WNOHANG)
        return status


def _ending(said: bytes, status: int | None) -> Ending:
    """*status* is that of waitpid(2); None if the child had to be killed."""
    stages = []
    result = None
    for message in said.decode(errors="replace").split("\0")[:-1]:
        kind, text = message[:1], message[1:]
        if kind == _BUG:
            raise ChildFailedError(text)
        if kind == _RESULT:
            result = text
        else:
            stages.append(text)
    if status is None:
        return Ending(stages, None, HANGS)
    if os.WIFSIGNALED(status):
        return Ending(stages, None, outcomes.signal_name(os.WTERMSIG(status)))
    exit_status = os.waitstatus_to_exitcode(status)
    return Ending(stages, result, f"ends with status {exit_status}")


def _read_all(reader: int, deadline: float) -> bytes:
    """Read the child's messages until it ends, runs a program, or *deadline*."""
    said = b""
    while _wait(reader, deadline):
        chunk = os.read(reader, 4096)
        if not chunk:
            break
        said += chunk
    return said


def _wait(fd: int, deadline: float) -> bool:
    """Wait until a pipe has data or ended, or the process of a pidfd has ended."""
    return wait_readable(fd, max(0.0, deadline - time.monotonic()))


def _be_child(work: Callable[[Say], str], writer: int) -> NoReturn:
    def tell(kind: str, text: str) -> None:
        os.write(writer, f"{kind}{text}\0".encode())

    try:
        _settle()
        tell(_RESULT, work(lambda text: tell(_STAGE, text)))
    # The parent raises it: this stack must not unwind into the parent's callers.
    except BaseException:
        tell(_BUG, traceback.format_exc())
    finally:
        os._exit(0)


def _settle() -> None:
    """Die with the parent or at Ctrl-C, without a traceback or a core file."""
    syscalls.die_with_parent()
    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Not 0: with a limit of 0 core(5) still pipes the dump to a program.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (1 if hard else 0, hard))
