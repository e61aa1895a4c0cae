"""The terminal of a command: colours, its size, redrawing, signals."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# The size if the output is not a terminal.
_PLAIN: Final = (80, 24)

# Switch to the alternate screen without a cursor, and back. console_codes(4), xterm's
# ctlseqs.
ENTER: Final = "\x1b[?1049h\x1b[?25l"
LEAVE: Final = "\x1b[?25h\x1b[?1049l"
# Move to the first line; clear from the cursor to the end of the line, or of the
# screen.
HOME: Final = "\x1b[H"
CLEAR_LINE: Final = "\x1b[K"
CLEAR_REST: Final = "\x1b[J"

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Size(NamedTuple):
    """The size of the terminal, in characters."""

    columns: int
    lines: int


def is_terminal() -> bool:
    """Whether the output goes to a terminal that can do more than print."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_colours() -> bool:
    """Whether to print colours; see no-color.org."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def size() -> Size:
    """The present size of the terminal; 80 by 24 if there is none."""
    if not sys.stdout.isatty():
        return Size(*_PLAIN)
    columns, lines = shutil.get_terminal_size(_PLAIN)
    return Size(columns, lines)


class Ending:
    """SIGINT, SIGTERM and SIGHUP ask a command to end, and interrupt only waits.

    They do not cut reads and writes short. Use it as a context manager.
    """

    def __init__(self) -> None:
        self.asked = False
        self._interrupts = False
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: Final[dict[int, Any]] = {}

    def __enter__(self) -> Ending:
        for number in ENDING:
            # nohup(1) ignores SIGHUP: keep that. A shell ignores SIGINT for commands
            # that a script starts with &, but there kill(1) sends it, and it must end
            # the command.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """An fd that is readable after a signal has asked for the end."""
        return self._reader

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True
        with suppress(BlockingIOError):
            os.write(self._writer, b"\0")
        if self._interrupts:
            raise KeyboardInterrupt

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let these signals interrupt a with block, which may wait for long."""
        before, self._interrupts = self._interrupts, True
        try:
            yield
        finally:
            self._interrupts = before
