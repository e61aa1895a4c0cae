"""Judges reads of guests: records all writes and clears, and finds stale reads.

Each page is a register. A write stores a unique stamp; a punch or a conversion stores
0. Operations overlap in time, so each has a beginning and an end on a logical clock. A
value that was read is stale if another change certainly came after the change that
stored it, and certainly before the read:

    change that stored it   |-----|
    another change                   |----|
    the read                                 |---|

While any two of these overlap, the value may be right. The oracle does not search for
a linearization, so it misses some errors, but everything that it reports is an error.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STAMP_BYTES: Final = 8

# The low bits of a stamp are a count, those above the cell's number: so a stamp that is
# read from the wrong cell names the cell that it belongs to.
_COUNT_BITS: Final = 40

# A cell with fewer changes than this is not tidied up.
_TIDY_AT: Final = 8


class Change:
    """A write, a punch or a conversion; it may concern many cells."""

    __slots__ = ("begin", "end", "stamp")

    def __init__(self, begin: int, end: int | None, stamp: int) -> None:
        self.begin = begin
        # None while it is in progress.
        self.end = end
        # The value that it leaves in the cells; 0 for memory that was removed.
        self.stamp = stamp


_ORIGIN: Final = Change(0, 0, 0)


class Cell:
    """A page, whose content is the stamp written last. At first it is 0."""

    __slots__ = ("changes", "group", "index", "number")

    def __init__(self, group: str, index: int, number: int) -> None:
        self.group = group
        self.index = index
        # Unique; its stamps contain it.
        self.number = number
        # In the order of their beginnings. Guarded by the oracle's lock.
        self.changes = [_ORIGIN]

    def __str__(self) -> str:
        return f"{self.group} {self.index}"


class Verdict(NamedTuple):
    """The judgement on a value that was read."""

    # Why the value is wrong; None if it may be right.
    wrong: str | None
    # The changes that may have stored it, if none of them ended before the read began.
    early: tuple[Change, ...] = ()


class Oracle:
    """The history of all cells. Threads share it."""

    def __init__(self) -> None:
        # Guards the rest, and the changes of all cells.
        self._lock: Final = threading.Lock()
        self._now = 0
        # The number of each group's first cell, rising, and the group.
        self._groups: Final[list[tuple[int, str]]] = []
        self._numbers = 1
        self._stamps: Final = itertools.count(1)
        # When each read in progress began.
        self._reads: Final[set[int]] = set()

    def cells(self, group: str, count: int) -> list[Cell]:
        """Make new cells; each is named by *group* and its index."""
        with self._lock:
            first, self._numbers = self._numbers, self._numbers + count
            self._groups.append((first, group))
        return [Cell(group, index, first + index) for index in range(count)]

    def _owner(self, stamp: int) -> str:
        number = stamp >> _COUNT_BITS
        if not 0 < number < self._numbers:
            return "nobody"
        first, group = self._groups[bisect_right(self._groups, (number + 1,)) - 1]
        return f"{group} {number - first}"

    def _tick(self) -> int:
        self._now += 1
        return self._now

    # --- changes ----------------------------------------------------------------------

    def begin_write(self, cell: Cell) -> Change:
        """A write begins; the stamp to store in *cell* is the change's."""
        with self._lock:
            stamp = cell.number << _COUNT_BITS | next(self._stamps)
            change = Change(self._tick(), None, stamp)
            cell.changes.append(change)
        return change

    def begin_clear(self, cells: Iterable[Cell]) -> Change:
        """Removing memory begins."""
        with self._lock:
            change = Change(self._tick(), None, 0)
            for cell in cells:
                cell.changes.append(change)
        return change

    def end(self, change: Change, cells: Sequence[Cell]) -> None:
        """The change is complete."""
        with self._lock:
            change.end = self._tick()
            oldest = min(self._reads, default=self._now)
            for cell in cells:
                if len(cell.changes) >= _TIDY_AT:
                    _tidy(cell, oldest)

    def undo(self, change: Change, cells: Iterable[Cell]) -> None:
        """The change was not made, not even in part."""
        with self._lock:
            for cell in cells:
                cell.changes.remove(change)

    # --- reads ------------------------------------------------------------------------

    def begin_read(self) -> int:
        """A read begins; pass the result to `end_read` or `drop_read`."""
        with self._lock:
            begin = self._tick()
            self._reads.add(begin)
        return begin

    def drop_read(self, begin: int) -> None:
        """The read failed."""
        with self._lock:
            self._reads.discard(begin)

    def end_read(self, begin: int, cell: Cell, value: int) -> Verdict:
        """Judge a read of *value* that began at *begin*."""
        with self._lock:
            self._reads.discard(begin)
            verdict = _judge(cell.changes, begin, value)
        if verdict.wrong is None:
            return verdict
        wrong = verdict.wrong
        if value and value >> _COUNT_BITS != cell.number:
            wrong = f"belongs to {self._owner(value)}"
        return Verdict(f"{cell}: read {_text(value)}, which {wrong}")


def _judge(changes: list[Change], begin: int, value: int) -> Verdict:
    makers = [change for change in changes if change.stamp == value]
    if not makers:
        return Verdict("was never written there, or is long overwritten")
    over = [each for each in changes if each.end is not None and each.end < begin]
    # Of the changes that had ended when the read began, the last to have begun.
    last = max(over, key=lambda each: each.begin, default=changes[0])
    possible = [each for each in makers if each.end is None or each.end >= last.begin]
    if not possible:
        return Verdict(f"was replaced by {_text(last.stamp)} before the read began")
    early = all(each.end is None or each.end > begin for each in possible)
    return Verdict(None, tuple(possible) if early else ())


def _tidy(cell: Cell, oldest: int) -> None:
    """Forget changes whose values no read that began at *oldest* or later can find."""
    over = [c.begin for c in cell.changes if c.end is not None and c.end < oldest]
    bound = max(over, default=0)
    cell.changes = [c for c in cell.changes if c.end is None or c.end >= bound]


def _text(value: int) -> str:
    return f"stamp {value & (1 << _COUNT_BITS) - 1}" if value else "zeros"
