"""Defers signals while an exception would be lost, or would do harm.

A Python signal handler runs at any bytecode of the main thread. An exception that it
raises is lost in a callback of ctypes, which prints it and goes on; and in an import it
may meet C code that crashes (msgspec, when it makes a Struct), or import locks.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType
    from typing import Self

_SIGNALS: Final = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM),
    *(signal.SIGUSR1, signal.SIGUSR2),
)


class Deferred:
    """In a with block, Python's signal handlers run only in `deliver`."""

    def __init__(self) -> None:
        self._before: Final[dict[signal.Signals, Any]] = {}
        self._arrived: Final[list[tuple[int, FrameType | None]]] = []
        # While handlers are replaced one by one, a signal is passed on at once: an
        # exception then leaves a part of them replaced, which must lose no signal.
        self._defers = False

    def _arrives(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append((number, frame))
        if not self._defers:
            self.deliver()

    def deliver(self) -> None:
        """Call the handlers of the signals that arrived. Raises what they raise."""
        while self._arrived:
            number, frame = self._arrived.pop(0)
            self._before[signal.Signals(number)](number, frame)

    def drop(self) -> None:
        """Forget the signals that arrived: in a fork, they are for the parent."""
        self._arrived.clear()

    def __enter__(self) -> Self:
        # Python runs signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._arrives)
        self._defers = True
        return self

    def __exit__(self, *_: object) -> None:
        self._defers = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.deliver()
