"""What the commands print, and what becomes of it when nobody takes it.

All that a command says goes through here: names of files, and whatever a daemon tells,
may have characters that a terminal obeys.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final, NoReturn

from inaccfs.streams import printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

_STREAMS: Final = (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w"))


_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")

# Of the lines that a terminal has had to break, the longest.
_too_wide = 0


class OutputError(Exception):
    """The standard output does not take what is said; the cause is why."""


class Parser(argparse.ArgumentParser):
    """One that repeats words that were wrong as a terminal may have them."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the words; status 2."""
        super().error(printable(message))

    def _print_message(self, message: str, file: object = None) -> None:
        """What all that it prints goes through."""
        if file is sys.stdout:
            show(message, end="")
        else:
            mention(message, end="")


def prepare() -> None:
    """Give the process all three streams, which can write any text."""
    global _too_wide
    _too_wide = 0
    for name, fd, mode in _STREAMS:
        stream: IO[str] | None = getattr(sys, name)
        if stream is None:
            # It was closed, and streams.fill() has opened it.
            stream = open(fd, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        if mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print what a command was asked for, whose lines stay lines.

    Raises:
        OutputError: the standard output does not take it.
    """
    text = printable_lines(text)
    _measure(text)
    show(text)


def say_coloured(text: str) -> None:
    """Print lines of ours that may have colours, and no names of somebody's.

    Raises:
        OutputError: the standard output does not take it.
    """
    _measure(_COLOUR.sub("", text))
    show(text)


def say_json(data: bytes) -> None:
    """Print JSON for programs, which may lie on a terminal all the same.

    Raises:
        OutputError: the standard output does not take it.
    """
    text = data.decode()
    if not text.isprintable():
        # Such characters are in texts only, where JSON has another way to write them.
        text = "".join(
            char if char.isprintable() or char == "\n" else _json_escape(char)
            for char in text
        )
    show(text)


def show(text: str, *, end: str = "\n") -> None:
    """Print *text* as it is, colours and all, at once: somebody may be waiting for it.

    Raises:
        OutputError: the standard output does not take it.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as exc:
        raise OutputError from exc


def complain(text: str) -> None:
    """Say in one line what went wrong, if there is anybody to hear it."""
    mention(f"inaccfs: {printable(text)}")


def mention(text: str, *, end: str = "\n") -> None:
    """Print *text* as it is on the standard error, if that takes it."""
    # If it does not, neither what was done changes nor the exit status.
    with suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr, flush=True)


def complain_of_output(exc: OutputError) -> None:
    """Say why the standard output is incomplete."""
    cause = exc.__cause__
    # The reader has closed the pipe on purpose.
    if isinstance(cause, OSError) and not isinstance(cause, BrokenPipeError):
        complain(f"cannot write to the standard output: {cause.strerror}")


class _Watched(io.TextIOWrapper):
    """A standard output that remembers why it did not take something."""

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as exc:
            self.failure = exc
            raise


@contextmanager
def lent() -> Iterator[None]:
    """Let somebody else's code print.

    Raises:
        OutputError: what it raised is only that the standard output took no more.
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
        # What fails now fails again for the other, at the end.
        with suppress(OSError, ValueError):
            watched.detach()


def _measure(text: str) -> None:
    global _too_wide
    if sys.stdout.isatty():
        width = max(map(len, text.split("\n")))
        if width > shutil.get_terminal_size().columns:
            _too_wide = max(width, _too_wide)


def finish(status: int) -> int:
    """The exit status of a command that would end with *status*, all written."""
    if _too_wide:
        complain(f"lines have up to {_too_wide} columns: pipe them through less -S")
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except ValueError:
            # A script has closed it.
            continue
        except OSError as exc:
            # Else Python complains at its end of what is still not written.
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
