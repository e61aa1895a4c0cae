"""Carriers run actors: as greenlets, or as threads of which one runs at a time."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from inaccfs.errors import starting_thread
from inaccfs.explore.guard import guarded

try:
    greenlet: Any = import_module("greenlet")
except ImportError:
    # The extra `inaccfs[explore]` is not there.
    greenlet = None

if TYPE_CHECKING:
    from collections.abc import Callable

    Thread: TypeAlias = Any


class Ended(BaseException):
    """Raised in an actor when the schedule is over, to unwind its stack."""


class Carrier(Protocol):
    """Runs one thread at a time, or the hub, which has made the threads."""

    def thread(self, body: Callable[[Any], object], argument: object) -> Thread:
        """Make a thread that will call *body*."""

    def enter(self, thread: Thread) -> None:
        """Switch from the hub to a thread. Returns when a thread leaves or ends."""

    def switch(self, me: Thread, other: Thread) -> None:
        """Switch from one thread to another. Returns when *me* is entered again."""

    def leave(self, me: Thread) -> None:
        """Switch to the hub."""

    def kill(self, thread: Thread) -> None:
        """End a thread: the call that it waits in raises `Ended`."""


class Greenlets:
    """Actors as greenlets, which is faster."""

    def __init__(self) -> None:
        self._hub = greenlet.getcurrent()

    def thread(self, body: Callable[[Any], object], argument: object) -> Thread:
        """See `Carrier`."""
        return greenlet.greenlet(lambda: body(argument))

    def enter(self, thread: Thread) -> None:
        """See `Carrier`."""
        thread.switch()

    def switch(self, me: Thread, other: Thread) -> None:
        """See `Carrier`."""
        other.switch()

    def leave(self, me: Thread) -> None:
        """See `Carrier`."""
        self._hub.switch()

    def kill(self, thread: Thread) -> None:
        """See `Carrier`."""
        if thread:
            thread.throw(Ended)


class Batons:
    """Actors as threads of the operating system; each waits for a baton."""

    def __init__(self) -> None:
        self._hub = threading.Semaphore(0)

    def thread(self, body: Callable[[Any], object], argument: object) -> Thread:
        """See `Carrier`."""
        baton = threading.Semaphore(0)

        def run() -> None:
            baton.acquire()
            body(argument)
            self._hub.release()

        thread = threading.Thread(target=run, daemon=True)
        with starting_thread(), guarded(on=False):
            thread.start()
        return thread, baton

    def enter(self, thread: Thread) -> None:
        """See `Carrier`."""
        thread[1].release()
        self._hub.acquire()

    def switch(self, me: Thread, other: Thread) -> None:
        """See `Carrier`."""
        other[1].release()
        me[1].acquire()

    def leave(self, me: Thread) -> None:
        """See `Carrier`."""
        self._hub.release()
        me[1].acquire()

    def kill(self, thread: Thread) -> None:
        """See `Carrier`."""
        if thread[0].is_alive():
            thread[1].release()
            self._hub.acquire()
            thread[0].join()


def carrier() -> Carrier:
    """The fastest carrier that is installed."""
    return Batons() if greenlet is None else Greenlets()
