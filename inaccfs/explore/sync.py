"""Locks, conditions and the shim's loop, scheduled by the explorer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from inaccfs.explore.mutex import Mutex
from inaccfs.explore.tracked_vm import Slot
from inaccfs.inprocess import BlockingLoop
from inaccfs.kvm.sync import THREADS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable
    from types import TracebackType

    from inaccfs.explore.actor import Actor
    from inaccfs.explore.schedule import Schedule
    from inaccfs.kvm import sync
    from inaccfs.shim.loop import Wait

_T = TypeVar("_T")

# What critical sections of these locks touch is tracked. Any two sections of another
# lock conflict.
_TRACKED: Final = ("mmu_lock", "guest_mode")


class Lock(Mutex):
    """See `inaccfs.kvm.sync.Lock`."""

    __slots__ = ()

    def __enter__(self) -> bool:
        self.acquire()
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        self.release()


class Condition:
    """See `inaccfs.kvm.sync.Condition`."""

    def __init__(self, schedule: Schedule, lock: Lock) -> None:
        self._schedule: Final = schedule
        self._lock: Final = lock
        self._key: Final = schedule.number("condition")
        # The actors that wait, each with whether it has been notified.
        self._waiters: list[tuple[Actor | None, list[bool]]] = []
        schedule.state.of_key[self._key] = self._value

    def _value(self) -> Hashable:
        return tuple(
            (None if actor is None else actor.index, notified[0])
            for actor, notified in self._waiters
        )

    def wait_for(self, predicate: Callable[[], _T], timeout: float | None = None) -> _T:
        """See `threading.Condition.wait_for`; it times out only if all others wait."""
        schedule, lock = self._schedule, self._lock
        if schedule.tracks:
            schedule.touch(self._key, False)
        while not (result := self._asked(predicate)):
            if schedule.tracks:
                schedule.touch(self._key)
            notified = [False]
            self._waiters.append((schedule.current, notified))
            lock.release()
            in_time = schedule.point(
                "waits for changed",
                partial(self._may_go_on, notified),
                timeout="" if timeout is None else "last",
            )
            lock.take()
            schedule.touch(self._key)
            if not in_time:
                self._waiters.remove((schedule.current, notified))
                return self._asked(predicate)
        return result

    def _asked(self, predicate: Callable[[], _T]) -> _T:
        self._schedule.asks = self._schedule.tracks
        try:
            return predicate()
        finally:
            self._schedule.asks = False

    def _may_go_on(self, notified: list[bool]) -> bool:
        return notified[0] and self._lock.is_free()

    def notify_all(self) -> None:
        """See `threading.Condition.notify_all`."""
        schedule = self._schedule
        if schedule.tracks:
            if self._waiters:
                schedule.touch(self._key)
            else:
                schedule.count(self._key)
        for _, notified in self._waiters:
            notified[0] = True
        self._waiters = []


class Sync:
    """The locks of a VM. See `inaccfs.kvm.sync.Sync`."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule: Final = schedule

    def lock(self, name: str) -> Lock:
        """See `inaccfs.kvm.sync.Sync`."""
        return Lock(self._schedule, name, always=name not in _TRACKED)

    def condition(self, lock: sync.Lock) -> Condition:
        """See `inaccfs.kvm.sync.Sync`."""
        assert isinstance(lock, Lock)
        return Condition(self._schedule, lock)

    def drive(self, steps: Generator[sync.Step, Any, _T]) -> _T:
        """See `inaccfs.kvm.sync.Sync`. The calls in the steps are the points."""
        schedule = self._schedule
        me = schedule.current
        if me is None:
            return THREADS.drive(steps)
        begun = me.known
        # After a throw() the exception is part of the state, and in no local variable.
        thrown = False
        try:
            step = next(steps)
            while True:
                # In a repeated step `known` is not needed at this point, except in a
                # nested call.
                if not thrown and (schedule.tracks or me.base is None):
                    schedule.forget(
                        begun if me.base is None else me.base, _locals(steps)
                    )
                try:
                    answer = step()
                except BaseException as exc:
                    thrown = True
                    step = steps.throw(exc)
                else:
                    step = steps.send(answer)
        except StopIteration as stop:
            result: _T = stop.value
            if me.base is None:
                schedule.forget(begun, result)
            else:
                schedule.restart()
            return result


def _locals(steps: object) -> Hashable:
    """The position of a suspended generator, and its local variables."""
    found: list[Hashable] = []
    while isinstance(steps, GeneratorType):
        frame = steps.gi_frame
        assert frame is not None
        found += frame.f_lasti, *map(_plain, frame.f_locals.values())
        steps = steps.gi_yieldfrom
    return tuple(found)


