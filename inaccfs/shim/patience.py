"""Who waits for answers without a task waits no longer than others, either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from inaccfs.shim.notifiers import Notifiers


class Patience:
    """Evicts the silent among the notifiers of all files. One task does it.

    All have the same time, so that those who were told first are due first. The task
    sleeps for as long as the first of them may take, whoever comes and goes meanwhile:
    to be watched costs an entry in a dict.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds
        # Whose notifiers, when their time is over, and which event they were told. A
        # file has one event at a time; in the order in which they are due.
        self._watched: Final[dict[Notifiers, tuple[float, int]]] = {}
        self._begun = trio.Event()
        # Whether `run` runs: else nobody may rely on it.
        self.running = False

    def __len__(self) -> int:
        """How many files have notifiers that are waited for."""
        return len(self._watched)

    def watch(self, notifiers: Notifiers, sequence: int) -> None:
        """Evict who has not answered event *sequence* when the time is over."""
        # They may all have gone while they were told.
        if notifiers.awaits(sequence):
            due = trio.current_time() + self._seconds
            self._watched[notifiers] = due, sequence
            self._begun.set()

    def forget(self, notifiers: Notifiers) -> None:
        """All have answered, or have gone."""
        self._watched.pop(notifiers, None)

    async def run(self) -> None:
        """Serve until cancelled."""
        self.running = True
        try:
            while True:
                await self._begun.wait()
                self._begun = trio.Event()
                await trio.sleep_until(self._next_due())
                self._evict()
        finally:
            self.running = False

    def _next_due(self) -> float:
        for due, _ in self._watched.values():
            return due
        # All have answered already. Who comes next is due later than this.
        return trio.current_time() + self._seconds

    def _evict(self) -> None:
        while self._watched:
            notifiers, (due, sequence) = next(iter(self._watched.items()))
            if due > trio.current_time():
                # Also if nobody begins anything more.
                self._begun.set()
                return
            self.forget(notifiers)
            notifiers.give_up(sequence)
