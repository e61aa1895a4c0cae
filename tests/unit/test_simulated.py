"""Made-up frames: the allocator, and what files get from it."""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inaccfs import syscalls
from inaccfs.errors import OptionError
from inaccfs.shim.buddy import MAX_ORDER, Buddy
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.shim.frames import Extent
from inaccfs.shim.simulated import (
    FIRST_PFN,
    SimulatedFrames,
    SimulatedSource,
)
from inaccfs.syscalls import PUNCH
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.backing.root import Backing
    from inaccfs.shim.frames import Punched

PAGE: Final = 4096
MIB: Final = 1 << 20
HUGE: Final = 512


# --- the allocator ----------------------------------------------------------------


def test_the_lowest_of_the_smallest_blocks_is_taken_and_split() -> None:
    buddy = Buddy(4096)
    assert buddy.take(0, 1) == (0, 0)
    assert buddy.take(0, 1) == (1, 0)
    # Blocks of 2, 4 and more are left of the first; 8 come from where 8 are.
    assert buddy.take(3, 8) == (8, 3)
    assert buddy.take(2, 4) == (4, 2)
    assert buddy.take(1, 2) == (2, 1)
    assert buddy.take(MAX_ORDER, 1024) == (1024, MAX_ORDER)
    assert buddy.free_frames == 4096 - 16 - 1024


def test_buddies_that_are_free_become_one_again() -> None:
    buddy = Buddy(2048)
    taken = [buddy.take(0, 1) for _ in range(1024)]
    assert buddy.take(MAX_ORDER, 1024) == (1024, MAX_ORDER)
    assert buddy.take(MAX_ORDER, 1024) is None
    for one in taken[1:]:
        assert one is not None
        buddy.free(one[0], 1)
    assert buddy.take(MAX_ORDER, 1024) is None
    buddy.free(0, 1)
    assert buddy.take(MAX_ORDER, 1024) == (0, MAX_ORDER)


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    one_by_one, at_once = Buddy(1 << 14, 1000), Buddy(1 << 14, 1000)
    expected = [one_by_one.take(2, 4) for _ in range(700)]
    found: list[tuple[int, int]] = []
    while len(found) < 700:
        block = at_once.take(2, (700 - len(found)) * 4)
        assert block is not None
        start, order = block
        found += [(start + at, 2) for at in range(0, 1 << order, 4)]
    assert found == expected


def test_memory_that_is_no_power_of_two_is_used_up_to_its_end() -> None:
    buddy = Buddy(1500)
    frames: set[int] = set()
    while (block := buddy.take(0, 1500)) is not None:
        frames.update(range(block[0], block[0] + (1 << block[1])))
    assert frames == set(range(1500))
    assert buddy.free_frames == 0


def test_no_block_is_larger_than_the_largest() -> None:
    assert Buddy(1 << 20).take(MAX_ORDER + 1, 1 << 20) is None


def free_orders(frames: int, taken: int) -> Counter[int]:
    """How many frames are in free blocks of each order, by taking the largest first."""
    buddy = Buddy(frames, taken)
    found: Counter[int] = Counter()
    for order in reversed(range(MAX_ORDER + 1)):
        while (block := buddy.take(order, 1 << order)) is not None:
            found[order] += 1 << block[1]
    assert buddy.free_frames == 0
    return found


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 90, 99, 100])
def test_fragmentation_takes_as_much_as_it_says(percent: int) -> None:
    frames = 1 << 16
    taken = frames * percent // 100
    assert free_orders(frames, taken).total() == frames - taken


