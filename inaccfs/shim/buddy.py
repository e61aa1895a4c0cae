"""A binary buddy allocator, as in mm/page_alloc.c, but a deterministic one."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Watch: TypeAlias = Callable[[bool, int, int], object]

MAX_ORDER: Final = 10
"""The largest block is 4 MiB: MAX_PAGE_ORDER, include/linux/mmzone.h."""


class Buddy:
    """A binary buddy allocator. Frames are counted from 0.

    It takes the lowest of the smallest blocks that are large enough, and splits it. A
    block that is freed merges with its buddy if that is free. See mm/page_alloc.c.
    """

    def __init__(self, frames: int, taken: int = 0, watch: Watch | None = None) -> None:
        """*taken* of the *frames*, scattered over all, are in use from the start.

        `watch(taken, start, count)` is called after frames have been taken (True), and
        before they become free (False).
        """
        self._watch: Final = watch
        self._end: Final = frames
        self._taken: Final = taken
        # How many frames are free.
        self.free_frames = frames - taken
        # The order of each free block, by its first frame; and for each order a heap of
        # first frames. A heap may have stale entries: blocks that have been taken, or
        # have another order now.
        self._orders: dict[int, int] = {}
        self._heaps: list[list[int]] = [[] for _ in range(MAX_ORDER + 1)]
        # Frames from here on have no blocks yet: those are made when they are needed.
        self._untouched = 0

    def take(self, order: int, most: int) -> tuple[int, int] | None:
        """Take a free block of at least *order*, but of at most *most* frames.

        Returns its first frame and its order; None if there is none. The result is the
        same as that of taking blocks of *order* one by one, in fewer calls.
        """
        found = self._lowest(order) if order <= MAX_ORDER else None
        if found is None:
            return None
        start, size = found
        while size > order and 1 << size > most:
            size -= 1
            self._put(start + (1 << size), size)
        self.free_frames -= 1 << size
        if self._watch is not None:
            self._watch(True, start, 1 << size)
        return start, size

    def free(self, start: int, count: int) -> None:
        """Free frames. They need not be the same blocks that were taken."""
        if self._watch is not None:
            self._watch(False, start, count)
        self.free_frames += count
        for first, order in _blocks(start, start + count):
            self._merge(first, order)

    def _lowest(self, order: int) -> tuple[int, int] | None:
        """Remove the lowest of the smallest free blocks of at least *order*."""
        while True:
            for size in range(order, MAX_ORDER + 1):
                heap = self._heaps[size]
                while heap:
                    start = heappop(heap)
                    if self._orders.get(start) == size:
                        del self._orders[start]
                        return start, size
            if self._untouched >= self._end:
                return None
            self._touch()

    def _touch(self) -> None:
        """Make the free blocks of the next 4 MiB."""
        start, order = 0, max((self._end - 1).bit_length(), MAX_ORDER)
        taken = self._taken
        while order > MAX_ORDER:
            low, high = self._halves(start, order, taken)
            order -= 1
            middle = start + (1 << order)
            start, taken = (start, low) if self._untouched < middle else (middle, high)
        self._untouched += 1 << MAX_ORDER
        self._scatter(start, order, taken)

    def _scatter(self, start: int, order: int, taken: int) -> None:
        """Make the free blocks of an area in which *taken* frames are in use."""
        there = min(self._end - start, 1 << order)
        if there <= taken:
            return
        if taken == 0 and there == 1 << order:
            self._put(start, order)
            return
        low, high = self._halves(start, order, taken)
        self._scatter(start, order - 1, low)
        self._scatter(start + (1 << order - 1), order - 1, high)

    def _halves(self, start: int, order: int, taken: int) -> tuple[int, int]:
        """How many of an area's taken frames are in its lower half, and in its upper.

        One half gets a quarter and the other three quarters, as far as they fit; which
        one depends on the area. So on any scale some parts are more fragmented than
        others.
        """
        half = 1 << order - 1
        low_room = min(max(self._end - start, 0), half)
        high_room = min(max(self._end - start - half, 0), half)
        low = taken // 4
        if (start >> order).bit_count() % 2:
            low = taken - low
        low = max(min(low, low_room), taken - high_room)
        return low, taken - low

    def _put(self, start: int, order: int) -> None:
        self._orders[start] = order
        heappush(self._heaps[order], start)

    def _merge(self, start: int, order: int) -> None:
        while order < MAX_ORDER and self._orders.get(start ^ 1 << order) == order:
            del self._orders[start ^ 1 << order]
            start &= ~(1 << order)
            order += 1
        self._put(start, order)


def _blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Split [start, end) into aligned blocks: first frame and order."""
    while start < end:
        order = min((end - start).bit_length() - 1, MAX_ORDER)
        if start:
            order = min(order, (start & -start).bit_length() - 1)
        yield start, order
        start += 1 << order
