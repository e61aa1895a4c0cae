"""Bars on a terminal, few lines elsewhere, and nothing in the first second."""

from __future__ import annotations

import os
import sys
import termios
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

from inaccfs.cli import output
from inaccfs.cli import progress as module
from inaccfs.cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@contextmanager
def stderr(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> Iterator[IO[str]]:
    """A standard error that a test can read."""
    theirs, ours = os.openpty() if terminal else os.pipe()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    if not terminal:
        theirs, ours = theirs, ours
    with (
        os.fdopen(theirs, encoding="utf-8", newline="") as reader,
        os.fdopen(ours, "w", encoding="utf-8") as writer,
    ):
        os.set_blocking(theirs, False)
        monkeypatch.setattr(sys, "stderr", writer)
        yield reader


def written(reader: IO[str]) -> str:
    found = ""
    while part := _read(reader):
        found += part
    return found


def _read(reader: IO[str]) -> str:
    try:
        return os.read(reader.fileno(), 4096).decode()
    except BlockingIOError:
        return ""


def test_a_terminal_gets_a_bar_after_a_second(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stderr(monkeypatch, terminal=True) as screen:
        with progress("probing", 4) as shown:
            shown.step()
            assert written(screen) == ""
            clock.now += 1.5
            shown.step("row 2")
            bar = "#" * 12 + "-" * 12
            assert written(screen) == f"\r[{bar}] probing, 2 of 4, row 2, 2 s\x1b[K"
            # There is no line for each step.
            shown.step()
            assert written(screen) == ""
        assert written(screen) == "\r\x1b[K"


def test_what_is_printed_meanwhile_stays_whole(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stderr(monkeypatch, terminal=True) as screen, progress("working") as shown:
        clock.now += 2
        shown.tick()
        assert written(screen) == "\rworking, 2 s\x1b[K"
        output.say("a result")
        assert written(screen) == "\r\x1b[K"
    assert capsys.readouterr().out == "a result\n"


def test_without_a_terminal_there_is_a_line_now_and_then(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stderr(monkeypatch, terminal=False) as log:
        with progress("a\x1b[2Jb", 10) as shown:
            clock.now += 20
            shown.step()
            assert written(log) == ""
            clock.now += 15
            shown.step()
            assert written(log) == "inaccfs: a\\x1b[2Jb, 2 of 10, 35 s\n"
        assert written(log) == ""


def test_a_bar_fits_the_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the standard error: the output may go elsewhere."""
    with stderr(monkeypatch, terminal=True) as screen, progress("x" * 50) as shown:
        termios.tcsetwinsize(screen.fileno(), (24, 20))
        clock.now += 2
        shown.tick()
        assert written(screen) == f"\r{'x' * 19}\x1b[K"


def test_a_terminal_that_can_only_print_gets_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stderr(monkeypatch, terminal=True) as screen:
        monkeypatch.setenv("TERM", "dumb")
        with progress("probing") as shown:
            clock.now += 35
            shown.tick()
            # The terminal makes it CR LF.
            assert written(screen) == "inaccfs: probing, 35 s\r\n"


def test_a_block_that_waits_is_drawn_by_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.001)
    with stderr(monkeypatch, terminal=True) as screen:
        os.set_blocking(screen.fileno(), True)
        with progress("waiting", ticks=True):
            assert "waiting" in os.read(screen.fileno(), 4096).decode()


def test_ctrl_c_as_the_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), progress("words", ticks=True):
        pass
