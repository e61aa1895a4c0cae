"""Poisoned pages: get-pfn does not return them, and a punch heals them."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.errnos import EHWPOISON
from inaccfs.semantics import V8, V10, Bind, GuestMemfd, Semantics
from inaccfs.semantics.rules import INVALIDATE_END, INVALIDATE_START, MEMORY_ERROR
from inaccfs.shim import fetch
from inaccfs.shim.frames import Extent
from inaccfs.shim.memoryfailure import report
from inaccfs.syscalls import PUNCH
from tests.unit.control_fakes import BASE, PAGE
from tests.unit.fakes import fallocated_now, refused
from tests.unit.one_file import mine
from tests.unit.pages_fakes import MANY, SIZE, BlockedFrames, Holder, fetching, world_of

pytestmark = pytest.mark.usefixtures("_no_strays")


async def test_poison_is_unknown_to_most(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(V8())
    with refused(errno.EOPNOTSUPP):
        await report(world.file, 0)
    await world.get(Holder(), 0, 1)


@pytest.mark.parametrize("version", [V10, GuestMemfd], ids=str)
async def test_a_poisoned_page_is_not_got_before_it_is_punched(
    version: type[Semantics],
) -> None:
    world, holder = world_of(version()), Holder()
    if version.scope == "range":
        await world.bound(0, SIZE)
    await world.get(holder, 0, 8)
    await report(world.file, 3)
    assert not world.file.pages.nothing_fetched
    for start, end in ((3, 4), (0, 8), (0, MANY)):
        with refused(EHWPOISON):
            await world.get(holder, start, end)
    await world.get(holder, 4, 8)
    await world.punch(4, 8)
    await world.punch(0, 3)
    with refused(EHWPOISON):
        await world.get(holder, 3, 4)
    await world.punch(3, 4)
    assert world.file.pages.nothing_fetched
    await world.get(holder, 0, 8)


@pytest.mark.parametrize("order", ["before", "after", "bracket"])
async def test_a_memory_failure_sends_the_events_of_a_punch(order: str) -> None:
    rules = mine(V8, order=order, memory_failure="invalidate")
    world = world_of(rules)
    await world.get(Holder(), 0, 8)
    listener = await world.listener()
    await report(world.file, 3)
    assert listener.events == [(event, 3, 4) for event in rules.events]
    listener.events.clear()
    await world.punch(3, 4)
    assert listener.events == [(event, 3, 4) for event in rules.events]


def test_the_number_is_the_kernels() -> None:
    assert EHWPOISON == 133


@pytest.mark.parametrize("fetched", [True, False])
async def test_poison_counts_for_pages_not_fetched(fetched: bool) -> None:
    """A punch of a poisoned page needs a task, even if the page was not fetched."""
    world, holder = world_of(V10()), Holder()
    world.allocate(3, 4)
    if fetched:
        await world.get(holder, 3, 4)
    await report(world.file, 3)
    assert not fallocated_now(world.file, PUNCH, 3 * PAGE, PAGE)
    with refused(EHWPOISON):
        await world.get(holder, 3, 4)
    await world.punch(3, 4)
    assert fallocated_now(world.file, PUNCH, 3 * PAGE, PAGE)


async def test_a_punch_that_is_refused_heals_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_of(V10())
    world.allocate(3, 4)
    await report(world.file, 3)

    def full(*_: object) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(syscalls, "fallocate", full)
    with refused(errno.EIO):
        await world.punch(3, 4)
    with refused(EHWPOISON):
        await world.get(Holder(), 3, 4)


async def test_an_error_is_sent_and_needs_no_answer() -> None:
    world = world_of(V10())
    world.allocate(3, 4)
    listener = await world.listener(answers=False)
    await report(world.file, 3)
    assert listener.events == [(MEMORY_ERROR, 3, 4)]
    assert listener.sequence is None


async def test_an_invalidation_for_poison_is_that_of_a_punch() -> None:
    """kvm_gmem_error_folio(): begin and end, to the notifiers of this page."""
    world = world_of(GuestMemfd())
    one, other = await world.bound(0, 4), await world.bound(4, 8)
    await world.get(Holder(), 3, 4)
    await report(world.file, 3)
    assert one.events == [(INVALIDATE_START, 3, 4), (INVALIDATE_END, 3, 4)]
    assert other.events == []
    # The page stays where it is: MF_DELAYED.
    assert world.allocated == 1


@pytest.mark.parametrize("version", [V10, GuestMemfd], ids=str)
async def test_a_page_is_poisoned_once(version: type[Semantics]) -> None:
    world = world_of(version())
    world.allocate(3, 4)
    listener = await (
        world.bound(0, 8) if version.scope == "range" else world.listener()
    )
    await report(world.file, 3)
    before = list(listener.events)
    with refused(EHWPOISON):
        await report(world.file, 3)
    assert listener.events == before
    await world.punch(3, 4)
    world.allocate(3, 4)
    await report(world.file, 3)
    assert world.frames.poisoned == [3, 3]


@pytest.mark.parametrize("version", [V10, Bind, GuestMemfd], ids=str)
async def test_a_hole_has_no_memory_that_could_fail(version: type[Semantics]) -> None:
    """There is no event, and the page stays a hole."""
    world = world_of(version())
    world.allocate(2, 3)
    listener = await (
        world.bound(0, 8) if version.scope == "range" else world.listener()
    )
    for page in (1, 3):
        with refused(errno.ENXIO):
            await report(world.file, page)
    assert listener.events == []
    assert world.file.pages.nothing_fetched
    assert world.allocated == 1
    # A punched page is a hole, even if it was poisoned before.
    await report(world.file, 2)
    assert len(world.file.pages.poisoned) == 1
    await world.punch(0, 8)
    listener.events.clear()
    with refused(errno.ENXIO):
        await report(world.file, 2)
    assert (listener.events, len(world.file.pages.poisoned)) == ([], 0)


async def test_a_page_that_is_being_punched_is_a_hole_by_then() -> None:
    world = world_of(V10())
    world.allocate(0, 4)
    refusals: list[int | None] = []

    async def poison() -> None:
        try:
            await report(world.file, 3)
        except OSError as exc:
            refusals.append(exc.errno)

    async with trio.open_nursery() as nursery:
        with world.file.turn.take():
            nursery.start_soon(poison)
            await trio.testing.wait_all_tasks_blocked()
            assert world.file.pages.nothing_fetched
            syscalls.fallocate(world.file.fd, PUNCH, 0, 4 * PAGE)
    assert refusals == [errno.ENXIO]


async def test_a_huge_page_is_looked_for_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch, "INLINE_FETCH_BYTES", 0)
    world = world_of(V10())
    world.allocate(3, 4)
    with refused(errno.ENXIO):
        await report(world.file, 4)
    await report(world.file, 3)
    assert len(world.file.pages.poisoned) == 1


async def test_a_folio_with_a_poisoned_page_is_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a peer that gets the next page would map the whole folio."""
    world, holder = world_of(V10()), Holder()
    await world.get(holder, 0, 16)

    def known(start: int, end: int) -> list[Extent]:
        return [Extent(start, BASE + start, end - start, 3)]

    monkeypatch.setattr(world.frames, "known", known)
    await report(world.file, 3)
    assert await world.get(holder, 4, 16) == [
        Extent(4, BASE + 4, 4, 0),
        Extent(8, BASE + 8, 8, 3),
    ]


