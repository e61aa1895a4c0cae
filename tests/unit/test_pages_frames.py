"""Events with the frames of removed pages, under the rule `tells_frames`."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.semantics import V8, V10, Semantics
from inaccfs.semantics.rules import INVALIDATE, INVALIDATE_END, INVALIDATE_START
from tests.unit.control_fakes import BASE
from tests.unit.fakes import refused
from tests.unit.one_file import mine
from tests.unit.pages_fakes import KEEP, Holder, world_of

pytestmark = pytest.mark.usefixtures("_no_strays")


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (V8, {"order": "after"}),
        (V8, {"order": "before"}),
        (V8, {"order": "bracket"}),
    ],
    ids=["after", "before", "bracket"],
)
async def test_events_list_the_frames_that_go(
    base: type[Semantics], changes: dict[str, str]
) -> None:
    """Michael Roth's invalidate(start, end, page, order): what of it was fetched."""
    world = world_of(mine(base, tells_frames=True, **changes))
    await world.get(Holder(), 2, 5)
    await world.get(Holder(), 7, 8)
    listener = await world.listener()
    await world.punch(3, 9)
    assert listener.frames == [[(3, BASE + 3, 2), (7, BASE + 7, 1)]] * len(
        listener.events
    )
    await world.punch(20, 30)
    assert listener.frames[-1] == []


async def test_pages_fetched_since_the_start_are_in_the_end_event() -> None:
    world = world_of(mine(V10, tells_frames=True))
    listener = await world.listener(answers=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 0, 8)
        await trio.testing.wait_all_tasks_blocked()
        await world.get(Holder(), 3, 4)
        listener.answers = True
        listener.answer()
    assert listener.frames == [[], [(3, BASE + 3, 1)]]


async def test_an_allocation_takes_no_frames() -> None:
    world = world_of(mine(order="bracket", tells_frames=True))
    await world.get(Holder(), 0, 4)
    listener = await world.listener()
    await world.fallocate(KEEP, 0, 8)
    assert listener.frames == [[], []]


async def test_a_punch_that_is_refused_has_taken_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_of(mine(tells_frames=True))
    await world.get(Holder(), 0, 4)
    listener = await world.listener()

    def full(*_: object) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(syscalls, "fallocate", full)
    with refused(errno.EIO):
        await world.punch(0, 4)
    assert listener.frames == [[]]


async def test_most_semantics_list_no_frames() -> None:
    world = world_of(V8())
    await world.get(Holder(), 0, 4)
    listener = await world.listener()
    await world.punch(0, 4)
    assert listener.frames == [None]


@pytest.mark.parametrize("order", ["before", "bracket"])
async def test_pages_fetched_during_the_wait_for_the_list_are_listed(
    order: str,
) -> None:
    """Also in a start: the pages when it is sent, and not when the call arrived."""
    world, holder = world_of(mine(tells_frames=True, order=order)), Holder()
    listener = await world.listener()
    async with trio.open_nursery() as nursery, world.file.notifiers.fixed():
        nursery.start_soon(world.punch, 0, 8)
        await trio.testing.wait_all_tasks_blocked()
        await world.get(holder, 3, 4)
    assert listener.frames == [[(3, BASE + 3, 1)]] * len(listener.events)
    assert listener.events


async def test_pages_removed_during_the_wait_for_the_list_are_listed_once() -> None:
    world = world_of(mine(order="before", tells_frames=True))
    await world.get(Holder(), 0, 4)
    listener = await world.listener()
    async with trio.open_nursery() as nursery, world.file.notifiers.fixed():
        for _ in range(2):
            nursery.start_soon(world.punch, 0, 4)
        await trio.testing.wait_all_tasks_blocked()
    assert listener.events == [(INVALIDATE, 0, 4)] * 2
    assert listener.frames == [[(0, BASE, 4)], []]


@pytest.mark.parametrize("by", ["a fetch", "a punch"])
@pytest.mark.parametrize(
    ("base", "events"),
    [(V8, [INVALIDATE]), (V10, [INVALIDATE_START, INVALIDATE_END])],
    ids=["v8", "v10"],
)
async def test_events_for_moved_pages_have_the_old_frames(
    base: type[Semantics], events: list[str], by: str
) -> None:
    """As for removed pages: these are the frames that must not be used any more."""
    world, holder = world_of(mine(base, tells_frames=True)), Holder()
    await world.get(holder, 0, 16)
    listener = await world.listener()
    world.frames.moves = {6: 0x9000, 7: 0x9900, 12: 0x9A00}
    if by == "a fetch":
        await world.get(holder, 20, 21)
    else:
        await world.punch(3, 4)
        del listener.events[: len(events)], listener.frames[: len(events)]
    first, second = [(event, 6, 8) for event in events], [(e, 12, 13) for e in events]
    assert listener.events == first + second
    assert listener.frames == [
        *[[(6, BASE + 6, 2)]] * len(events),
        *[[(12, BASE + 12, 1)]] * len(events),
    ]


async def test_a_page_that_has_moved_twice_was_in_two_frames() -> None:
    """Noted while an invalidation runs, which reports both at its end."""
    world, holder = world_of(mine(tells_frames=True)), Holder()
    await world.get(holder, 0, 8)
    listener = await world.listener(answers=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 0, 2)
        await trio.testing.wait_all_tasks_blocked()
        for at, pfn in ((20, 0x9000), (21, 0x9900)):
            world.frames.moves = {5: pfn}
            await world.get(holder, at, at + 1)
        listener.answers = True
        listener.answer()
    assert listener.events == [(INVALIDATE, 0, 2), (INVALIDATE, 5, 6)]
    assert listener.frames[1] == [(5, BASE + 5, 1), (5, 0x9000, 1)]
