"""Invalidations: which notifiers get an event, and which must answer."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.shim.notifiers import Notice, Notifiers
from inaccfs.shim.trace import FileTrace, Trace
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Callable

ACK_SECONDS = 10.0


@dataclass(eq=False)
class Listener:
    """A notifier that remembers its events."""

    events: list[tuple[str, int, int, int | None]] = field(default_factory=list)
    evicted: bool = False
    # Called with each event.
    hears: Callable[[], object] = lambda: None

    who = number = 0

    def tell(self, notice: Notice, sequence: int | None) -> None:
        self.events.append((notice.event, notice.start, notice.end, sequence))
        self.hears()

    def evict(self) -> None:
        self.evicted = True


@pytest.fixture
def trace() -> FileTrace:
    return FileTrace(Trace())


@pytest.fixture
def notifiers(trace: FileTrace) -> Notifiers:
    return Notifiers(trace, ACK_SECONDS)


async def registered(notifiers: Notifiers, count: int) -> list[Listener]:
    listeners = [Listener() for _ in range(count)]
    for listener in listeners:
        await notifiers.register(listener)
    return listeners


async def invalidate(notifiers: Notifiers, start: int = 1, end: int = 5) -> None:
    async with notifiers.fixed():
        await notifiers.tell(Notice("INVALIDATE", start, end))


async def test_without_notifiers_nothing_waits(
    notifiers: Notifiers, trace: FileTrace
) -> None:
    await invalidate(notifiers)
    assert (trace.counters.invalidations, trace.counters.events) == (0, 0)


async def test_the_event_is_sent_to_all_before_any_answer(
    notifiers: Notifiers, trace: FileTrace
) -> None:
    first, second = await registered(notifiers, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers)
        await trio.testing.wait_all_tasks_blocked()
        assert first.events == second.events == [("INVALIDATE", 1, 5, 1)]
        notifiers.answer(second, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        assert notifiers.waiting(first) == 1
        assert notifiers.waiting(second) is None
        notifiers.answer(first, 1)
    assert (trace.counters.invalidations, trace.counters.events) == (1, 2)
    assert trace.counters.evictions == 0


async def test_all_are_waited_for_when_the_first_gets_the_event(
    notifiers: Notifiers,
) -> None:
    """Other tasks run before the next one gets it, and may ask who has not answered."""
    listeners = await registered(notifiers, 2)
    waiting: list[list[int | None]] = []
    for one in listeners:
        one.hears = lambda: waiting.append(
            [notifiers.waiting(one) for one in notifiers]
        )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers)
        await trio.testing.wait_all_tasks_blocked()
        for one in listeners:
            notifiers.answer(one, 1)
    assert waiting == [[1, 1], [1, 1]]
    assert [notifiers.waiting(one) for one in listeners] == [None, None]


async def test_each_event_has_its_own_sequence(notifiers: Notifiers) -> None:
    (one,) = await registered(notifiers, 1)
    for sequence in (1, 2, 3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invalidate, notifiers)
            await trio.testing.wait_all_tasks_blocked()
            notifiers.answer(one, sequence)
    assert [event[3] for event in one.events] == [1, 2, 3]


async def test_an_answer_must_match_an_event(notifiers: Notifiers) -> None:
    first, second = await registered(notifiers, 2)
    with refused(errno.EINVAL):
        notifiers.answer(first, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers)
        await trio.testing.wait_all_tasks_blocked()
        for sequence in (0, 2):
            with refused(errno.EINVAL):
                notifiers.answer(first, sequence)
        notifiers.answer(first, 1)
        with refused(errno.EINVAL):
            notifiers.answer(first, 1)
        notifiers.answer(second, 1)


async def test_the_list_is_fixed_while_an_invalidation_runs(
    notifiers: Notifiers,
) -> None:
    first, second = await registered(notifiers, 2)
    late = Listener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(notifiers.register, late)
        notifiers.answer(first, 1)
        nursery.start_soon(notifiers.unregister, first)
        await trio.testing.wait_all_tasks_blocked()
        assert list(notifiers) == [first, second]
        notifiers.answer(second, 1)
    assert list(notifiers) == [second, late]
    assert late.events == []


async def test_unregistering_is_an_answer_and_waits_for_the_end(
    notifiers: Notifiers,
) -> None:
    """inaccessible_unregister_notifier() in the callback would wait for itself."""
    first, second = await registered(notifiers, 2)
    order: list[str] = []

    async def unregister() -> None:
        await notifiers.unregister(first)
        order.append("unregistered")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(unregister)
        await trio.testing.wait_all_tasks_blocked()
        assert notifiers.waiting(first) is None
        order.append("answered")
        notifiers.answer(second, 1)
    assert order == ["answered", "unregistered"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers)
        await trio.testing.wait_all_tasks_blocked()
        notifiers.answer(second, 2)
    assert len(first.events) == 1


async def test_a_cancelled_unregistration_has_happened(notifiers: Notifiers) -> None:
    first, second = await registered(notifiers, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await notifiers.unregister(first)
        assert list(notifiers) == [second]
        notifiers.answer(second, 1)


async def test_a_notifier_that_was_removed_delays_nothing(notifiers: Notifiers) -> None:
    first, second = await registered(notifiers, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers)
        await trio.testing.wait_all_tasks_blocked()
        notifiers.answer(first, 1)
        notifiers.drop(second)
    assert list(notifiers) == [first]
    assert not second.evicted


async def test_the_silent_are_evicted_in_time_and_the_others_stay(
    notifiers: Notifiers, trace: FileTrace, autojump_clock: trio.testing.MockClock
) -> None:
    quick, silent = await registered(notifiers, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers)
        await trio.testing.wait_all_tasks_blocked()
        notifiers.answer(quick, 1)
    assert trio.current_time() == ACK_SECONDS
    assert silent.evicted
    assert not quick.evicted
    assert list(notifiers) == [quick]
    assert trace.counters.evictions == 1


async def test_two_invalidations_take_turns(notifiers: Notifiers) -> None:
    (one,) = await registered(notifiers, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers, 0, 1)
        nursery.start_soon(invalidate, notifiers, 7, 8)
        await trio.testing.wait_all_tasks_blocked()
        assert len(one.events) == 1
        notifiers.answer(one, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(one.events) == 2
        notifiers.answer(one, 2)


async def test_a_cancelled_invalidation_lets_the_list_go(notifiers: Notifiers) -> None:
    (one,) = await registered(notifiers, 1)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invalidate, notifiers)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    with trio.fail_after(60):
        await notifiers.register(Listener())
    assert len(notifiers) == 2
    # Its answer is too late now, and is not a bug.
    notifiers.drop(one)


async def test_a_change_of_the_list_is_reported() -> None:
    changes: list[int] = []
    made = Notifiers(FileTrace(Trace()), ACK_SECONDS, lambda: changes.append(len(made)))
    (one,) = await registered(made, 1)
    await made.unregister(one)
    assert changes == [1, 0]


@dataclass(eq=False)
class Removing(Listener):
    """Sending to it removes another notifier, as a connection that fails may."""

    notifiers: Notifiers | None = None
    other: Listener | None = None

    def tell(self, notice: Notice, sequence: int | None) -> None:
        super().tell(notice, sequence)
        assert self.notifiers is not None
        assert self.other is not None
        self.notifiers.drop(self.other)
        if sequence is not None:
            self.notifiers.answer(self, sequence)


@pytest.mark.parametrize("how", ["in a task", "without a task", "without an answer"])
async def test_events_that_were_not_sent_do_not_count(
    notifiers: Notifiers, trace: FileTrace, how: str
) -> None:
    first, second = Removing(), Listener()
    first.notifiers, first.other = notifiers, second
    await notifiers.register(first)
    await notifiers.register(second)
    notice = Notice("INVALIDATE", 1, 5)
    if how == "in a task":
        await invalidate(notifiers)
    elif how == "without an answer":
        await notifiers.announce(notice)
    else:
        assert notifiers.take()
        notifiers.begin(notice, lambda: None)
        notifiers.release()
    assert (len(first.events), len(second.events)) == (1, 0)
    assert trace.counters.events == 1
