"""Made-up frames: what files get, and what a punch gives back."""

from __future__ import annotations

import errno
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs.errors import OptionError
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.shim.frames import Extent
from inaccfs.shim.simulated import FIRST_PFN, SimulatedSource
from tests.unit.fakes import refused
from tests.unit.simulated_files import HUGE, MIB, PAGE, File, file_of

if TYPE_CHECKING:
    from inaccfs.backing.root import Backing


# --- files ------------------------------------------------------------------------


def test_a_page_comes_with_its_folio(backing: Backing) -> None:
    with file_of(backing, 4 * HUGE) as file:
        assert file.fetch(700, 701) == [Extent(700, FIRST_PFN + 700 - HUGE, 1, 9)]
        assert file.allocated == HUGE
        assert file.frames.pages == HUGE
        assert file.frames.known(HUGE, 2 * HUGE) == [Extent(HUGE, FIRST_PFN, HUGE, 9)]
        assert file.frames.known(HUGE - 1, HUGE + 1) is None
        # The folios of the others follow in memory, in the order they are fetched.
        assert file.fetch(0, HUGE) == [Extent(0, FIRST_PFN + HUGE, HUGE, 9)]


def test_a_folio_lies_inside_the_file(backing: Backing) -> None:
    with file_of(backing, HUGE + 100) as file:
        assert [(one.count, one.order) for one in file.fetch(0, HUGE + 100)] == [
            (512, 9),
            (64, 6),
            (32, 5),
            (4, 2),
        ]
        assert file.allocated == HUGE + 100


def test_a_folio_has_no_page_that_has_a_frame(backing: Backing) -> None:
    with file_of(backing, HUGE) as file:
        file.fetch(0, HUGE)
        file.punch(200, 210)
        # What was punched comes back in folios that have room there.
        extents = file.fetch(200, 210)
        assert [(one.offset, one.count, one.order) for one in extents] == [
            (200, 8, 3),
            (208, 2, 1),
        ]


def test_folios_grow_with_the_alignment(backing: Backing) -> None:
    with file_of(backing, 2 * HUGE) as file:
        file.fetch(0, 1)
        for _, pfn, count, _ in file.punch(1, 2 * HUGE).removed:
            file.frames.free(pfn, count)
        extents = file.fetch(1, 2 * HUGE)
        assert [(one.count, one.order) for one in extents] == [
            *[(1 << order, order) for order in range(9)],
            (HUGE, 9),
        ]


def test_the_order_is_limited(backing: Backing) -> None:
    with file_of(backing, 64, order=0) as file:
        assert file.fetch(3, 5) == [Extent(3, FIRST_PFN, 2, 0)]
        assert file.allocated == 2
    with file_of(backing, 64, order=2) as file:
        assert file.fetch(3, 5) == [Extent(3, FIRST_PFN + 3, 2, 2)]
        assert file.allocated == 8


def test_the_same_calls_give_the_same_frames(backing: Backing) -> None:
    found = []
    for _ in range(2):
        with file_of(backing, 4 * HUGE, fragmentation=20) as file:
            file.fetch(100, 900)
            for _, pfn, count, _ in file.punch(300, 600).removed:
                file.frames.free(pfn, count)
            file.fetch(0, 4 * HUGE)
            found.append(file.frames.extents())
    assert found[0] == found[1]


def test_large_folios_run_out_in_fragmented_memory(backing: Backing) -> None:
    with file_of(backing, 24 * HUGE, size=64 * MIB, fragmentation=2) as file:
        orders = [one.order for one in file.fetch(0, 24 * HUGE)]
        assert orders[0] == 9
        assert len(set(orders)) > 3


def test_no_memory_is_enomem_and_changes_nothing(backing: Backing) -> None:
    with file_of(backing, 1024, size=2 * MIB) as file:
        file.fetch(0, 100)
        before = file.frames.extents()
        allocated = file.allocated
        with refused(errno.ENOMEM):
            file.frames.fetch(0, 1024)
        assert file.frames.extents() == before
        assert file.allocated == allocated