@pytest.mark.parametrize("version", [V10, GuestMemfd], ids=str)
async def test_there_is_no_poison_past_the_end(version: type[Semantics]) -> None:
    world = world_of(version(), pages=4)
    for page in (4, 100):
        with refused(errno.EINVAL):
            await report(world.file, page)
    assert world.file.pages.nothing_fetched


async def test_a_peer_that_reports_poison_may_go_and_the_end_is_sent() -> None:
    """Otherwise a start without an end would keep the others from the page for ever."""
    world = world_of(GuestMemfd())
    world.allocate(3, 4)
    listener = await world.bound(0, 4, answers=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(report, world.file, 3)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        listener.answers = True
        listener.answer()
    assert listener.events == [(INVALIDATE_START, 3, 4), (INVALIDATE_END, 3, 4)]


async def test_a_page_that_is_poisoned_while_it_is_fetched_is_not_got() -> None:
    world, holder = world_of(V10()), Holder()
    await world.get(holder, SIZE - 1, SIZE)
    frames = world.frames
    assert isinstance(frames, BlockedFrames)
    frames.blocks = True

    async def get() -> None:
        with refused(EHWPOISON):
            await world.get(holder, 0, MANY)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await fetching(world, frames)
        await report(world.file, 3)
        frames.let_go.set()
    assert world.is_punched(holder) == [(SIZE - 1, False)]
