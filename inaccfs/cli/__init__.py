"""The command line: one module per subcommand.

This module only sets up what must be right before the others are imported, which takes
a tenth of a second: the standard streams, and the effect of Ctrl-C meanwhile.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

from inaccfs import streams
from inaccfs.cli.statuses import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status.

    Without *argv* it runs the process's own command, and sets up signals for it.
    """
    streams.fill()
    if argv is not None:
        return _run(argv)
    # If our parent process ignored SIGCHLD, the kernel would discard the status of our
    # children. See wait(2).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _interrupts(signal.default_int_handler, _leave)
    # `launch.start_daemon` blocks it for the time until now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        return _run_process()
    except KeyboardInterrupt:
        # The second Ctrl-C, or one while the output was written out.
        return INTERRUPTED
    finally:
        _interrupts(signal.default_int_handler, _leave)


def _run(argv: Sequence[str]) -> int:
    from inaccfs.cli import dispatch

    return dispatch.run(argv)


def _run_process() -> int:
    from inaccfs.cli import dispatch, signals

    # Before `take`, for SIGTERM calls the handler of SIGINT.
    _interrupts(_leave, signal.default_int_handler)
    signals.take()
    try:
        return dispatch.run(None)
    finally:
        signals.finish()


def _interrupts(before: object, now: signal._HANDLER) -> None:
    """Set the handler of SIGINT to *now*, if the present one is *before*."""
    if signal.getsignal(signal.SIGINT) == before:
        signal.signal(signal.SIGINT, now)


def _leave(_number: int, _frame: object) -> NoReturn:
    # An exception would be raised within an import, or as the interpreter ends, where
    # nothing can handle it and a traceback would be printed.
    os._exit(INTERRUPTED)
