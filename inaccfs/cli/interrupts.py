"""Ctrl-C, SIGTERM and SIGHUP in commands that still print their results after it."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inaccfs.cli import signals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Interrupted:
    """Whether such a signal has come.

    It has no lock, as threading.Event has: if the next signal came while the handler of
    the first one holds that, its own handler would wait for the lock for ever.
    """

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """A signal has come."""
        self._set = True

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self._set


@contextmanager
def interruptible() -> Iterator[Interrupted]:
    """What the first such signal sets; the second one ends the command."""
    interrupted = Interrupted()
    # They may be ignored, or have other handlers. SIGINT is set last and restored
    # first, for `signals.end` calls its handler, and `first` would take that for a
    # repetition.
    before = {
        number: handler
        for number in (*signals.ENDING, signal.SIGINT)
        if (handler := signal.getsignal(number))
        in (signal.default_int_handler, signals.end)
    }

    def first(number: int, _frame: FrameType | None) -> None:
        again = interrupted.is_set()
        if signals.repeats():
            return
        signals.note(number)
        interrupted.set()
        if again:
            restore()
            raise KeyboardInterrupt

    def restore() -> None:
        for number, handler in reversed(before.items()):
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, first)
    try:
        yield interrupted
    finally:
        restore()
