"""Does a user's code end? A separate process finds out.

C code that spins, as sum(range(10**12)) does, lets no handler of a signal run: only the
kernel can end it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def ends_in_time(call: Callable[[], object], seconds: float) -> bool:
    """Whether *call* returns or raises within *seconds*, in a child without output."""
    pid = os.fork()
    if not pid:
        try:
            # Their default is to end the process, at once and whatever it does.
            for number in (signal.SIGALRM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            call()
        finally:
            os._exit(0)
    try:
        _, status = os.waitpid(pid, 0)
    except BaseException:
        # Ctrl-C, which the child may not have got.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGALRM
