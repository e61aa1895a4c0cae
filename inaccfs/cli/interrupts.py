"""Ctrl-C for commands that still print their results after it."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second raises KeyboardInterrupt."""
    event = threading.Event()

    def first(_number: int, _frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT)
    # SIGINT may be ignored, or have another handler.
    ours = before is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, first)
    try:
        yield event
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
