"""What the caller of get-pfn gets: the lock of a page, a reference, or nothing."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from inaccfs.semantics import V7, V8, V10, Bind, GuestMemfd, Semantics
from inaccfs.semantics.rules import (
    INVALIDATE,
)
from inaccfs.shim.locks import PageLocks
from inaccfs.syscalls import PUNCH
from tests.unit.control_fakes import BASE, PAGE
from tests.unit.fakes import refused
from tests.unit.one_file import mine
from tests.unit.pages_fakes import (
    ACK_SECONDS,
    MANY,
    SIZE,
    BlockedFrames,
    Holder,
    fetching,
    world_of,
)

pytestmark = pytest.mark.usefixtures("_no_strays")


# --- references: locked -----------------------------------------------------------


async def test_a_locked_page_is_not_punched_before_it_is_put() -> None:
    """lock_page() in shmem_undo_range(): the page is neither reported nor removed."""
    world, holder = world_of(V7()), Holder()
    listener = await world.listener()
    await world.get(holder, 3, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 0, 8)
        await trio.testing.wait_all_tasks_blocked()
        assert (listener.events, world.allocated) == ([], 1)
        world.put(holder, 3)
    assert listener.events == [(INVALIDATE, 0, 8)]
    assert world.allocated == 0


async def test_a_punch_waits_for_all_peers_that_have_locked_a_page_of_it() -> None:
    world = world_of(V7())
    holders = [Holder(), Holder()]
    for at, holder in enumerate(holders):
        await world.get(holder, 3 * at, 3 * at + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 0, 8)
        for at, holder in enumerate(holders):
            await trio.testing.wait_all_tasks_blocked()
            assert world.allocated == 2
            world.put(holder, 3 * at)
    assert world.allocated == 0


async def test_other_pages_are_punched_and_got_meanwhile() -> None:
    world, holder, other = world_of(V7()), Holder(), Holder()
    await world.get(holder, 3, 4)
    await world.punch(4, 9)
    await world.punch(0, 3)
    assert world.allocated == 1
    await world.get(other, 2, 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 3, 4)
        await trio.testing.wait_all_tasks_blocked()
        await world.get(other, 4, 6)
        world.put(holder, 3)
    assert world.is_punched(other) == [(2, False), (4, False), (5, False)]


@pytest.mark.parametrize("again", [True, False], ids=["by itself", "by another"])
async def test_a_locked_page_is_not_got_again(again: bool) -> None:
    """EAGAIN, where the kernel would wait: the peer's put can only come afterwards."""
    world, holder = world_of(V7()), Holder()
    await world.get(holder, 3, 5)
    second = holder if again else Holder()
    for start, end in ((3, 4), (4, 6), (0, 4), (0, MANY)):
        with refused(errno.EAGAIN):
            await world.get(second, start, end)
    world.put(holder, 3, 2)
    await world.get(second, 0, MANY)
    assert world.is_punched(second) == [(at, False) for at in range(MANY)]