_SIMPLE: Final = (int, str)
_MANY: Final = (tuple, list)


def _plain(value: object) -> Hashable:
    # The most frequent types come first, because this runs for each local variable.
    if value is None or isinstance(value, _SIMPLE):
        return value
    if isinstance(value, _MANY):
        return tuple(map(_plain, value))
    if isinstance(value, Slot):
        return value.number
    return type(value).__name__


class _TooLateError(Exception):
    """Raised in `in_time` when the time is over."""


class _Event:
    def __init__(self, loop: Loop) -> None:
        self._loop: Final = loop
        self._key: Final = loop.schedule.number("event")
        self._set = False
        loop.schedule.state.of_key[self._key] = self.is_set

    def set(self) -> None:
        if self._loop.schedule.tracks:
            self._loop.schedule.touch(self._key)
        self._set = True

    def is_set(self) -> bool:
        return self._set

    async def wait(self) -> None:
        try:
            if not self._set:
                self._loop.wait_for(self.is_set, "answers")
        finally:
            # Also after a timeout, which depends on whether the event was set before.
            if self._loop.schedule.tracks:
                self._loop.schedule.touch(self._key, False)


class _Mutex(Mutex):
    __slots__ = ()

    def take_if_free(self) -> bool:
        if self.owner is not None:
            if self._schedule.tracks:
                self._schedule.touch(self.key)
            return False
        self.take()
        return True


class _ListLock:
    """See `inaccfs.shim.loop.Mutex`."""

    def __init__(self, schedule: Schedule) -> None:
        self._mutex: Final = _Mutex(schedule, "list_lock")

    async def __aenter__(self) -> None:
        self._mutex.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._mutex.release()

    def take(self) -> bool:
        return self._mutex.take_if_free()

    def release(self) -> None:
        self._mutex.release()


class _ParkingLot:
    def __init__(self, loop: Loop) -> None:
        self._loop: Final = loop

    async def park(self) -> None:
        loop = self._loop
        rounds = loop.unparked
        if loop.schedule.tracks:
            loop.schedule.touch(LOT)
        loop.wait_for(lambda: loop.unparked > rounds, "page locks")
        if loop.schedule.tracks:
            loop.schedule.touch(LOT)

    def unpark_all(self) -> None:
        if self._loop.schedule.tracks:
            self._loop.schedule.touch(LOT)
        self._loop.unparked += 1


LOT: Final = "page locks"
"""The key of all page locks; v7 has them."""


class Loop(BlockingLoop):
    """The loop of the shim. No other actor runs between two points."""

    def __init__(self, schedule: Schedule, *, evicts: bool = False) -> None:
        """With *evicts* an answer may be late at any time."""
        self.schedule: Final = schedule
        # How often the waiters for page locks have been woken.
        self.unparked = 0
        self._inside: Final[AbstractContextManager[object]] = nullcontext()
        self._evicts: Final = evicts
        # The actors that wait in `in_time`.
        self._hurried: Final[set[Hashable]] = set()

    def wait_for(self, ready: Callable[[], bool], why: str) -> None:
        """See `BlockingLoop`."""
        timeout = ""
        if self.me() in self._hurried:
            timeout = "any" if self._evicts else "last"
        if not self.schedule.point(f"waits for {why}", ready, timeout=timeout):
            if not self._evicts and self.schedule.current is not None:
                who = self.schedule.current.name
                self.schedule.violate(
                    "waits-for-ever",
                    f"{who} waits for {why} that do not come, until its time is over",
                )
            raise _TooLateError(why)

    def changed(self) -> None:
        """See `BlockingLoop`. Nothing: the schedule asks each waiter."""

    def inside(self) -> AbstractContextManager[object]:
        """See `BlockingLoop`."""
        return self._inside

    def outside(self) -> AbstractContextManager[object]:
        """See `BlockingLoop`."""
        return self._inside

    def me(self) -> Hashable:
        """See `BlockingLoop`."""
        current = self.schedule.current
        return -1 if current is None else current.index

    async def in_time(self, seconds: float, wait: Wait) -> bool:
        """See `BlockingLoop`."""
        me = self.me()
        self._hurried.add(me)
        try:
            await wait()
        except _TooLateError:
            return False
        finally:
            self._hurried.discard(me)
        return True

    def event(self) -> _Event:
        """See `BlockingLoop`."""
        return _Event(self)

    def mutex(self) -> _ListLock:
        """See `BlockingLoop`."""
        return _ListLock(self.schedule)

    def parking_lot(self) -> _ParkingLot:
        """See `BlockingLoop`."""
        return _ParkingLot(self)
