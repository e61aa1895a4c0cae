"""How long others may take to answer: only time counts in which this process runs.

It may be stopped (SIGSTOP, a frozen container, a suspended machine) for longer than
they may take. Nobody could be heard meanwhile: what has arrived is read before anybody
is given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.shim.notifiers import Notifiers

# A time is counted in so many parts, each as long as it should have been. One from
# which this process wakes late by its length does not count at all: it was stopped.
_PARTS: Final = 4


async def in_time(seconds: float, wait: Callable[[], Awaitable[None]]) -> bool:
    """Await *wait*, which may be begun anew; false if it takes more than *seconds*.

    It may just have come to its end then: look once more at what was waited for.
    """
    part = seconds / _PARTS
    left = seconds
    while left > 0:
        due = trio.current_time() + min(left, part)
        with trio.CancelScope(deadline=due):
            await wait()
            return True
        if trio.current_time() - due <= part:
            left -= min(left, part)
    await _hear_out()
    return False


async def _hear_out() -> None:
    """Let what has arrived be read, by other tasks."""
    # One turn of the trio loop to find it out, and one in which the task runs that
    # reads; and one to spare.
    for _ in range(3):
        await trio.lowlevel.checkpoint()


class AckTimeouts:
    """Evicts the silent among the notifiers of all files. One task does it.

    For those that are waited for without a task. All have the same time, so that those
    who were told first are due first. The task sleeps for a good part of that time,
    whoever comes and goes meanwhile: to be watched costs an entry in a dict.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds
        # Whose notifiers, when their time is over, and which event they were told. A
        # file has one event at a time; in the order in which they are due.
        self._watched: Final[dict[Notifiers, tuple[float, int]]] = {}
        self._begun = trio.Event()
        # How long this task has waited in all, when the part has begun that it is in,
        # and how long that is.
        self._waited = 0.0
        self._part_began = 0.0
        self._part = 0.0
        # Whether `run` runs: else nobody may rely on it.
        self.running = False

    def __len__(self) -> int:
        """How many files have notifiers that are waited for."""
        return len(self._watched)

    def watch(self, notifiers: Notifiers, sequence: int) -> None:
        """Evict who has not answered event *sequence* when the time is over."""
        # They may all have gone while they were told.
        if notifiers.awaits(sequence):
            within = min(trio.current_time() - self._part_began, self._part)
            self._watched[notifiers] = self._waited + within + self._seconds, sequence
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
                await self._wait(self._next_due())
                if self._next_due() <= self._waited:
                    await _hear_out()
                    self._evict()
                if self._watched:
                    # Also if nobody begins anything more.
                    self._begun.set()
        finally:
            self.running = False

    def _next_due(self) -> float:
        for due, _ in self._watched.values():
            return due
        # All have answered already. Who comes next is due later than this.
        return self._waited + self._seconds

    async def _wait(self, due: float) -> None:
        """Let one part of the time until *due* pass."""
        longest = self._seconds / _PARTS
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
