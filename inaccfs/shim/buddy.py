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

    Of the smallest blocks that are large enough the lowest is taken, and split; what is
    freed becomes one with its buddy when that is free. See mm/page_alloc.c.
    """

    def __init__(self, frames: int, taken: int = 0, watch: Watch | None = None) -> None:
        """*taken* frames are not there to be had, scattered over all.

        *watch* is called as `watch(taken, start, count)` when frames have been taken,
        or before they are free again.
        """
        self._watch: Final = watch
        self._end: Final = frames
        self._taken: Final = taken
        # How many frames are free.
        self.free_frames = frames - taken
        # Free blocks: their orders, and for each order a heap of their first frames,
        # which may hold some that are no longer free, or of another order.
        self._orders: dict[int, int] = {}
        self._heaps: list[list[int]] = [[] for _ in range(MAX_ORDER + 1)]
        # What lies behind has never been looked at: blocks are made as they are needed.
        self._untouched = 0

    def take(self, order: int, most: int) -> tuple[int, int] | None:
        """Take a free block of *order* or more, but no more than *most* frames.

        Returns its first frame and its order; None if there is no such block. This is
        the same as taking blocks of *order* one by one, in fewer calls.
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
        """Give frames back, which need not be blocks as they were taken."""
        if self._watch is not None:
            self._watch(False, start, count)
        self.free_frames += count
        for first, order in _blocks(start, start + count):
            self._merge(first, order)

    def _lowest(self, order: int) -> tuple[int, int] | None:
        """Take the lowest of the smallest free blocks of *order* or more out."""
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
        """Make the free blocks of an area, of which some frames are taken."""
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
        """How many of an area's taken frames are in its lower and upper half.

        A quarter and three quarters, as far as they fit, now this way and now that. So
        some parts are full of holes and others whole, on any scale.
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
    """[start, end) as blocks of the buddy system: first frame and order."""
    while start < end:
        order = min((end - start).bit_length() - 1, MAX_ORDER)
        if start:
            order = min(order, (start & -start).bit_length() - 1)
        yield start, order
        start += 1 << order
