"""Events for pages that move, are truncated, or are punched in part."""

from __future__ import annotations

import errno
import os

import pytest
import trio
import trio.testing

from inaccfs.errnos import EHWPOISON
from inaccfs.semantics import V7, V8, V9, V10, GuestMemfd, Semantics, V8AsPosted
from inaccfs.semantics.rules import (
    INVALIDATE,
    INVALIDATE_END,
    INVALIDATE_START,
)
from inaccfs.shim import file as file_module
from inaccfs.shim.memoryfailure import report
from inaccfs.syscalls import PUNCH
from tests.unit.control_fakes import PAGE
from tests.unit.fakes import fallocated_now, refused
from tests.unit.one_file import mine
from tests.unit.pages_fakes import (
    KEEP,
    SIZE,
    Holder,
    count_calls,
    world_of,
)

pytestmark = pytest.mark.usefixtures("_no_strays")


# --- pages that move --------------------------------------------------------------


@pytest.mark.parametrize(
    ("semantics", "expected"),
    [
        (V8(), [(INVALIDATE, 6, 8)]),
        (V10(), [(INVALIDATE_START, 6, 8), (INVALIDATE_END, 6, 8)]),
        (mine(order="before"), [(INVALIDATE, 6, 8)]),
        (V8AsPosted(), []),
        (V9(), []),
    ],
    ids=["v8", "v10", "before", "v8-as-posted", "v9"],
)
@pytest.mark.parametrize("by", ["a fetch", "a punch"])
async def test_pages_that_have_moved_are_reported_unless_they_may_move(
    semantics: Semantics, expected: list[tuple[str, int, int]], by: str
) -> None:
    """They are reported as removed, in one range; references are to the old page."""
    world, holder = world_of(semantics), Holder()
    await world.get(holder, 0, 8)
    listener = await world.listener()
    world.frames.moves = {6: 0x9000, 7: 0x9900}
    if by == "a fetch":
        await world.get(holder, 20, 21)
    else:
        await world.punch(3, 4)
        # The event of the punch itself comes first, in the unit of the version.
        plan = semantics.plan(punches=True)
        del listener.events[: (plan.before is not None) + (plan.after is not None)]
    assert listener.events == expected
    assert world.is_punched(holder)[6:8] != [(6, False), (7, False)]


async def test_pages_that_move_one_by_one_are_reported_in_few_ranges() -> None:
    world = world_of(V8())
    await world.get(Holder(), 0, 16)
    listener = await world.listener()
    world.frames.moves = {at: 0x9000 + 2 * at for at in (3, 1, 2, 9, 10, 14)}
    await world.get(Holder(), 20, 21)
    assert listener.events == [(INVALIDATE, *at) for at in ((1, 4), (9, 11), (14, 15))]


async def test_an_invalidation_also_reports_pages_that_have_moved_meanwhile() -> None:
    """A peer that gets pages in its callback must not wait for itself."""
    world = world_of(GuestMemfd())
    await world.bound(4, SIZE)
    listener = await world.bound(0, 4, answers=False)
    await world.get(Holder(), 0, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(report, world.file, 3)
        await trio.testing.wait_all_tasks_blocked()
        world.frames.moves = {1: 0x9000}
        with trio.fail_after(60):
            await world.get(Holder(), 20, 21)
        listener.answers = True
        listener.answer()
    assert listener.events == [
        *((INVALIDATE_START, 3, 4), (INVALIDATE_END, 3, 4)),
        *((INVALIDATE_START, 1, 2), (INVALIDATE_END, 1, 2)),
    ]


async def test_a_peer_may_go_during_get_pfn_and_the_others_get_the_event() -> None:
    world = world_of(V10())
    await world.get(Holder(), 0, 4)
    listener = await world.listener(answers=False)
    world.frames.moves = {1: 0x9000}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.get, Holder(), 20, 21)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        listener.answers = True
        listener.answer()
    assert listener.events == [(INVALIDATE_START, 1, 2), (INVALIDATE_END, 1, 2)]


# --- the end of the file ----------------------------------------------------------


async def test_no_allocation_past_the_end_where_that_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EINVAL of kvm_gmem_allocate(); a punch there does nothing, and succeeds."""
    world = world_of(GuestMemfd(), pages=8)
    for start, end in ((8, 9), (7, 9), (0, 9)):
        with refused(errno.EINVAL):
            fallocated_now(world.file, KEEP, start * PAGE, (end - start) * PAGE)
        with refused(errno.EINVAL):
            await world.fallocate(KEEP, start, end)
    assert fallocated_now(world.file, KEEP, 0, 8 * PAGE)
    assert fallocated_now(world.file, PUNCH, 6 * PAGE, 64 * PAGE)
    assert world.allocated == 6
    # The size is final, and looked up once.
    calls = count_calls(monkeypatch, file_module, "fstat")
    for _ in range(3):
        assert fallocated_now(world.file, KEEP, 0, PAGE)
        await world.fallocate(KEEP, 0, 4)
    assert calls == []


async def test_a_file_without_a_size_takes_no_allocation_and_gets_one_later() -> None:
    world = world_of(GuestMemfd(), pages=0)
    with refused(errno.EINVAL):
        fallocated_now(world.file, KEEP, 0, PAGE)
    await world.file.set_size(4 * PAGE)
    assert fallocated_now(world.file, KEEP, 0, 4 * PAGE)
    with refused(errno.EINVAL):
        fallocated_now(world.file, KEEP, 4 * PAGE, PAGE)


async def test_a_size_that_changes_is_looked_up_again() -> None:
    """A user's rules may have it free, and allocations end with it all the same."""
    world = world_of(mine(size="free", past_end="refused"), pages=4)
    for pages in (4, 8, 2):
        await world.file.set_size(pages * PAGE)
        assert fallocated_now(world.file, KEEP, 0, pages * PAGE)
        with refused(errno.EINVAL):
            fallocated_now(world.file, KEEP, pages * PAGE, PAGE)


