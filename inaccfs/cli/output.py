"""The output of commands, and the handling of output that fails.

All that a command prints goes through here: names of files and texts from a daemon may
contain characters that control a terminal.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from contextlib import contextmanager, nullcontext, suppress
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

from inaccfs.cli import terminal
from inaccfs.streams import printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_STREAMS: Final = (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w"))


# The length of the longest line that the terminal had to wrap.
_too_wide = 0

# Clears a progress bar while something is printed: see `beside`.
_room: Callable[[], AbstractContextManager[object]] = nullcontext


class OutputError(Exception):
    """Writing to the standard output failed; the cause has the reason."""


class Parser(argparse.ArgumentParser):
    """A parser whose messages are safe to print on a terminal, and say what to do."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:  # noqa: ANN401 - as argparse has it
        """Add an option or operand."""
        action = super().add_argument(*names, **options)
        if action.nargs in (argparse.REMAINDER, argparse.ZERO_OR_MORE):
            # argparse would also name it when another operand is missing.
            action.required = False
        return action

    def error(self, message: str) -> NoReturn:
        """Print the error; exit with status 2."""
        super().error(f"{printable(message)} (see {self.prog} -h)")

    def _print_message(self, message: str, file: object = None) -> None:
        """Print a message; argparse calls this for all its output."""
        if file is sys.stdout:
            show(message, end="")
        else:
            mention(message, end="")


def prepare() -> None:
    """Make sure that all three standard streams are open, and can write any text."""
    global _too_wide
    _too_wide = 0
    for name, fd, mode in _STREAMS:
        stream: IO[str] | None = getattr(sys, name)
        if stream is None:
            # The stream was closed, and streams.fill() has opened the fd since.
            stream = open(fd, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        if mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print the result of a command; control characters but newlines are escaped.

    Raises:
        OutputError: writing failed.
    """
    text = printable_lines(text)
    _measure(text)
    show(text)


def say_coloured(text: str) -> None:
    """Print our own lines, which may have colours but no foreign names.

    Raises:
        OutputError: writing failed.
    """
    _measure(text)
    show(text)


def say_json(data: bytes) -> None:
    """Print JSON for programs, safe for a terminal as well.

    Raises:
        OutputError: writing failed.
    """
    text = data.decode()
    if not text.isprintable():
        # Control characters are only in strings, where JSON can escape them.
        text = "".join(
            char if char.isprintable() or char == "\n" else _json_escape(char)
            for char in text
        )
    show(text)


def show(text: str, *, end: str = "\n") -> None:
    """Print *text* unchanged, with colours, and flush: a user may be waiting for it.

    Raises:
        OutputError: writing failed.
    """
    try:
        with _room():
            print(text, end=end, flush=True)
    except OSError as exc:
        raise OutputError from exc


@contextmanager
def beside(room: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """In a with block, print only within *room()*, because a bar is drawn."""
    global _room
    before, _room = _room, room
    try:
        yield
    finally:
        _room = before


def complain(text: str) -> None:
    """Print an error in one line on the standard error, if that is possible."""
    mention(f"inaccfs: {printable(text)}")


def mention(text: str, *, end: str = "\n") -> None:
    """Print *text* unchanged on the standard error, if that is possible."""
    # A failure to print changes neither the result nor the exit status.
    with suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr, flush=True)


def mention_traceback(exc: Exception, *, ours: int = 1) -> None:
    """Print the traceback of a user's code, without the first *ours* frames.

    Our own frames are of no use to the author of the code.
    """
    at = exc.__traceback__
    for _ in range(ours):
        at = at.tb_next if at else None
    lines = traceback.format_exception(exc.with_traceback(at))
    mention(printable_lines("".join(lines)), end="")


def exit_status(exc: SystemExit) -> int:
    """The status of sys.exit() in a user's code; a text is printed, as by Python."""
    if exc.code is None or isinstance(exc.code, int):
        return exc.code or 0
    mention(printable_lines(str(exc.code)))
    return 1


def complain_of_output(exc: OutputError) -> None:
    """Say why the standard output is incomplete."""
    cause = exc.__cause__
    # The reader has closed the pipe: print no message.
    if isinstance(cause, OSError) and not isinstance(cause, BrokenPipeError):
        complain(f"cannot write to the standard output: {cause.strerror}")


class _Watched(io.TextIOWrapper):
    """A standard output that remembers the error of a failed write."""

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as exc:
            self.failure = exc
            raise


@contextmanager
def lent() -> Iterator[None]:
    """Let the user's own code print.

    Raises:
        OutputError: the code raised only because writing to the output failed.
    """
    plain = sys.stdout
    if type(plain) is not io.TextIOWrapper:
        yield
        return
    plain.flush()
    watched = _Watched(
        plain.buffer,
        plain.encoding,
        plain.errors,
        line_buffering=plain.line_buffering,
        write_through=plain.write_through,
    )
    sys.stdout = watched
    try:
        yield
    except OSError as exc:
        if exc is watched.failure:
            raise OutputError from exc
        raise
    finally:
        if sys.stdout is watched:
            sys.stdout = plain
        # If flushing fails now, it fails again at the end, and is reported there.
        with suppress(OSError, ValueError):
            watched.detach()


def _measure(text: str) -> None:
    global _too_wide
    if columns := terminal.width():
        width = max(map(terminal.length, text.split("\n")))
        if width > columns:
            _too_wide = max(width, _too_wide)


def finish(status: int) -> int:
    """Flush all output; return *status*, or another exit status if that fails."""
    if _too_wide:
        complain(f"lines have up to {_too_wide} columns: pipe them through less -S")
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except ValueError:
            # A script has closed the stream.
            continue
        except OSError as exc:
            # Otherwise Python complains at its end about data that is still buffered.
            _drop(stream)
            if stream is sys.stdout and status == 0:
                error = OutputError()
                error.__cause__ = exc
                complain_of_output(error)
                status = 1
    return status


def _drop(stream: IO[str]) -> None:
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, stream.fileno())
        os.close(null)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
