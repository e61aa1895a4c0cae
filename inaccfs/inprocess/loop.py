"""A loop for the shim without an event loop: a call waits in the thread that makes it.

An await of the shim blocks the thread, so a coroutine runs like a plain call. Only one
thread at a time is inside the shim, as only one task runs in a trio loop; when it
waits, others may enter.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Iterator

    import trio

    from inaccfs.shim.loop import Event, Mutex, ParkingLot, Wait

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


class BlockingLoop(ABC):
    """All waiting is in `wait_for`. See `inaccfs.shim.loop.Loop`.

    A subclass implements the abstract methods, and so can schedule the threads.
    """

    @abstractmethod
    def wait_for(self, ready: Callable[[], bool], why: str) -> None:
        """Inside: let other threads in until *ready*. *why* is for people."""

    @abstractmethod
    def changed(self) -> None:
        """Inside: have waiting threads check again whether they are ready."""

    @abstractmethod
    def inside(self) -> AbstractContextManager[object]:
        """Enter the shim for a with block."""

    @abstractmethod
    def outside(self) -> AbstractContextManager[object]:
        """Inside: leave the shim for a with block, so that others may enter."""

    @abstractmethod
    def me(self) -> Hashable:
        """An identity of the calling thread."""

    @abstractmethod
    async def in_time(self, seconds: float, wait: Wait) -> bool:
        """See `Loop.in_time`."""

    def run(self, call: Coroutine[object, None, _T]) -> _T:
        """Run a coroutine of the shim, inside, to its end."""
        with self.inside():
            try:
                call.send(None)
            except StopIteration as stop:
                result: _T = stop.value
                return result
        raise RuntimeError("the shim awaited something of another loop")

    # --- the shim's interface -------------------------------------------------------

    def event(self) -> Event:
        return _Event(self)

    def mutex(self) -> Mutex:
        return _Mutex(self)

    def parking_lot(self) -> ParkingLot:
        return _ParkingLot(self)

    def shield(self) -> AbstractContextManager[object]:
        """Calls here are never cancelled, so this does nothing."""
        return nullcontext()

    async def checkpoint(self) -> None:
        """Let other threads in."""
        with self.outside():
            pass

    async def check_cancelled(self) -> None:  # noqa: B027 - not for a subclass
        """Calls here are never cancelled, so this does nothing."""

    async def first_of(self, *waits: Wait) -> None:
        """Wait for the first of *waits*; the others are for interrupts, unused here."""
        await waits[0]()

    async def in_thread(
        self,
        call: Callable[[*_Args], _T],
        *args: *_Args,
        limiter: trio.CapacityLimiter,
    ) -> _T:
        """Call it in this thread, and let others in meanwhile."""
        with self.outside():
            return call(*args)


class _Event:
    def __init__(self, loop: BlockingLoop) -> None:
        self._loop: Final = loop
        self._set = False

    def set(self) -> None:
        self._set = True
        self._loop.changed()

    def is_set(self) -> bool:
        return self._set

    async def wait(self) -> None:
        self._loop.wait_for(self.is_set, "an event")


class _Mutex:
    def __init__(self, loop: BlockingLoop) -> None:
        self._loop: Final = loop
        self._taken = False

    async def __aenter__(self) -> None:
        self._loop.wait_for(lambda: not self._taken, "the list of notifiers")
        self._taken = True

    async def __aexit__(self, *_: object) -> None:
        self.release()

    def take(self) -> bool:
        if self._taken:
            return False
        self._taken = True
        return True

    def release(self) -> None:
        self._taken = False
        self._loop.changed()


class _ParkingLot:
    def __init__(self, loop: BlockingLoop) -> None:
        self._loop: Final = loop
        # How often all waiters have been unparked.
        self._round = 0

    async def park(self) -> None:
        parked = self._round
        self._loop.wait_for(lambda: self._round > parked, "page locks")

    def unpark_all(self) -> None:
        self._round += 1
        self._loop.changed()


class _TooLateError(Exception):
    """Raised in `in_time` when the time is over."""


class ThreadLoop(BlockingLoop):
    """A `BlockingLoop` of Python's threads."""

    def __init__(self) -> None:
        # Held by the thread that is inside.
        self._lock: Final = threading.Lock()
        self._changed: Final = threading.Condition(self._lock)
        # Until when the thread may wait: a time of time.monotonic().
        self._mine: Final = threading.local()

    def wait_for(self, ready: Callable[[], bool], why: str) -> None:
        """See `BlockingLoop.wait_for`."""
        due: float | None = getattr(self._mine, "due", None)
        seconds = None if due is None else max(due - time.monotonic(), 0.0)
        if not self._changed.wait_for(ready, seconds):
            raise _TooLateError(why)

    def changed(self) -> None:
        """See `BlockingLoop.changed`."""
        self._changed.notify_all()

    def inside(self) -> AbstractContextManager[object]:
        """See `BlockingLoop.inside`."""
        return self._lock

    @contextmanager
    def outside(self) -> Iterator[None]:
        """See `BlockingLoop.outside`."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    def me(self) -> Hashable:
        """See `BlockingLoop.me`."""
        return threading.get_ident()

    async def in_time(self, seconds: float, wait: Wait) -> bool:
        """See `Loop.in_time`."""
        self._mine.due = time.monotonic() + seconds
        try:
            await wait()
        except _TooLateError:
            return False
        finally:
            self._mine.due = None
        return True