@pytest.mark.parametrize("fetched", [True, False])
async def test_a_page_that_is_being_punched_is_not_got(fetched: bool) -> None:
    """The punch locks it during its event, so a page to be removed is not mapped."""
    world, holder = world_of(V7()), Holder()
    listener = await world.listener(answers=False)
    if fetched:
        await world.get(holder, 0, 8)
        world.put(holder, 0, 8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 2, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert listener.events == [(INVALIDATE, 2, 4)]
        for start, end in ((2, 3), (3, 9), (0, MANY)):
            with refused(errno.EAGAIN):
                await world.get(holder, start, end)
        await world.get(holder, 4, 5)
        listener.answer()
    await world.get(holder, 2, 4)
    assert world.is_punched(holder) == [(at, False) for at in (2, 3, 4)]


async def test_new_locks_do_not_hold_a_punch_up() -> None:
    """While it waits for one, no other peer gets a page of its range."""
    world, holder, other = world_of(V7()), Holder(), Holder()
    await world.get(holder, 3, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 0, 8)
        await trio.testing.wait_all_tasks_blocked()
        with refused(errno.EAGAIN):
            await world.get(other, 5, 6)
        world.put(holder, 3)
    assert other.evicted_at == []


async def test_a_peer_that_does_not_put_is_evicted_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is evicted again after each further timeout, until it drops the page."""
    world, holder, other = world_of(V7()), Holder(), Holder()
    await world.get(holder, 3, 4)
    await world.get(other, 20, 21)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 0, 8)
        await trio.sleep(2.5 * ACK_SECONDS)
        assert holder.evicted_at == [ACK_SECONDS, 2 * ACK_SECONDS]
        assert world.allocated == 2
        assert world.file.pages.memory is not None
        list(world.file.pages.memory.drop(holder))
    assert trio.current_time() == 2.5 * ACK_SECONDS
    assert world.allocated == 1
    assert other.evicted_at == []


async def test_no_peer_is_evicted_for_pages_that_another_has_locked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A peer's time begins when it has got the pages."""
    holders: list[Holder] = []
    locks = PageLocks(lambda start, end: list(holders), ACK_SECONDS)
    holder = Holder()
    punched_at = []

    async def punch() -> None:
        async with locks.locked(0, 100):
            punched_at.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        with locks.claimed(0, 100):
            nursery.start_soon(punch)
            await trio.sleep(ACK_SECONDS - 0.1)
            holders.append(holder)
        await trio.sleep(ACK_SECONDS - 0.1)
        assert holder.evicted_at == []
        holders.clear()
        locks.unlocked()
    assert punched_at == [2 * (ACK_SECONDS - 0.1)]
    # The punch ends, too.
    holders.append(holder)
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        with locks.claimed(0, 100):
            nursery.start_soon(punch)
            await trio.sleep(1)
        await trio.sleep(ACK_SECONDS + 0.1)
        assert holder.evicted_at == [begun + 1 + ACK_SECONDS]
        holders.clear()
        locks.unlocked()


async def test_a_punch_that_is_given_up_leaves_nothing_locked() -> None:
    world, holder, other = world_of(V7()), Holder(), Holder()
    await world.get(holder, 3, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 0, 8)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await world.get(other, 0, 3)
    assert world.allocated == 4


async def test_a_punch_that_is_refused_leaves_nothing_locked() -> None:
    world = world_of(V7())
    with refused(errno.EINVAL):
        await world.in_bytes(PUNCH, 1, PAGE)
    await world.get(Holder(), 0, 1)


async def test_pages_that_are_being_got_are_locked_already() -> None:
    """A fetch in a thread takes long, and some of its pages were known before."""
    world, holder, other = world_of(V7()), Holder(), Holder()
    await world.get(other, 3, 4)
    world.put(other, 3)
    frames = world.frames
    assert isinstance(frames, BlockedFrames)
    frames.blocks = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.get, holder, 0, MANY)
        await fetching(world, frames)
        with refused(errno.EAGAIN):
            await world.get(other, 3, 4)
        nursery.start_soon(world.punch, 0, 8)
        await trio.testing.wait_all_tasks_blocked()
        frames.let_go.set()
        while not world.is_punched(holder):
            await trio.testing.wait_all_tasks_blocked(0.001)
        await trio.testing.wait_all_tasks_blocked(0.001)
        # The punch waits for them as for any others.
        assert world.is_punched(holder) == [(at, False) for at in range(MANY)]
        assert world.allocated == MANY
        world.put(holder, 0, MANY)
    assert world.allocated == MANY - 8


@pytest.mark.parametrize("version", [V8, V10, Bind, GuestMemfd], ids=str)
async def test_a_counted_page_is_got_and_punched_by_anybody(
    version: type[Semantics],
) -> None:
    world, holder, other = world_of(version()), Holder(), Holder()
    if version.scope == "range":
        await world.bound(0, SIZE)
    await world.get(holder, 0, 4)
    await world.get(holder, 0, 4)
    await world.get(other, 2, 6)
    await world.punch(0, 4)
    assert world.is_punched(holder)[0] == (0, True)
    assert world.is_punched(other) == [(2, True), (3, True), (4, False), (5, False)]


# --- references: none -------------------------------------------------------------


async def test_without_references_there_is_nothing_to_put() -> None:
    """A frame is good until it is invalidated, and free as soon as it is punched."""
    world, holder = world_of(mine(references="none")), Holder()
    assert await world.get(holder, 0, 4) == [(0, BASE, 4, 0)]
    with refused(errno.EOPNOTSUPP):
        world.put(holder, 0)
    memory = world.file.pages.memory
    assert memory is not None
    assert memory.references_count == 0
    assert memory.frames.pages == 4
    await world.punch(1, 3)
    assert world.frames.freed == [(BASE + 1, 2)]


async def test_a_counted_frame_is_free_when_it_is_put() -> None:
    world, holder = world_of(V8()), Holder()
    await world.get(holder, 0, 4)
    await world.punch(0, 4)
    assert world.frames.freed == []
    world.put(holder, 0, 4)
    assert world.frames.freed == [(BASE, 4)]


async def test_a_page_that_was_not_got_cannot_be_put() -> None:
    world = world_of(V8())
    with refused(errno.EINVAL):
        world.put(Holder(), 0)
