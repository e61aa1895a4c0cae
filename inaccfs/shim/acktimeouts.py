"""Evicts notifiers that do not answer in time and that no task waits for.

A task that waits for answers has its own time limit, `Loop.in_time`: it serves any
number of notifiers, and evicts them in slices, between which other tasks run. Here no
task waits, so one for all files evicts, at most `INLINE_NOTIFIERS` notifiers of each.
Both count time in the same way; see `inaccfs.shim.deadlines`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from inaccfs.shim.deadlines import PARTS, hear_out

if TYPE_CHECKING:
    from inaccfs.shim.notifiers import Notifiers


class AckTimeouts:
    """Evicts notifiers of all files in one task, `run`.

    All events have the same timeout, so the first that was sent is the first that is
    due. The task sleeps for a large part of the timeout, whether or not events are sent
    and answered meanwhile, so watching an event costs only an entry in a dict.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds
        # By the notifiers of a file, in the order in which they are due: when their
        # time is over, and the sequence of the event. A file has one event at a time.
        self._watched: Final[dict[Notifiers, tuple[float, int]]] = {}
        self._begun = trio.Event()
        # How long this task has waited in total; when the current part of its wait
        # began, and how long that part is.
        self._waited = 0.0
        self._part_began = 0.0
        self._part = 0.0
        # Whether `run` runs. If not, an event must be waited for by a task.
        self.running = False

    def __len__(self) -> int:
        """How many files have an event that is not answered yet."""
        return len(self._watched)

    def watch(self, notifiers: Notifiers, sequence: int) -> None:
        """Evict those that have not answered event *sequence* in time."""
        # All of them may have been removed while the event was sent.
        if notifiers.awaits(sequence):
            within = min(trio.current_time() - self._part_began, self._part)
            self._watched[notifiers] = self._waited + within + self._seconds, sequence
            self._begun.set()

    def forget(self, notifiers: Notifiers) -> None:
        """All of *notifiers* have answered or were removed."""
        self._watched.pop(notifiers, None)

    async def run(self) -> None:
        """Serve until cancelled."""
        self.running = True
        try:
            while True:
                await self._begun.wait()
                self._begun = trio.Event()
                await self._wait(self._next_due())
                if self._next_due() <= self._waited:
                    await hear_out()
                    self._evict()
                if self._watched:
                    # Go on, even if no further event is watched.
                    self._begun.set()
        finally:
            self.running = False

    def _next_due(self) -> float:
        for due, _ in self._watched.values():
            return due
        # All have answered already. The next event is due later than this.
        return self._waited + self._seconds

    async def _wait(self, due: float) -> None:
        """Let one part of the time until *due* pass."""
        longest = self._seconds / PARTS
        self._part_began = trio.current_time()
        self._part = min(due - self._waited, longest)
        await trio.sleep(self._part)
        if trio.current_time() - self._part_began - self._part <= longest:
            self._waited += self._part
        self._part = 0.0

    def _evict(self) -> None:
        while self._watched:
            notifiers, (due, sequence) = next(iter(self._watched.items()))
            if due > self._waited:
                return
            self.forget(notifiers)
            notifiers.give_up(sequence)