def test_the_more_is_taken_the_fewer_are_large() -> None:
    frames = 1 << 16
    shares = []
    for percent in (0, 5, 20, 50):
        found = free_orders(frames, frames * percent // 100)
        large = sum(count for order, count in found.items() if order >= 9)
        shares.append(large / found.total())
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[1] < 0.5
    assert shares[3] < 0.02
    # Holes are of all sizes, not of one.
    assert len(free_orders(frames, frames // 5)) > 6


@given(st.integers(1, 5000), st.integers(0, 100))
def test_memory_of_any_size_can_be_fragmented(frames: int, percent: int) -> None:
    taken = frames * percent // 100
    assert free_orders(frames, taken).total() == frames - taken


class AnyOrder(RuleBasedStateMachine):
    """No frame is given to two; all come back."""

    FRAMES: Final = 3000

    def __init__(self) -> None:
        super().__init__()
        self.tested = Buddy(self.FRAMES, 100)
        self.taken: list[int] = []

    @rule(order=st.integers(0, MAX_ORDER), more=st.integers(0, 2000))
    def take(self, order: int, more: int) -> None:
        most = (1 << order) + more
        block = self.tested.take(order, most)
        if block is None:
            return
        start, found = block
        assert order <= found
        assert 1 << found <= most
        assert start % (1 << found) == 0
        frames = range(start, start + (1 << found))
        assert frames[-1] < self.FRAMES
        assert not set(frames) & set(self.taken)
        self.taken += frames

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.taken:
            at = data.draw(st.integers(0, len(self.taken) - 1))
            end = at + 1
            while end < len(self.taken) and self.taken[end] == self.taken[end - 1] + 1:
                end += 1
            end = data.draw(st.integers(at + 1, end))
            self.tested.free(self.taken[at], end - at)
            del self.taken[at:end]

    @invariant()
    def counts(self) -> None:
        assert self.tested.free_frames == self.FRAMES - 100 - len(self.taken)

    def teardown(self) -> None:
        for frame in self.taken:
            self.tested.free(frame, 1)
        fresh, again = Buddy(self.FRAMES, 100), self.tested
        for order in reversed(range(MAX_ORDER + 1)):
            while (block := fresh.take(order, 1 << order)) is not None:
                assert again.take(order, 1 << order) == block
        assert again.free_frames == 0


TestAnyOrder = AnyOrder.TestCase
# More of them in tests/hard/test_models.py.
TestAnyOrder.settings = settings(max_examples=30)


# --- files ------------------------------------------------------------------------


class File:
    """A file and its frames."""

    def __init__(
        self, backing: Backing, source: SimulatedSource, pages: int, name: str = "file"
    ) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self.fd = os.open(name, flags, dir_fd=backing.root)
        os.ftruncate(self.fd, pages * PAGE)
        self.source = source
        self.frames: SimulatedFrames = source.open(self.fd, PAGE)

    def fetch(self, start: int, end: int) -> list[Extent]:
        fetched = self.frames.fetch(start, end)
        assert fetched.moved == []
        assert sum(one.count for one in fetched.extents) == end - start
        return fetched.extents

    def punch(self, start: int, end: int) -> Punched:
        def bare() -> None:
            syscalls.fallocate(self.fd, PUNCH, start * PAGE, (end - start) * PAGE)

        return self.frames.punch(start, end, bare)

    @property
    def allocated(self) -> int:
        return os.fstat(self.fd).st_blocks // 8


@contextmanager
def file_of(
    backing: Backing, pages: int, size: int = 64 * MIB, **options: int
) -> Iterator[File]:
    """A file of the only user of simulated memory; all frames come back at its end."""
    source = SimulatedSource(SimulatedMemory(size=size, **options))
    before = source.buddy.free_frames
    made = File(backing, source, pages)
    yield made
    made.frames.close()
    assert source.buddy.free_frames == before
    os.close(made.fd)


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


# --- poison -----------------------------------------------------------------------


def punched(file: File, start: int, end: int) -> list[Extent]:
    """Punch pages without references; return where they had been."""
    removed = file.punch(start, end).removed
    for _, pfn, count, _ in removed:
        file.frames.free(pfn, count)
    return removed


def numbers(extents: list[Extent]) -> set[int]:
    return {one.pfn + at for one in extents for at in range(one.count)}


@pytest.mark.parametrize("order", [0, 9])
def test_a_poisoned_frame_does_not_come_back(backing: Backing, order: int) -> None:
    source = SimulatedSource(SimulatedMemory(size=4 * MIB, order=order))
    file = File(backing, source, 2 * HUGE)
    (bad,) = file.fetch(3, 4)
    file.frames.poison(3)
    punched(file, 0, 2 * HUGE)
    # Neither to this file nor to another, also when nothing else is left.
    other = File(backing, source, 2 * HUGE, "other")
    assert bad.pfn not in numbers(other.fetch(0, 2 * HUGE - 1))
    with refused(errno.ENOMEM):
        file.frames.fetch(0, 1)
    other.frames.close()
    assert bad.pfn not in numbers(file.fetch(0, 2 * HUGE - 1))
    file.frames.close()
    assert source.buddy.free_frames == 2 * HUGE - 1
    os.close(other.fd)
    os.close(file.fd)


def test_a_poisoned_frame_that_is_referenced_does_not_come_back_either(
    backing: Backing,
) -> None:
    source = SimulatedSource(SimulatedMemory(size=2 * MIB, order=0))
    file = File(backing, source, HUGE)
    (bad,) = file.fetch(0, 1)
    file.frames.poison(0)
    file.punch(0, 1)
    assert file.fetch(0, 1) == [bad._replace(pfn=bad.pfn + 1)]
    # When it is put; and what is good comes back.
    file.frames.free(bad.pfn, 1)
    punched(file, 0, 1)
    assert file.fetch(0, 1) == [bad._replace(pfn=bad.pfn + 1)]
    file.frames.close()
    assert source.buddy.free_frames == HUGE - 1
    os.close(file.fd)


def test_a_poisoned_frame_does_not_come_back_when_its_file_goes(
    backing: Backing,
) -> None:
    source = SimulatedSource(SimulatedMemory(size=2 * MIB))
    file = File(backing, source, HUGE)
    file.fetch(0, HUGE)
    file.frames.poison(5)
    file.frames.close()
    assert source.buddy.free_frames == HUGE - 1
    file.frames.close()
    assert source.buddy.free_frames == HUGE - 1
    os.close(file.fd)


def test_a_page_that_was_poisoned_first_takes_its_frame_out(backing: Backing) -> None:
    """It gets one with the folio of another page."""
    source = SimulatedSource(SimulatedMemory(size=2 * MIB))
    file = File(backing, source, HUGE)
    file.frames.poison(5)
    file.fetch(9, 10)
    punched(file, 0, 5)
    assert source.buddy.free_frames == 5
    punched(file, 5, HUGE)
    assert source.buddy.free_frames == HUGE - 1
    # What is there now is good.
    file.fetch(0, HUGE - 1)
    punched(file, 0, HUGE)
    assert source.buddy.free_frames == HUGE - 1
    file.frames.close()
    os.close(file.fd)


def test_a_punch_that_fails_leaves_poison_as_it_was(backing: Backing) -> None:
    source = SimulatedSource(SimulatedMemory(size=2 * MIB, order=0))
    file = File(backing, source, HUGE)
    file.fetch(0, 1)
    file.frames.poison(0)

    def fail() -> None:
        raise OSError(errno.EIO, "no")

    with refused(errno.EIO):
        file.frames.punch(0, 1, fail)
    punched(file, 0, 1)
    assert source.buddy.free_frames == HUGE - 1
    os.close(file.fd)


def test_a_huge_page_is_poisoned_as_a_whole(backing: Backing) -> None:
    """dequeue_hugetlb_folio_node_exact() hands none out that has PG_hwpoison."""
    source = SimulatedSource(SimulatedMemory(size=16 * MIB))
    fd = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=backing.root)
    os.ftruncate(fd, 16 * MIB)
    opened = source.open(fd, 2 * MIB)
    opened.fetch(0, 2)
    opened.poison(0)
    opened.punch(0, 1, lambda: None)
    opened.free(FIRST_PFN, 1)
    assert opened.fetch(0, 1).extents == [Extent(0, FIRST_PFN + 2 * HUGE, 1, 9)]
    opened.close()
    assert source.buddy.free_frames == 7 * HUGE
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
