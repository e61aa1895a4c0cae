"""The allocator of made-up frames."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inaccfs.shim.buddy import MAX_ORDER, Buddy


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
