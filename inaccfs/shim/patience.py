"""Who waits for answers without a task waits no longer than others, either."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from inaccfs.shim.notifiers import Notifiers


class Patience:
    """Evicts the silent among the notifiers of all files. One task does it.

    All have the same time, so that those who were told first are due first. The task is
    woken only when it had nobody to wait for: to be watched costs a line in a queue.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds
        # When the time is over, whose notifiers, and which event they were told.
        self._watched: Final[deque[tuple[float, Notifiers, int]]] = deque()
        self._begun = trio.Event()
        # Whether `run` runs: else nobody may rely on it.
        self.running = False

    def watch(self, notifiers: Notifiers, sequence: int) -> None:
        """Evict who has not answered event *sequence* when the time is over."""
        watched = self._watched
        # Most are answered soon, and then nobody needs to be told.
        while watched and not watched[0][1].awaits(watched[0][2]):
            watched.popleft()
        watched.append((trio.current_time() + self._seconds, notifiers, sequence))
        self._begun.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        self.running = True
        try:
            while True:
                await self._begun.wait()
                while self._watched:
                    due, notifiers, sequence = self._watched[0]
                    if notifiers.awaits(sequence) and due > trio.current_time():
                        await trio.sleep_until(due)
                    elif self._watched[0] == (due, notifiers, sequence):
                        self._watched.popleft()
                        notifiers.give_up(sequence)
                self._begun = trio.Event()
        finally:
            self.running = False
