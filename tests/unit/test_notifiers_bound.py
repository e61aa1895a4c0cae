"""restrictedmem_bind(): which notifiers get which events, and in which units."""

from __future__ import annotations

import errno
import itertools
import random
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from inaccfs.shim.notifiers import Notice, Notifiers
from inaccfs.shim.trace import FileTrace, Trace
from tests.unit.fakes import refused

PAGE = 4096


@dataclass(eq=False)
class Listener:
    """A notifier that answers at once, or when a test wants it to."""

    notifiers: Notifiers
    events: list[tuple[int, int]] = field(default_factory=list)
    answers: bool = True
    sequence: int = 0

    who = number = 0

    def tell(self, notice: Notice, sequence: int | None) -> None:
        self.events.append((notice.start, notice.end))
        if sequence is None:
            return
        self.sequence = sequence
        if self.answers:
            self.answer()

    def answer(self) -> None:
        self.notifiers.answer(self, self.sequence)

    def evict(self) -> None:
        raise AssertionError("all answer here")

    async def bind(self, start: int, end: int, *, exclusive: bool = True) -> Listener:
        await self.notifiers.bind(self, start, end, exclusive=exclusive)
        return self


def made(*, unit: int = 1, clips: bool = False) -> Notifiers:
    return Notifiers(FileTrace(Trace()), 10, unit=unit, clips=clips)


async def invalidate(notifiers: Notifiers, start: int, end: int) -> None:
    async with notifiers.fixed():
        await notifiers.tell(Notice("INVALIDATE", start, end))


# --- targets of an event ------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 4, False),
        (0, 5, True),
        (4, 5, True),
        (6, 7, True),
        (7, 100, True),
        # The end is exclusive. The walk of the bind tree's xarray went one too far.
        (8, 9, False),
        (3, 4, False),
        (0, 100, True),
        (5, 5, False),
    ],
)
async def test_all_notifiers_bound_to_a_page_get_the_event(
    start: int, end: int, expected: bool
) -> None:
    """With "punched" the event has the whole range of the punch."""
    notifiers = made()
    one = await Listener(notifiers).bind(4, 8)
    await invalidate(notifiers, start, end)
    assert one.events == ([(start, end)] if expected else [])


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 100, (4, 8)), (5, 6, (5, 6)), (0, 5, (4, 5)), (7, 9, (7, 8)), (4, 8, (4, 8))],
)
async def test_with_clipped_each_gets_its_part_of_the_range(
    start: int, end: int, expected: tuple[int, int]
) -> None:
    notifiers = made(clips=True)
    one = await Listener(notifiers).bind(4, 8)
    other = await Listener(notifiers).bind(8, 9)
    await invalidate(notifiers, start, end)
    assert one.events == [expected]
    assert all(8 <= first < stop <= 9 for first, stop in other.events)


async def test_an_event_to_an_unbound_notifier_is_never_clipped() -> None:
    notifiers = made(clips=True)
    one = Listener(notifiers)
    await notifiers.register(one)
    await invalidate(notifiers, 3, 9)
    assert one.events == [(3, 9)]


@pytest.mark.parametrize(
    ("clips", "expected"), [(False, (2 * PAGE, 9 * PAGE)), (True, (4 * PAGE, 8 * PAGE))]
)
async def test_units_are_those_of_the_notifier(
    clips: bool, expected: tuple[int, int]
) -> None:
    """The bug was bytes instead of pages; events without an answer are checked, too."""
    notifiers = made(unit=PAGE, clips=clips)
    one = await Listener(notifiers).bind(4, 8)
    await invalidate(notifiers, 2, 9)
    await notifiers.announce(Notice("MEMORY_ERROR", 2, 9))
    assert one.events == [expected, expected]


async def test_an_event_without_answer_goes_to_the_notifiers_concerned() -> None:
    trace = FileTrace(Trace())
    notifiers = Notifiers(trace, 10)
    one = await Listener(notifiers, answers=False).bind(4, 8)
    other = await Listener(notifiers, answers=False).bind(8, 9)
    await notifiers.announce(Notice("MEMORY_ERROR", 4, 5))
    assert (one.events, other.events) == ([(4, 5)], [])
    assert notifiers.waiting(one) is None
    assert (trace.counters.events, trace.counters.invalidations) == (1, 0)


async def test_each_gets_one_event_for_any_number_of_pieces() -> None:
    """An alias splits the range of the first binding into three."""
    notifiers = made()
    one = await Listener(notifiers).bind(0, 9, exclusive=False)
    other = await Listener(notifiers).bind(3, 6, exclusive=False)
    await invalidate(notifiers, 0, 9)
    assert (one.events, other.events) == ([(0, 9)], [(0, 9)])


async def test_the_bound_are_found_in_the_order_of_their_pages() -> None:
    """This is the order of a walk through an xarray."""
    notifiers = made()
    later, sooner = Listener(notifiers), Listener(notifiers)
    await later.bind(5, 9)
    await sooner.bind(0, 5)
    assert notifiers._concerned(0, 9) == [sooner, later]


async def test_a_notifier_that_leaves_gets_no_event() -> None:
    notifiers = made()
    one = await Listener(notifiers, answers=False).bind(0, 4)
    other = await Listener(notifiers, answers=False).bind(4, 8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers, 4, 5)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(notifiers.unregister, one)
        await trio.testing.wait_all_tasks_blocked()
        assert notifiers._concerned(0, 8) == [other]
        other.answer()
    assert list(notifiers) == [other]


