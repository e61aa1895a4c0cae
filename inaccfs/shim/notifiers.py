"""The notifiers of a file, and invalidation that is waited for.

struct inaccessible_data of the seed has a list of notifiers and a mutex, and calls one
after the other under it. Here they are in other processes: all are told at once, and
the mutex is held until each has answered, has gone, or has been silent for too long.
"""

from __future__ import annotations

import errno
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from inaccfs.shim.counters import Counters


class Notifier(Protocol):
    """struct inaccessible_notifier: who is told. Neither method may block or raise."""

    def tell(self, event: str, start: int, end: int, sequence: int) -> None:
        """Pages from *start* to *end* are affected; `Notifiers.answer` is awaited."""

    def evict(self) -> None:
        """It has not answered in time, and is no notifier any more."""


class Notifiers:
    """The notifiers of one file."""

    def __init__(
        self,
        counters: Counters,
        ack_seconds: float,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """*ack_seconds* is how long a notifier may take to answer.

        *changed* is called after each change of the list.
        """
        self._counters: Final = counters
        self._ack_seconds: Final = ack_seconds
        self._changed: Final = changed
        # In order of registration; a dict for the sake of its order. Grows and shrinks
        # only under _lock, but for those that have gone: see drop().
        self._registered: dict[Notifier, None] = {}
        # Held while an invalidation runs and while the list changes, so that all events
        # of one invalidation go to the same notifiers. Outermost: whoever holds it may
        # wait for peers, so nobody asks for it who holds anything that they may need.
        self._lock: Final = trio.Lock()
        # Whether somebody is inside `fixed`.
        self.running = False
        self._sequences: Final = itertools.count(1)
        # Those that have been told and have not answered yet, each with what.
        self._waiting: dict[Notifier, int] = {}
        # Those whose unregistration waits for the end of an invalidation. They are told
        # nothing more: who has unregistered in a callback cannot answer.
        self._leaving: set[Notifier] = set()
        # Set when the last of them has answered. Made anew for each event.
        self._answered = trio.Event()

    def __len__(self) -> int:
        return len(self._registered)

    def __iter__(self) -> Iterator[Notifier]:
        return iter(self._registered)

    def waiting(self, notifier: Notifier) -> int | None:
        """The sequence that *notifier* has not answered yet."""
        return self._waiting.get(notifier)

    async def register(self, notifier: Notifier) -> None:
        """inaccessible_register_notifier(); waits while an invalidation runs."""
        async with self._lock:
            self._registered[notifier] = None
            self._changed()

    async def unregister(self, notifier: Notifier) -> None:
        """inaccessible_unregister_notifier(); waits while an invalidation runs.

        Counts as the notifier's answer: it may be called in its callback, and would
        wait for itself otherwise.
        """
        self._leaving.add(notifier)
        if notifier in self._waiting:
            self._forget(notifier)
        try:
            async with self._lock:
                pass
        finally:
            # Also when cancelled: the caller has given it up.
            self._leaving.discard(notifier)
            self.drop(notifier)

    def drop(self, notifier: Notifier) -> None:
        """*notifier* has gone, and whoever waits for its answer goes on."""
        self._registered.pop(notifier, None)
        self._changed()
        if notifier in self._waiting:
            self._forget(notifier)

    def answer(self, notifier: Notifier, sequence: int) -> None:
        """The callback of *notifier* has returned.

        Raises:
            OSError: EINVAL, when no such event waits for its answer.
        """
        if self._waiting.get(notifier) != sequence:
            raise OSError(
                errno.EINVAL,
                f"no event {sequence} of this notifier waits for an answer",
            )
        self._forget(notifier)

    def _forget(self, notifier: Notifier) -> None:
        del self._waiting[notifier]
        if not self._waiting:
            self._answered.set()

    @asynccontextmanager
    async def fixed(self) -> AsyncIterator[None]:
        """The list stays as it is for the length of an async with block."""
        async with self._lock:
            self.running = True
            try:
                yield
            finally:
                self.running = False

    async def invalidate(self, event: str, start: int, end: int) -> None:
        """Tell all notifiers of pages from *start* to *end*; wait for their answers.

        To be called inside `fixed`. The silent are evicted after the time allowed.
        """
        told = [one for one in self._registered if one not in self._leaving]
        if not told:
            return
        sequence = next(self._sequences)
        self._counters.invalidations += 1
        self._counters.events += len(told)
        self._answered = trio.Event()
        self._waiting = dict.fromkeys(told, sequence)
        for notifier in told:
            notifier.tell(event, start, end, sequence)
        with trio.move_on_after(self._ack_seconds):
            await self._answered.wait()
        for notifier in list(self._waiting):
            self._counters.evictions += 1
            self.drop(notifier)
            notifier.evict()
