"""Which pages get-pfn returns: holes, the end, and bound ranges."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio

from inaccfs.backing.options import TmpfsOptions
from inaccfs.backing.private import private_tmpfs
from inaccfs.semantics import V8, Bind, GuestMemfd, Semantics
from inaccfs.shim.file import InaccessibleFile
from inaccfs.shim.superblock import Superblock
from tests.unit.control_fakes import PAGE
from tests.unit.fakes import refused
from tests.unit.one_file import mine
from tests.unit.pages_fakes import (
    KEEP,
    MANY,
    SIZE,
    BlockedFrames,
    Holder,
    fetching,
    world_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("_no_strays")


# --- allocation on get ------------------------------------------------------------


@pytest.fixture(params=["small", "huge"])
def folios(request: pytest.FixtureRequest) -> Iterator[int]:
    """An fd of an empty file of 8 MiB, on a tmpfs with and without huge pages."""
    huge = "always" if request.param == "huge" else "never"
    backing = private_tmpfs(TmpfsOptions(size="64m", huge=huge), fallback_name="test")
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=backing.root)
    os.ftruncate(fd, 8 << 20)
    yield fd
    backing.close()


async def test_a_hole_is_not_filled_where_that_is_the_rule(folios: int) -> None:
    """SGP_NOALLOC: ENOENT for a hole; but what fallocate(2) has taken is there."""
    world, holder = world_of(mine(allocates=False), fd=folios), Holder()
    for start, end in ((0, 1), (5, 9), (0, MANY), (2047, 2048)):
        with refused(errno.ENOENT):
            await world.get(holder, start, end)
        # The failed calls have allocated nothing.
        assert world.allocated == 0
    await world.fallocate(KEEP, 1024, 2048)
    for start, end in ((1023, 1025), (0, 2048), (0, 1)):
        with refused(errno.ENOENT):
            await world.get(holder, start, end)
    assert world.allocated == 1024
    assert await world.get(holder, 1024, 2048)
    assert await world.get(holder, 1500, 1501)
    assert world.allocated == 1024


async def test_the_first_hole_is_named() -> None:
    world, holder = world_of(mine(allocates=False)), Holder()
    await world.fallocate(KEEP, 0, 3)
    await world.fallocate(KEEP, 4, 6)
    with pytest.raises(OSError, match="page 3 is a hole: allocate it first"):
        await world.get(holder, 0, 6)
    assert world.allocated == 5


async def test_a_punched_page_is_a_hole_again() -> None:
    world, holder = world_of(mine(allocates=False)), Holder()
    await world.fallocate(KEEP, 0, 4)
    await world.get(holder, 0, 4)
    await world.punch(1, 2)
    with refused(errno.ENOENT):
        await world.get(holder, 0, 4)
    await world.get(holder, 2, 4)
    await world.fallocate(KEEP, 1, 2)
    await world.get(holder, 0, 4)


async def test_allocated_pages_of_a_full_backing_can_be_got(
    backing_of_8_pages: int,
) -> None:
    """Where get-pfn does not allocate, a hole is ENOENT."""
    world, holder = world_of(mine(allocates=False), fd=backing_of_8_pages), Holder()
    await world.fallocate(KEEP, 0, 8)
    await world.get(holder, 0, 8)
    with refused(errno.ENOENT):
        await world.get(holder, 8, 9)


@pytest.fixture
def backing_of_8_pages() -> Iterator[int]:
    backing = private_tmpfs(TmpfsOptions(size=str(8 * PAGE)), fallback_name="test")
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=backing.root)
    os.ftruncate(fd, 16 * PAGE)
    yield fd
    backing.close()


@pytest.mark.parametrize("allocates", [True, False])
async def test_past_the_end_there_is_nothing(allocates: bool) -> None:
    """Also where memory is: KEEP_SIZE may have put some there."""
    world, holder = world_of(mine(allocates=allocates), pages=8), Holder()
    await world.fallocate(KEEP, 0, 16)
    await world.get(holder, 0, 8)
    for start, end in ((8, 9), (7, 9), (100, 101), (0, 600)):
        with refused(errno.EINVAL):
            await world.get(holder, start, end)
    empty = world_of(mine(allocates=allocates), pages=0)
    with refused(errno.EINVAL):
        await empty.get(holder, 0, 1)


async def test_the_last_page_may_be_a_part_of_one() -> None:
    world = world_of(mine(allocates=False), pages=0)
    os.ftruncate(world.file.fd, 3 * PAGE + 1)
    world.allocate(0, 4)
    assert await world.get(Holder(), 0, 4)


async def test_where_there_are_no_frames_there_are_none() -> None:
    fd = os.memfd_create("backing")
    os.ftruncate(fd, PAGE)
    file = InaccessibleFile(fd, Superblock(V8(), PAGE))
    with refused(errno.EOPNOTSUPP):
        await file.pages.get(Holder(), 0, 1)
    os.close(fd)


@pytest.mark.parametrize(("rule", "waits"), [("refused", True), ("done", False)])
async def test_get_pfn_waits_for_a_punch_that_has_looked_for_references(
    rule: str, waits: bool
) -> None:
    """Also of a page that was fetched before: the punch relies on what it has seen."""
    world, holder = world_of(mine(pinned_punch=rule)), Holder()
    await world.get(holder, 3, 4)
    world.put(holder, 3)
    with world.file.turn.take():
        found = world.file.pages.get_now(holder, 3, 4)
    assert (found is None) is waits


# --- bound ranges -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "number"), [(Bind, errno.EINVAL), (GuestMemfd, errno.EIO)], ids=str
)
async def test_unbound_pages_are_not_got(version: type[Semantics], number: int) -> None:
    world, holder = world_of(version()), Holder()
    with pytest.raises(OSError, match="nobody is bound to all of the pages 0 to 1"):
        world.file.pages.get_now(holder, 0, 1)
    one = await world.bound(4, 8)
    for start, end in ((0, 1), (3, 5), (7, 9), (0, MANY)):
        with refused(number):
            await world.get(holder, start, end)
    await world.get(holder, 4, 8)
    # Pages whose frames are known are refused, too.
    world.file.notifiers.drop(one)
    with refused(number):
        await world.get(holder, 4, 8)
    # The page can still be put.
    world.put(holder, 4, 4)


async def test_pages_unbound_during_the_fetch_are_not_got() -> None:
    """restrictedmem_get_page() has the lock; a fetch in a thread checks once more."""
    world, holder = world_of(Bind()), Holder()
    one = await world.bound(0, SIZE)
    await world.get(holder, SIZE - 1, SIZE)
    frames = world.frames
    assert isinstance(frames, BlockedFrames)
    frames.blocks = True

    async def get() -> None:
        with refused(errno.EINVAL):
            await world.get(holder, 0, MANY)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await fetching(world, frames)
        await world.file.notifiers.unregister(one)
        frames.let_go.set()
    assert world.is_punched(holder) == [(SIZE - 1, False)]


async def test_an_allocation_without_events_delays_no_bind() -> None:
    """restrictedmem_fallocate() takes the lock for a punch only."""
    world = world_of(Bind())
    await world.bound(0, 4)
    assert world.file.notifiers.take()
    with trio.fail_after(60):
        await world.fallocate(KEEP, 0, 4)
    world.file.notifiers.release()
    assert world.allocated == 4
