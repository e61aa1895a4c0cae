"""Defers signals while a library calls back that loses exceptions.

ctypes prints an exception of a callback's wrapper and goes on. A Python signal handler
runs at any bytecode of the main thread, so its KeyboardInterrupt could be lost there.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType, TracebackType
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

    def _arrives(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append((number, frame))

    def deliver(self) -> None:
        """Call the handlers of the signals that arrived. Raises what they raise."""
        while self._arrived:
            number, frame = self._arrived.pop(0)
            self._before[signal.Signals(number)](number, frame)

    def __enter__(self) -> Self:
        # Python runs signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._arrives)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.deliver()
