"""The loop that the shim runs in: events, locks, deadlines, threads.

The daemon runs in trio: `TRIO`. Programs that run the shim without it, like
inaccfs.inprocess, use another `Loop`. In every loop, no other task runs between two
awaits.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar, TypeVarTuple

import trio

from inaccfs.errors import means_no_thread
from inaccfs.shim.deadlines import in_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    Wait: TypeAlias = Callable[[], Awaitable[None]]

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


class Event(Protocol):
    """The part of `trio.Event` that is used."""

    def set(self) -> None: ...
    def is_set(self) -> bool: ...
    async def wait(self) -> None: ...


class Mutex(Protocol):
    """A lock without an owner: a call may release what another call has taken."""

    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...
    def take(self) -> bool:
        """Take it if it is free."""

    def release(self) -> None: ...


class ParkingLot(Protocol):
    """The part of `trio.lowlevel.ParkingLot` that is used."""

    async def park(self) -> None: ...
    def unpark_all(self) -> object: ...


class Loop(Protocol):
    """Makes events, locks and places to wait at. Times are seconds."""

    def event(self) -> Event:
        """An event that has not happened yet."""

    def mutex(self) -> Mutex:
        """A new, unlocked lock."""

    def parking_lot(self) -> ParkingLot:
        """A place to wait at until another task unparks all."""

    async def in_time(self, seconds: float, wait: Wait) -> bool:
        """Await *wait*; cancel it after *seconds*, and return whether it returned.

        It may be cancelled and awaited again. See `inaccfs.shim.deadlines.in_time`.
        """

    async def first_of(self, *waits: Wait) -> None:
        """Wait for the first of several waits; cancel the others."""

    def shield(self) -> AbstractContextManager[object]:
        """A block that runs to its end, also in a task that is cancelled."""

    async def checkpoint(self) -> None:
        """Let other tasks run between slices of long work: `inaccfs.shim.slices`."""

    async def check_cancelled(self) -> None:
        """Raise here in a cancelled task; otherwise let no other task run."""

    async def in_thread(
        self,
        call: Callable[[*_Args], _T],
        *args: *_Args,
        limiter: trio.CapacityLimiter,
    ) -> _T:
        """Make a blocking call, and let other tasks run meanwhile.

        Raises:
            OSError: EAGAIN, no thread can be started; and whatever *call* raises.
        """


async def first_of(*waits: Wait) -> None:
    """Wait for the first of several waits; cancel the others."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Wait) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)


class _Mutex:
    """A semaphore of one: a `trio.Lock` would belong to a task."""

    __slots__ = ("_semaphore",)

    def __init__(self) -> None:
        self._semaphore: Final = trio.Semaphore(1, max_value=1)

    async def __aenter__(self) -> None:
        await self._semaphore.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._semaphore.release()

    def take(self) -> bool:
        try:
            self._semaphore.acquire_nowait()
        except trio.WouldBlock:
            return False
        return True

    def release(self) -> None:
        self._semaphore.release()


class _Trio:
    event = trio.Event
    mutex = _Mutex
    parking_lot = trio.lowlevel.ParkingLot
    first_of = staticmethod(first_of)
    in_time = staticmethod(in_time)

    def __init__(self) -> None:
        self._gate: Final = trio.Lock()

    async def checkpoint(self) -> None:
        # One slice of all long work in each round of the loop: a request of the kernel
        # waits for one slice, and not for as many as there are peers.
        async with self._gate:
            await trio.lowlevel.checkpoint()

    async def check_cancelled(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()

    async def in_thread(
        self,
        call: Callable[[*_Args], _T],
        *args: *_Args,
        limiter: trio.CapacityLimiter,
    ) -> _T:
        try:
            return await trio.to_thread.run_sync(call, *args, limiter=limiter)
        except RuntimeError as exc:
            if not means_no_thread(exc):
                raise
            raise OSError(errno.EAGAIN, "no more threads are allowed") from exc

    def shield(self) -> trio.CancelScope:
        return trio.CancelScope(shield=True)


TRIO: Final[Loop] = _Trio()
"""The loop of the daemon."""