def test_no_space_is_enospc_and_changes_nothing(backing: Backing) -> None:
    with file_of(backing, 64 * HUGE, size=256 * MIB) as file:
        file.fetch(0, 10)
        allocated, free = file.allocated, file.source.buddy.free_frames
        with refused(errno.ENOSPC):
            file.frames.fetch(0, 64 * HUGE)
        assert file.allocated == allocated
        assert file.source.buddy.free_frames == free
        assert file.frames.pages == HUGE


def test_a_folio_is_no_larger_than_the_space_that_is_left(backing: Backing) -> None:
    with file_of(backing, HUGE) as file:
        other = os.open("other", os.O_RDWR | os.O_CREAT, dir_fd=backing.root)
        space = os.fstatvfs(other).f_bavail
        os.posix_fallocate(other, 0, (space - 100) * PAGE)
        assert [one.order for one in file.fetch(64, 128)] == [6]
        assert file.allocated == 64
        os.close(other)


# --- punching ---------------------------------------------------------------------


def test_a_folio_that_is_punched_in_part_is_split(backing: Backing) -> None:
    with file_of(backing, 2 * HUGE) as file:
        file.fetch(0, 2 * HUGE)
        punched = file.punch(500, 520)
        assert punched.removed == [Extent(500, FIRST_PFN + 500, 20, 9)]
        assert punched.moved == []
        assert file.frames.extents() == [
            Extent(0, FIRST_PFN, 500, 0),
            Extent(520, FIRST_PFN + 520, 504, 0),
        ]
        assert file.allocated == 1004


def test_a_folio_beside_a_punch_stays_whole(backing: Backing) -> None:
    with file_of(backing, 3 * HUGE) as file:
        file.fetch(0, 3 * HUGE)
        file.punch(HUGE, 2 * HUGE)
        assert [(one.offset, one.order) for one in file.frames.extents()] == [
            (0, 9),
            (2 * HUGE, 9),
        ]


