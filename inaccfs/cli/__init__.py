"""The command line: one module a subcommand.

Here is only what must be right before these are imported, which takes a tenth of a
second: the standard streams, and what Ctrl-C does meanwhile.
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

    Without *argv* it is the process's own command, and its signals are the command's.
    """
    streams.fill()
    if argv is not None:
        return _run(argv)
    # If our parent ignores SIGCHLD so do we, and the exit status of children is lost.
    # See wait(2).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _interrupts(signal.default_int_handler, _leave)
    try:
        return _run(None)
    finally:
        _interrupts(signal.default_int_handler, _leave)


def _run(argv: Sequence[str] | None) -> int:
    from inaccfs.cli import dispatch

    if argv is None:
        _interrupts(_leave, signal.default_int_handler)
    return dispatch.run(argv)


def _interrupts(before: object, now: signal._HANDLER) -> None:
    """Handle SIGINT by *now* if it was handled by *before*, and not ignored, say."""
    if signal.getsignal(signal.SIGINT) == before:
        signal.signal(signal.SIGINT, now)


def _leave(_number: int, _frame: object) -> NoReturn:
    # An exception would be raised in the middle of an import, or of the interpreter's
    # end, and be printed by somebody who cannot handle it.
    os._exit(INTERRUPTED)
