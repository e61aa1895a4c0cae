"""The progress of a long command: a bar on a terminal, otherwise lines."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from inaccfs.cli import output, terminal
from inaccfs.streams import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 0.2
# The time between two lines, without a terminal.
_LINE_SECONDS: Final = 30.0

_CELLS: Final = 24


class Progress:
    """The progress of one command. Thread-safe."""

    def __init__(self, label: str, total: float = 0.0) -> None:
        """*total* is the last value of `update`; 0 if it is unknown."""
        self._label: Final = label
        self._total: Final = total
        self._is_terminal: Final = terminal.is_terminal(sys.stderr)
        self._start: Final = time.monotonic()
        self._due = self._start + (
            _FIRST_SECONDS if self._is_terminal else _LINE_SECONDS
        )
        self._done = 0.0
        self._text = ""
        self._drawn = False
        self._lock: Final = threading.RLock()

    def step(self, text: str = "") -> None:
        """Count one more step."""
        self.update(self._done + 1, text)

    def update(self, done: float, text: str = "") -> None:
        """Set how much is done; draw it, if it is time."""
        self._done, self._text = done, text
        self.tick()

    def tick(self) -> None:
        """Draw, if it is time."""
        with self._lock:
            now = time.monotonic()
            if now < self._due:
                return
            self._due = now + (_AGAIN_SECONDS if self._is_terminal else _LINE_SECONDS)
            if self._is_terminal:
                columns = terminal.size(sys.stderr).columns
                line = self._line(now)[: columns - 1]
                output.mention(f"\r{line}\x1b[K", end="")
                self._drawn = True
            else:
                output.complain(self._line(now))

    def _line(self, now: float) -> str:
        bar = ""
        parts = [self._label]
        if self._total:
            full = round(min(self._done / self._total, 1.0) * _CELLS)
            bar = f"[{'#' * full}{'-' * (_CELLS - full)}] " * self._is_terminal
            parts.append(f"{self._done:,.0f} of {self._total:,g}")
        if self._text:
            parts.append(self._text)
        parts.append(f"{now - self._start:.0f} s")
        return bar + printable(", ".join(parts))

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """Remove the bar during a with block, so that something can be printed."""
        with self._lock:
            if self._drawn:
                output.mention("\r\x1b[K", end="")
                self._drawn = False
            yield


@contextmanager
def progress(
    label: str, total: float = 0.0, *, ticks: bool = False
) -> Iterator[Progress]:
    """Show the progress of a with block. Output that is printed meanwhile stays intact.

    With *ticks* a thread draws it while the block waits. Do not use that in a block
    that forks.
    """
    made = Progress(label, total)
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_AGAIN_SECONDS):
            made.tick()

    thread = threading.Thread(target=run, name="inaccfs progress", daemon=True)
    with output.beside(made.cleared):
        try:
            if ticks:
                # Without a thread nothing is drawn, but the work goes on.
                with suppress(RuntimeError):
                    thread.start()
            yield made
        finally:
            ended.set()
            # Ctrl-C may have come before the thread was started.
            if thread.is_alive():
                thread.join()
            with made.cleared():
                pass