def test_frames_of_punched_pages_come_back_when_they_are_freed(
    backing: Backing,
) -> None:
    with file_of(backing, HUGE, size=2 * MIB) as file:
        file.fetch(0, HUGE)
        ((_, pfn, count, _),) = file.punch(0, 256).removed
        with refused(errno.ENOMEM):
            file.frames.fetch(0, 1)
        file.frames.free(pfn, count // 2)
        assert file.fetch(0, 128)[0].pfn == pfn
        with refused(errno.ENOMEM):
            file.frames.fetch(128, 129)
        with pytest.raises(ValueError, match="not punched"):
            file.frames.free(pfn, 1)
        file.frames.free(pfn + count // 2, count // 2)
        assert file.fetch(128, 256)[0].pfn == pfn + 128


def test_frames_can_come_back_while_others_are_punched(backing: Backing) -> None:
    """A long punch is in a worker thread, put-pfn in the trio loop."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with (
            file_of(backing, 4096, order=0) as file,
            ThreadPoolExecutor(1) as pool,
        ):
            file.fetch(0, 4096)
            free = file.source.buddy.free_frames
            ahead = deque(file.frames.punch(0, 2048, lambda: None).removed)

            def punch() -> list[Extent]:
                found: list[Extent] = []
                for page in range(2048, 4096, 8):
                    found += file.frames.punch(page, page + 8, lambda: None).removed
                return found

            punching = pool.submit(punch)
            while ahead:
                _, pfn, count, _ = ahead.popleft()
                for at in range(count):
                    file.frames.free(pfn + at, 1)
            for _, pfn, count, _ in punching.result():
                file.frames.free(pfn, count)
            assert file.source.buddy.free_frames == free + 4096
    finally:
        sys.setswitchinterval(interval)


def test_nothing_is_freed_after_the_end(backing: Backing) -> None:
    with file_of(backing, HUGE) as file:
        file.fetch(0, HUGE)
        ((_, pfn, count, _),) = file.punch(0, 256).removed
        file.frames.close()
        file.frames.free(pfn, count)
        file.frames.close()
        assert file.frames.pages == 0


def test_a_punch_that_fails_leaves_all_as_it_was(backing: Backing) -> None:
    def fail() -> None:
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    with file_of(backing, HUGE) as file:
        extents = file.fetch(0, HUGE)
        with refused(errno.EINTR):
            file.frames.punch(100, 200, fail)
        assert file.frames.known(0, HUGE) == extents


def test_files_share_the_memory(backing: Backing) -> None:
    source = SimulatedSource(SimulatedMemory(size=4 * MIB))
    one = File(backing, source, HUGE, "one")
    other = File(backing, source, 2 * HUGE, "other")
    assert one.fetch(0, HUGE)[0].pfn != other.fetch(0, HUGE)[0].pfn
    with refused(errno.ENOMEM):
        other.frames.fetch(HUGE, HUGE + 1)
    one.frames.close()
    other.fetch(HUGE, HUGE + 1)
    other.frames.close()
    assert source.buddy.free_frames == 1024
    for file in (one, other):
        os.close(file.fd)


# --- pages that are larger --------------------------------------------------------


def test_a_large_page_is_a_folio(backing: Backing) -> None:
    """As of a hugetlbfs: the page is what is counted, and it is never split."""
    source = SimulatedSource(SimulatedMemory(size=16 * MIB))
    fd = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=backing.root)
    os.ftruncate(fd, 16 * MIB)
    opened = source.open(fd, 2 * MIB)
    assert opened.fetch(2, 4).extents == [Extent(2, FIRST_PFN, 2, 9)]
    assert opened.fetch(0, 3).extents == [
        Extent(0, FIRST_PFN + 2 * HUGE, 2, 9),
        Extent(2, FIRST_PFN, 1, 9),
    ]
    assert opened.pages == 4
    assert opened.punch(3, 4, lambda: None).removed == [
        Extent(3, FIRST_PFN + HUGE, 1, 9)
    ]
    opened.free(FIRST_PFN + HUGE, 1)
    assert opened.fetch(7, 8).extents == [Extent(7, FIRST_PFN + HUGE, 1, 9)]
    with refused(errno.ENOMEM):
        source.open(fd, 1 << 30).fetch(0, 1)
    opened.close()
    assert source.buddy.free_frames == 4096
    os.close(fd)


# --- options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": 5000},
        {"size": -4096},
        {"order": -1},
        {"order": 10},
        {"fragmentation": -1},
        {"fragmentation": 101},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(OptionError):
        SimulatedMemory(**options)


def test_memory_that_is_full_from_the_start(backing: Backing) -> None:
    with file_of(backing, HUGE, fragmentation=100) as file:
        with refused(errno.ENOMEM):
            file.frames.fetch(0, 1)
        assert file.allocated == 0


# --- any history ------------------------------------------------------------------


ranges = st.tuples(st.integers(0, 1299), st.integers(1, 700)).map(
    lambda one: (one[0], min(one[0] + one[1], 1300))
)


@given(
    st.lists(st.tuples(st.sampled_from(["fetch", "punch"]), ranges), max_size=12),
    st.integers(0, 9),
    st.integers(0, 60),
)
def test_a_page_keeps_its_frame_and_shares_it_with_none(
    backing: Backing,
    done: list[tuple[str, tuple[int, int]]],
    order: int,
    fragmentation: int,
) -> None:
    with file_of(backing, 1300, 16 * MIB, order=order, fragmentation=fragmentation) as (
        file
    ):
        frames: dict[int, int] = {}
        for what, (start, end) in done:
            if what == "fetch":
                file.fetch(start, end)
            else:
                for _, pfn, count, _ in file.punch(start, end).removed:
                    file.frames.free(pfn, count)
                for page in range(start, end):
                    frames.pop(page, None)
            now = {
                one.offset + at: one.pfn + at
                for one in file.frames.extents()
                for at in range(one.count)
            }
            assert frames.items() <= now.items()
            assert len(set(now.values())) == len(now) == file.frames.pages
            assert file.allocated == len(now)
            for one in file.frames.extents():
                assert one.pfn % (1 << one.order) == one.offset % (1 << one.order)
            frames = now
