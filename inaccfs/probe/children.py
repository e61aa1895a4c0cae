"""Work in a child process: it may die of a signal, run another program, or hang."""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from inaccfs import syscalls
from inaccfs.probe import outcomes

if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[[str], None]

LIMIT = 5.0
"""In seconds. All that is tried here takes milliseconds, unless it hangs."""

HANGS: Final = "hangs"

# How long a killed child may take: one that waits for a server of FUSE that has read
# its request, and does not answer, is killed only by that server's end.
_GRACE: Final = 1.0

# A message of the child is one of these, a text, and NUL.
_STAGE: Final = "+"
_RESULT: Final = "="
_BUG: Final = "!"


class Ending(NamedTuple):
    """How a child has ended."""

    stages: list[str]
    """What it said on its way, in order."""

    result: str | None
    """What its work returned, unless something came in between."""

    fate: str
    """What did: a signal, "hangs", or the exit status of a program that it ran."""


class ChildFailedError(RuntimeError):
    """The work itself has a bug; the message is its traceback."""


def run(work: Callable[[Say], str]) -> Ending:
    """Do *work* in a child, and see to it that nothing is left of it after `LIMIT`.

    Work may say how far it has come. What it changes in memory, and opens, is gone
    with the child.

    Raises:
        ChildFailedError: *work* raised something.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _be_child(work, writer)
    os.close(writer)
    child = os.pidfd_open(pid)
    try:
        deadline = time.monotonic() + LIMIT
        told = _read_all(reader, deadline)
        in_time = _wait(child, deadline)
    finally:
        # Not by pidfd_send_signal(2): the child is ours and not reaped, so its pid is
        # nobody else's.
        os.kill(pid, signal.SIGKILL)
        gone = _wait(child, time.monotonic() + _GRACE)
        os.close(child)
        os.close(reader)
        # A zombie of a child that cannot be killed yet goes with this process.
        _, status = os.waitpid(pid, 0 if gone else os.WNOHANG)
    return _ending(told, status if in_time else None)


def _ending(told: bytes, status: int | None) -> Ending:
    """*status* is as waitpid(2) has it; None if the child had to be killed."""
    stages = []
    result = None
    for message in told.decode(errors="replace").split("\0")[:-1]:
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
    """What the child says until it ends or runs a program, or the time is over."""
    told = b""
    while _wait(reader, deadline):
        chunk = os.read(reader, 4096)
        if not chunk:
            break
        told += chunk
    return told


def _wait(fd: int, deadline: float) -> bool:
    """Wait for a pipe's data or end, or for the end of a pidfd's process."""
    seconds = max(0.0, deadline - time.monotonic())
    readable, _, _ = select.select([fd], [], [], seconds)
    return bool(readable)


def _be_child(work: Callable[[Say], str], writer: int) -> NoReturn:
    def tell(kind: str, text: str) -> None:
        os.write(writer, f"{kind}{text}\0".encode())

    try:
        _settle()
        tell(_RESULT, work(lambda text: tell(_STAGE, text)))
    # A bug is the parent's to raise: this stack must not unwind into its callers.
    except BaseException:
        tell(_BUG, traceback.format_exc())
    finally:
        os._exit(0)


def _settle() -> None:
    """Die quietly: with the parent, of Ctrl-C, without a traceback or a core file."""
    syscalls.die_with_parent()
    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # 1 and not 0, which does not bar a program that takes core dumps; see core(5).
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (1 if hard else 0, hard))
