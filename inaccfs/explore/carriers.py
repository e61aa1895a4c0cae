"""What carries actors: greenlets, or threads of which one runs at a time."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from inaccfs.explore.unseen import guarded

try:
    greenlet: Any = import_module("greenlet")
except ImportError:
    # The extra `inaccfs[explore]` is not there.
    greenlet = None

if TYPE_CHECKING:
    from collections.abc import Callable

    Thread: TypeAlias = Any


class Ended(BaseException):
    """This schedule is over: unwind."""


class Carrier(Protocol):
    """Control is in one thread at a time, or in the hub, which has made them."""

    def thread(self, body: Callable[[Any], object], argument: object) -> Thread:
        """A thread that will call *body*."""

    def enter(self, thread: Thread) -> None:
        """From the hub into a thread, until one leaves or ends."""

    def switch(self, me: Thread, other: Thread) -> None:
        """From one thread to another; returns when somebody enters this one again."""

    def leave(self, me: Thread) -> None:
        """To the hub."""

    def kill(self, thread: Thread) -> None:
        """Let it end: what it is in raises `Ended`."""


class Greenlets:
    """The faster one."""

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
    """Threads of the operating system; each waits for a baton."""

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
        with guarded(on=False):
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
    """The best that there is."""
    return Batons() if greenlet is None else Greenlets()
