"""The terminal of a command: colours, its size, redrawing, signals."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from inaccfs.words import natural

if TYPE_CHECKING:
    from collections.abc import Iterator

# Switch to the alternate screen, without a cursor and with long lines cut; and back.
# console_codes(4), xterm's ctlseqs.
ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
# Move to the first line; clear from the cursor to the end of the line, or of the
# screen.
HOME: Final = "\x1b[H"
CLEAR_LINE: Final = "\x1b[K"
CLEAR_REST: Final = "\x1b[J"

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


def length(line: str) -> int:
    """The number of columns of a line, without its colours."""
    return len(_COLOUR.sub("", line))


class Size(NamedTuple):
    """The size of the terminal, in characters."""

    columns: int
    lines: int


# The size if the output is not a terminal, or one that does not know its size.
_PLAIN: Final = Size(80, 24)


def is_terminal(stream: IO[str] | None = None) -> bool:
    """Whether *stream* goes to a terminal that can do more than print.

    Here and below the default of *stream* is standard output.
    """
    stream = sys.stdout if stream is None else stream
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_colours() -> bool:
    """Whether to print colours; see no-color.org."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def size(stream: IO[str] | None = None) -> Size:
    """The present size of the terminal; 80 by 24 if there is none.

    shutil.get_terminal_size() knows the standard output only.
    """
    stream = sys.stdout if stream is None else stream
    if not stream.isatty():
        return _PLAIN
    found = _of(stream)
    return Size(_wanted("COLUMNS") or found.columns, _wanted("LINES") or found.lines)


def screen() -> Size:
    """The size to draw in, without COLUMNS and LINES, which do not follow a resize.

    Not only users set them: GNU readline puts them into the environment of children.
    """
    return _of(sys.stdout)


def _of(stream: IO[str]) -> Size:
    columns, lines = 0, 0
    with suppress(OSError):
        columns, lines = os.get_terminal_size(stream.fileno())
    return Size(columns or _PLAIN.columns, lines or _PLAIN.lines)


def _wanted(name: str) -> int:
    """A number in the environment; 0 if it is none."""
    return natural(os.environ.get(name, "")) or 0


def width() -> int:
    """The columns that a line may have; 0, no limit, if the output is not a terminal.

    In a pipe each row of a table stays on one line.
    """
    return size().columns if sys.stdout.isatty() else 0


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
        for number in _SIGNALS:
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
