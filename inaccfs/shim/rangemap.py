"""A map from disjoint half-open ranges of integers to values.

Ranges that touch and have equal values are merged. So time and memory grow with the
number of different ranges, not with their length.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

V = TypeVar("V")

# How many ranges a new block has; it is split when it has twice as many. Inserting into
# one long list would be slow.
_LOAD: Final = 512


class _Block(Generic[V]):
    """Consecutive ranges, as three lists of the same length."""

    __slots__ = ("ends", "starts", "values")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.values: list[V] = []

    def extend(self, other: _Block[V], low: int, high: int) -> None:
        """Append ranges *low* to *high* of another block."""
        self.starts += other.starts[low:high]
        self.ends += other.ends[low:high]
        self.values += other.values[low:high]


class RangeMap(Generic[V]):
    """Disjoint ranges [start, end) with their values, in order.

    Values are compared by `==`. Changing or reading an empty range does nothing.
    """

    __slots__ = ("_blocks", "_limits", "_load", "size")

    def __init__(self, load: int = _LOAD) -> None:
        """*load* is how many ranges a block has when it is made."""
        self._load: Final = load
        self.clear()

    def clear(self) -> None:
        """Remove all ranges."""
        # Block i has the ranges that begin in [_limits[i - 1], _limits[i]). There is
        # always at least one block. A block may be empty only if it is the only one.
        self._blocks: list[_Block[V]] = [_Block()]
        self._limits: list[int] = []
        # How many integers the ranges cover.
        self.size = 0

    def __len__(self) -> int:
        """How many ranges there are."""
        return sum(len(block.starts) for block in self._blocks)

    def __bool__(self) -> bool:
        return self.size > 0

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        """All ranges, as (start, end, value)."""
        for block in self._blocks:
            yield from zip(block.starts, block.ends, block.values, strict=True)

    def get(self, at: int) -> V | None:
        """The value at *at*; None outside of all ranges."""
        block = self._blocks[bisect_right(self._limits, at)]
        place = bisect_right(block.ends, at)
        if place < len(block.starts) and block.starts[place] <= at:
            return block.values[place]
        return None

    def covers(self, start: int, end: int) -> bool:
        """Whether ranges cover all of [start, end)."""
        block = self._blocks[bisect_right(self._limits, start)]
        place = bisect_right(block.ends, start)
        # Usually one range covers it, or no range contains its start.
        if place < len(block.starts) and block.starts[place] <= start:
            return block.ends[place] >= end or not self.gaps(start, end)
        return start >= end

    def since(self, at: int) -> Iterator[tuple[int, int, V]]:
        """The ranges that end after *at*, not clipped.

        The iterator is not valid after a change of the map.
        """
        first = bisect_right(self._limits, at)
        for place in range(first, len(self._blocks)):
            block = self._blocks[place]
            low = bisect_right(block.ends, at) if place == first else 0
            yield from zip(
                block.starts[low:], block.ends[low:], block.values[low:], strict=True
            )

    def overlapping(self, start: int, end: int) -> list[tuple[int, int, V]]:
        """The ranges that overlap [start, end), not clipped to it."""
        found: list[tuple[int, int, V]] = []
        for block, low, high in self._parts(start, end):
            starts, ends = block.starts[low:high], block.ends[low:high]
            found += zip(starts, ends, block.values[low:high], strict=True)
        return found

    def values(self, start: int, end: int) -> list[V]:
        """The values of the ranges that overlap [start, end)."""
        found: list[V] = []
        for block, low, high in self._parts(start, end):
            found += block.values[low:high]
        return found

    def clipped(self, start: int, end: int) -> list[tuple[int, int, V]]:
        """The ranges that overlap [start, end), clipped to it."""
        found = self.overlapping(start, end)
        if found:
            first, stop, value = found[0]
            found[0] = (max(first, start), stop, value)
            first, stop, value = found[-1]
            found[-1] = (first, min(stop, end), value)
        return found

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that no range covers."""
        found = []
        for block, low, high in self._parts(start, end):
            starts, ends = block.starts[low:high], block.ends[low:high]
            # Usually there is no gap between them, which one comparison shows.
            if starts[1:] == ends[:-1]:
                starts, ends = starts[:1], ends[-1:]
            for first, stop in zip(starts, ends, strict=True):
                if start < first:
                    found.append((start, first))
                start = stop
        if start < end:
            found.append((start, end))
        return found

    def set(self, start: int, end: int, value: V) -> None:
        """Map [start, end) to *value*, which replaces former values."""
        self.splice(start, end, [start], [end], [value])

    def delete(self, start: int, end: int) -> None:
        """Remove [start, end) from the map."""
        self.splice(start, end, [], [], [])

    def replace(
        self, start: int, end: int, pieces: Iterable[tuple[int, int, V]]
    ) -> None:
        """Replace the content of [start, end) by *pieces*: ranges with their values.

        They are disjoint, in order, and inside of [start, end).
        """
        starts: list[int] = []
        ends: list[int] = []
        values: list[V] = []
        before = None
        for first, stop, value in pieces:
            if first == before and values[-1] == value:
                ends[-1] = stop
            else:
                starts.append(first)
                ends.append(stop)
                values.append(value)
            before = stop
        self.splice(start, end, starts, ends, values)

    def splice(
        self, start: int, end: int, starts: list[int], ends: list[int], values: list[V]
    ) -> None:
        """Like `replace`, with the pieces as three lists, which the map then owns.

        No two pieces may both touch and have equal values.
        """
        if start >= end:
            return
        # Ranges that only touch [start, end) count too: a piece may merge with them.
        at = bisect_right(self._limits, start - 1)
        last = bisect_right(self._limits, end)
        if at < last:
            self._join(at, last)
        block = self._blocks[at]
        low = bisect_left(block.ends, start)
        high = bisect_right(block.starts, end)
        # Assign it once, at the end: other threads may read the size meanwhile.
        size = self.size
        if low < high:
            size -= sum(block.ends[low:high]) - sum(block.starts[low:high])
            first, value = block.starts[low], block.values[low]
            if first < start:
                if starts and starts[0] == start and values[0] == value:
                    starts[0] = first
                else:
                    starts.insert(0, first)
                    ends.insert(0, start)
                    values.insert(0, value)
            stop, value = block.ends[high - 1], block.values[high - 1]
            if stop > end:
                if ends and ends[-1] == end and values[-1] == value:
                    ends[-1] = stop
                else:
                    starts.append(end)
                    ends.append(stop)
                    values.append(value)
        self.size = size + sum(ends) - sum(starts)
        block.starts[low:high] = starts
        block.ends[low:high] = ends
        block.values[low:high] = values
        if len(block.starts) > 2 * self._load or not block.starts:
            self._balance(at)

    def _parts(self, start: int, end: int) -> list[tuple[_Block[V], int, int]]:
        """The blocks that overlap [start, end), and which of their ranges do."""
        if start >= end:
            return []
        parts = []
        at = bisect_right(self._limits, start)
        last = bisect_left(self._limits, end, at)
        while at <= last:
            block = self._blocks[at]
            low = bisect_right(block.ends, start)
            high = bisect_left(block.starts, end, low)
            if low < high:
                parts.append((block, low, high))
            at += 1
        return parts

    def _join(self, at: int, last: int) -> None:
        """Merge the blocks from *at* to *last*."""
        joined = self._blocks[at]
        for block in self._blocks[at + 1 : last + 1]:
            joined.extend(block, 0, len(block.starts))
        del self._blocks[at + 1 : last + 1]
        del self._limits[at:last]

    def _balance(self, at: int) -> None:
        """Cut a block that is too long; remove one that is empty."""
        block = self._blocks[at]
        parts = []
        for low in range(0, len(block.starts), self._load):
            part: _Block[V] = _Block()
            part.extend(block, low, low + self._load)
            parts.append(part)
        if parts:
            self._blocks[at : at + 1] = parts
            self._limits[at:at] = [part.starts[0] for part in parts[1:]]
        elif len(self._blocks) > 1:
            del self._blocks[at]
            del self._limits[max(at - 1, 0)]


def add(counts: RangeMap[int], start: int, end: int, more: int) -> None:
    """Add *more* to each number of [start, end); a missing number counts as 0."""
    pieces = [
        (first, stop, before + more)
        for first, stop, before in counts.clipped(start, end)
    ]
    pieces += [(first, stop, more) for first, stop in counts.gaps(start, end)]
    pieces.sort()
    counts.replace(
        start, end, [(first, stop, left) for first, stop, left in pieces if left]
    )