async def test_of_many_only_the_notifiers_concerned_are_looked_at() -> None:
    notifiers = made()
    many = [await Listener(notifiers).bind(at, at + 1) for at in range(10_000)]
    # Only these notifiers exist: a look at any other would fail.
    notifiers._registered = dict.fromkeys(many[4990:5010])
    await invalidate(notifiers, 5000, 5002)
    assert [at for at, one in enumerate(many) if one.events] == [5000, 5001]


# --- bind and unbind ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "taken"),
    [
        (0, 5, True),
        (7, 9, True),
        (5, 6, True),
        (0, 99, True),
        (0, 4, False),
        (8, 9, False),
    ],
)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
async def test_ranges_that_overlap_need_both_to_agree(
    start: int, end: int, taken: bool, first: bool, second: bool
) -> None:
    """Exclusive works in both orders of binding; SMRAM's alias does not use it."""
    notifiers = made()
    one = await Listener(notifiers).bind(4, 8, exclusive=first)
    other = Listener(notifiers)
    if taken and (first or second):
        with refused(errno.EINVAL):
            await other.bind(start, end, exclusive=second)
        assert list(notifiers) == [one]
        assert other not in notifiers
        # The refused binding has had no effect.
        assert not notifiers.cover(0, 4)
        assert not notifiers.cover(8, 9)
    else:
        await other.bind(start, end, exclusive=second)
        assert other in notifiers


async def test_an_exclusive_range_is_free_after_unbinding() -> None:
    notifiers = made()
    for exclusive in (True, False, True):
        one = await Listener(notifiers).bind(4, 8, exclusive=exclusive)
        await notifiers.unregister(one)
        assert not notifiers.cover(4, 8)
        assert notifiers._bindings is not None
        assert not notifiers._bindings._exclusive
    one = await Listener(notifiers).bind(4, 8, exclusive=True)
    notifiers.drop(one)
    await Listener(notifiers).bind(0, 9, exclusive=False)


async def test_an_alias_leaves_the_other_where_it_was() -> None:
    notifiers = made()
    one = await Listener(notifiers).bind(0, 9, exclusive=False)
    other = await Listener(notifiers).bind(3, 6, exclusive=False)
    notifiers.drop(other)
    assert notifiers.cover(0, 9)
    # The pieces have been merged again.
    assert notifiers._bindings is not None
    assert list(notifiers._bindings._numbers) == [(0, 9, 1)]
    assert list(notifiers._concerned(3, 6)) == [one]


async def test_a_range_is_covered_if_each_of_its_pages_is() -> None:
    notifiers = made()
    assert not notifiers.cover(0, 1)
    await Listener(notifiers).bind(0, 4)
    other = await Listener(notifiers).bind(4, 8)
    assert notifiers.cover(0, 8)
    assert notifiers.cover(3, 5)
    assert not notifiers.cover(7, 9)
    notifiers.drop(other)
    assert not notifiers.cover(3, 5)
    assert notifiers.cover(0, 4)


async def test_bind_and_unbind_wait_while_an_invalidation_runs() -> None:
    """Sean Christopherson: bindings must be stable across it."""
    notifiers = made()
    first = await Listener(notifiers, answers=False).bind(0, 4)
    late = Listener(notifiers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidate, notifiers, 0, 8)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(late.bind, 4, 8)
        await trio.testing.wait_all_tasks_blocked()
        assert list(notifiers) == [first]
        assert not notifiers.cover(4, 8)
        first.answer()
    assert list(notifiers) == [first, late]
    assert late.events == []


async def test_a_refused_bind_lets_the_list_go() -> None:
    notifiers = made()
    await Listener(notifiers).bind(0, 4)
    with refused(errno.EINVAL):
        await Listener(notifiers).bind(0, 4)
    assert notifiers.take()


async def test_a_change_of_the_list_is_reported() -> None:
    changes: list[int] = []
    notifiers = Notifiers(
        FileTrace(Trace()), 10, lambda: changes.append(len(notifiers))
    )
    one = await Listener(notifiers).bind(0, 4)
    await notifiers.unregister(one)
    assert changes == [1, 0]


async def test_bindings_that_come_and_go_are_found_as_by_a_list() -> None:
    """The model is the simplest one: a list that is searched as a whole."""
    dice = random.Random(5)
    notifiers = made()
    there: dict[Listener, tuple[int, int]] = {}
    for _ in range(400):
        start = dice.randrange(40)
        end = start + dice.randrange(1, 10)
        if there and dice.random() < 0.4:
            dropped = dice.choice(list(there))
            notifiers.drop(dropped)
            del there[dropped]
        else:
            made_ = await Listener(notifiers).bind(start, end, exclusive=False)
            there[made_] = start, end
        found = set(notifiers._concerned(start, end))
        wanted = {
            one for one, (first, stop) in there.items() if first < end and start < stop
        }
        assert found == wanted
        pages = set(itertools.chain.from_iterable(range(*at) for at in there.values()))
        assert notifiers.cover(start, end) is (set(range(start, end)) <= pages)
    for one in list(there):
        notifiers.drop(one)
    assert notifiers._bindings is not None
    assert not notifiers._bindings._numbers
