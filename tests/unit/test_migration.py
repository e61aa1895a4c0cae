"""Migrations beside get-pfn, and the events of pages that have moved besides."""

from __future__ import annotations

import errno
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from inaccfs.errors import PinnedError
from inaccfs.semantics import InPlaceV8, MigratableRfc
from inaccfs.semantics.rules import INVALIDATE_END, INVALIDATE_START
from inaccfs.shim import slices
from inaccfs.shim.call import Conversion
from inaccfs.shim.conversions import convert
from inaccfs.shim.loop import TRIO
from inaccfs.shim.migration import migrate
from tests.unit.fakes import refused
from tests.unit.one_file import mine
from tests.unit.pages_fakes import (
    MANY,
    SIZE,
    BlockedFrames,
    Holder,
    fetching,
    world_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.shim.frames import Fetched
    from tests.unit.pages_fakes import World

pytestmark = pytest.mark.usefixtures("_no_strays")

COUNT = 16


class Interrupted:
    """The loop of trio. Where long work lets other tasks run, *meanwhile* runs once."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._meanwhile: Callable[[], Awaitable[None]] | None = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(TRIO, name)

    async def checkpoint(self) -> None:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            await meanwhile()


@pytest.fixture(autouse=True)
def _short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_SECONDS", "_SLICE_SECONDS"):
        monkeypatch.setattr(slices, name, -1)


async def fetched(world: World) -> Holder:
    """A holder that has had all pages and has a reference outside of the first ones."""
    holder = Holder()
    await world.bound(0, SIZE)
    await world.get(holder, 0, COUNT + 1)
    world.put(holder, 0, COUNT)
    return holder


def referenced(world: World, holder: Holder) -> list[int]:
    memory = world.file.pages.memory
    assert memory is not None
    return [
        one.pfn + at
        for one in memory.references.describe(holder)
        for at in range(one.count)
        if not one.punched
    ]


async def test_a_page_that_gets_a_reference_meanwhile_does_not_migrate() -> None:
    world = world_of(MigratableRfc())
    await fetched(world)
    late = Holder()

    async def get() -> None:
        await world.get(late, 3, 4)

    world.file.superblock.__dict__["loop"] = Interrupted(get)
    with suppress(PinnedError):
        await migrate(world.file, 0, COUNT)
    await world.get(late, 4, 5)
    assert not any(punched for _, punched in world.is_punched(late))


class Slow(BlockedFrames):
    """A thread that has found the pages, and takes long to say so."""

    def fetch(self, start: int, end: int, *, reach: bool = True) -> Fetched:
        found = super().fetch(start, end, reach=reach)
        if self.blocks_after:
            self.entered.set()
            self.let_go.wait()
        return found

    blocks_after = False


async def test_a_long_get_pfn_meanwhile_gets_the_frames_that_the_pages_have() -> None:
    world = world_of(MigratableRfc())
    await fetched(world)
    frames: Any = world.frames
    frames.__class__ = Slow
    frames.blocks_after = True
    late = Holder()
    async with trio.open_nursery() as nursery:

        async def get() -> None:
            nursery.start_soon(world.get, late, 0, MANY)
            await trio.testing.wait_all_tasks_blocked()
            if world.file.turn.fetches:
                await fetching(world, frames)

        world.file.superblock.__dict__["loop"] = Interrupted(get)
        with suppress(PinnedError):
            await migrate(world.file, 0, COUNT)
        frames.let_go.set()
    await world.get(late, 0, 1)
    assert set(referenced(world, late)) <= set(world.frames.at.values())


# --- pages that move besides ------------------------------------------------------


async def test_pages_that_move_during_a_migration_are_reported() -> None:
    world = world_of(MigratableRfc())
    listener = await world.bound(0, SIZE, answers=False)
    await world.get(Holder(), 0, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrate, world.file, 8, 9)
        await trio.testing.wait_all_tasks_blocked()
        world.frames.moves = {1: 0x9000}
        await world.get(Holder(), 20, 21)
        listener.answers = True
        listener.answer()
    assert listener.events == [
        *((INVALIDATE_START, 8, 9), (INVALIDATE_END, 8, 9)),
        *((INVALIDATE_START, 1, 2), (INVALIDATE_END, 1, 2)),
    ]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_pages_that_move_during_a_conversion_are_reported(
    cancelled: bool,
) -> None:
    world = world_of(mine(InPlaceV8, get_waits=False))
    listener = await world.bound(0, SIZE, answers=False)
    await world.get(Holder(), 0, 4)
    call = Conversion(8, 10, private=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(convert, world.file, call)
        await trio.testing.wait_all_tasks_blocked()
        world.frames.moves = {1: 0x9000}
        await world.get(Holder(), 20, 21)
        if cancelled:
            nursery.cancel_scope.cancel()
        listener.answers = True
        listener.answer()
    assert listener.events == [
        *((INVALIDATE_START, 8, 10), (INVALIDATE_END, 8, 10)),
        *((INVALIDATE_START, 1, 2), (INVALIDATE_END, 1, 2)),
    ]


@pytest.mark.parametrize("outcome", ["refused", "so already"])
async def test_a_conversion_that_sends_no_event_reports_moved_pages(
    outcome: str,
) -> None:
    """The pages move while it waits for the turn."""
    world = world_of(mine(InPlaceV8, get_waits=False))
    listener = await world.bound(0, SIZE)
    holder = Holder()
    await world.get(holder, 0, 4)
    if outcome == "refused":
        await convert(world.file, Conversion(2, 3, private=False))
        listener.events.clear()

    async def run() -> None:
        with refused(errno.EAGAIN) if outcome == "refused" else nullcontext():
            await convert(world.file, Conversion(2, 3, private=True))

    async with trio.open_nursery() as nursery:
        with world.file.turn.take():
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
        world.frames.moves = {1: 0x9000}
        await world.get(Holder(), 20, 21)
    assert listener.events == [(INVALIDATE_START, 1, 2), (INVALIDATE_END, 1, 2)]
