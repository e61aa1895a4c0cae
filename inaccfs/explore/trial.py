"""Does a user's code end? A separate process finds out.

C code that spins, as sum(range(10**12)) does, lets no handler of a signal run: only the
kernel can end it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

from inaccfs.children import starting
from inaccfs.deferring import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable


def ends_in_time(call: Callable[[], object], seconds: float) -> bool:
    """Whether *call* returns or raises within *seconds*, in a child without output.

    Raises:
        InaccfsError: no process can be started.
    """
    pid = 0
    try:
        # Python prints and drops what a handler raises in a callback of a fork; and
        # here the exception comes only when the child's ID is known.
        with Deferred():
            with starting("a process that tries one schedule"):
                pid = os.fork()
            if not pid:
                _run(call, seconds)
        # The child's ID stays its own, whenever Ctrl-C comes.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    finally:
        if pid:
            # After Ctrl-C, which the child may not have got. It does nothing to a child
            # that has ended.
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
    return not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGALRM


def _run(call: Callable[[], object], seconds: float) -> NoReturn:
    """Be the child, which stays in `Deferred`: it gets no signal of the parent's."""
    try:
        # Their default is to end the process, at once and whatever it does.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup(1) ignores SIGHUP, and a shell SIGINT for a command with &.
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        call()
    finally:
        os._exit(0)
