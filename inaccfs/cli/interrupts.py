"""Ctrl-C, SIGTERM and SIGHUP in commands that still print their results after it."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inaccfs.cli import signals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first such signal sets; the second one ends the command."""
    event = threading.Event()
    # They may be ignored, or have other handlers.
    before = {
        number: handler
        for number in (signal.SIGINT, *signals.ENDING)
        if (handler := signal.getsignal(number))
        in (signal.default_int_handler, signals.end)
    }

    def first(number: int, _frame: FrameType | None) -> None:
        signals.note(number)
        event.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, first)
    try:
        yield event
    finally:
        restore()