# --- a size that is free ----------------------------------------------------------


@pytest.mark.parametrize(
    ("semantics", "expected"),
    [
        (mine(size="free"), [(INVALIDATE, 2, 8)]),
        (
            mine(V10, size="free"),
            [(INVALIDATE_START, 2, 8), (INVALIDATE_END, 2, 8)],
        ),
        (mine(V7, size="free"), [(INVALIDATE, 2, 8)]),
    ],
    ids=["v8", "v10", "v7"],
)
@pytest.mark.parametrize("size", [2 * PAGE, PAGE + 1])
async def test_a_file_that_shrinks_is_punched_at_its_end(
    semantics: Semantics, expected: list[tuple[str, int, int]], size: int
) -> None:
    """truncate_inode_pages() is also used for a punch. The page at the cut stays."""
    world, holder = world_of(semantics, pages=8), Holder()
    listener = await world.listener()
    await world.get(holder, 0, 8)
    if semantics.references == "locked":
        world.put(holder, 0, 8)
    await world.file.set_size(size)
    assert listener.events == expected
    assert os.fstat(world.file.fd).st_size == size
    assert world.allocated == 2
    with refused(errno.EINVAL):
        await world.get(holder, 2, 3)
    await world.file.set_size(8 * PAGE)
    assert listener.events == expected
    await world.get(holder, 0, 8)
    if semantics.references == "counted":
        assert world.is_punched(holder).count((5, True)) == 1
        assert (1, True) not in world.is_punched(holder)


@pytest.mark.parametrize("pages", [4, 2048], ids=["small", "large"])
async def test_the_last_page_goes_though_it_is_a_part_of_one(pages: int) -> None:
    """ftruncate(2) frees it; what comes in its place is another, and good."""
    world, holder = world_of(mine(V10, size="free"), pages=0), Holder()
    await world.file.set_size((pages - 1) * PAGE + 100)
    await world.get(holder, 0, pages)
    listener = await world.listener()
    await report(world.file, pages - 1)
    listener.events.clear()
    await world.file.set_size(PAGE)
    assert listener.events == [(INVALIDATE_START, 1, pages), (INVALIDATE_END, 1, pages)]
    assert world.is_punched(holder)[-1] == (pages - 1, True)
    assert world.frames.pages == world.allocated == 1
    await world.file.set_size(pages * PAGE)
    await world.get(holder, pages - 1, pages)
    assert world.allocated == 2


async def test_a_part_of_a_page_goes_by_itself() -> None:
    world, holder = world_of(mine(size="free"), pages=0), Holder()
    await world.file.set_size(100)
    await world.get(holder, 0, 1)
    listener = await world.listener()
    # The page stays as long as a part of it is in the file.
    await world.file.set_size(1)
    assert (listener.events, world.frames.pages) == ([], 1)
    await world.file.set_size(0)
    assert listener.events == [(INVALIDATE, 0, 1)]
    assert (world.frames.pages, world.allocated) == (0, 0)


async def test_a_large_file_shrinks_in_a_thread() -> None:
    world, holder = world_of(mine(size="free"), pages=2048), Holder()
    await world.get(holder, 0, 2048)
    listener = await world.listener()
    await world.file.set_size(PAGE)
    assert listener.events == [(INVALIDATE, 1, 2048)]
    assert (world.allocated, world.file.turn.taken) == (1, False)


async def test_growing_a_file_or_its_first_size_sends_no_event() -> None:
    world = world_of(mine(size="free"), pages=0)
    listener = await world.listener()
    for size in (PAGE, 4 * PAGE, 4 * PAGE, 4 * PAGE + 1, 4 * PAGE + 1):
        await world.file.set_size(size)
    # A truncation that removes no page sends no event either.
    await world.file.set_size(4 * PAGE + 1)
    assert listener.events == []


# --- parts of pages ---------------------------------------------------------------


async def test_a_page_that_is_punched_in_part_stays() -> None:
    """Without a rule for alignment: the event covers it, as its content goes."""
    semantics = mine(V10, aligned="nothing")
    world, holder = world_of(semantics), Holder()
    await world.get(holder, 0, 8)
    listener = await world.listener()
    await report(world.file, 1)
    await report(world.file, 2)
    listener.events.clear()
    await world.in_bytes(PUNCH, PAGE + 100, 3 * PAGE)
    assert listener.events == [(INVALIDATE_START, 1, 5), (INVALIDATE_END, 1, 5)]
    assert world.allocated == 6
    assert [at for at, punched in world.is_punched(holder) if punched] == [2, 3]
    with refused(EHWPOISON):
        await world.get(holder, 1, 2)
    await world.get(holder, 2, 3)
    # A punch inside a page removes no page.
    await world.in_bytes(PUNCH, 6 * PAGE + 1, 100)
    assert listener.events[-1] == (INVALIDATE_END, 6, 7)
    assert (6, False) in world.is_punched(holder)
