"""What a guest may read: remembers who wrote what and when, and tells what is stale.

Each page is a register. A write puts a stamp there that nobody else writes; a punch
puts 0 there, and so does a conversion. Operations overlap in time, so each has a
beginning and an end on a clock that only counts. A value that was read is stale if a
change surely came after the one that made it and surely before the read:

    change that made it     |-----|
    another change                   |----|
    the read                                 |---|

and is anybody's guess while any two of them overlap. No linearization is searched
for, so not every error is found, and what is found is one.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STAMP_BYTES: Final = 8

# The low bits of a stamp count, those above name the cell: what is read where another
# cell's stamp belongs tells whose it is.
_COUNT_BITS: Final = 40

# A cell with fewer changes than that is not tidied up.
_TIDY_AT: Final = 8


class Change:
    """A write, a punch or a conversion; it may concern many cells."""

    __slots__ = ("begin", "end", "stamp")

    def __init__(self, begin: int, end: int | None, stamp: int) -> None:
        self.begin = begin
        # None while it is under way.
        self.end = end
        # What it leaves in the cells; 0 for memory that was taken away.
        self.stamp = stamp


_ORIGIN: Final = Change(0, 0, 0)


class Cell:
    """A page that is written and read by its stamp. At first it is 0."""

    __slots__ = ("changes", "group", "index", "number")

    def __init__(self, group: str, index: int, number: int) -> None:
        self.group = group
        self.index = index
        # Unique; a part of its stamps.
        self.number = number
        # In the order of their beginnings. Guarded by the oracle's lock.
        self.changes = [_ORIGIN]

    def __str__(self) -> str:
        return f"{self.group} {self.index}"


class Verdict(NamedTuple):
    """What is to be said of a value that was read."""

    # Why it cannot have been there; None if it can.
    wrong: str | None
    # The changes that can have made it, if all of them overlapped with the read.
    early: tuple[Change, ...] = ()


class Oracle:
    """Knows the history of all cells. Threads share it."""

    def __init__(self) -> None:
        # Guards the rest, and the changes of all cells.
        self._lock: Final = threading.Lock()
        self._now = 0
        # The number of each group's first cell, rising, and the group.
        self._groups: Final[list[tuple[int, str]]] = []
        self._numbers = 1
        self._stamps: Final = itertools.count(1)
        # When the reads began that are under way.
        self._reads: Final[set[int]] = set()

    def cells(self, group: str, count: int) -> list[Cell]:
        """New cells; *group* and an index is what they are called."""
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
        """A cell is about to get the stamp that the change has."""
        with self._lock:
            stamp = cell.number << _COUNT_BITS | next(self._stamps)
            change = Change(self._tick(), None, stamp)
            cell.changes.append(change)
        return change

    def begin_clear(self, cells: Iterable[Cell]) -> Change:
        """Memory is about to be taken away."""
        with self._lock:
            change = Change(self._tick(), None, 0)
            for cell in cells:
                cell.changes.append(change)
        return change

    def end(self, change: Change, cells: Sequence[Cell]) -> None:
        """It has been done."""
        with self._lock:
            change.end = self._tick()
            oldest = min(self._reads, default=self._now)
            for cell in cells:
                if len(cell.changes) >= _TIDY_AT:
                    _tidy(cell, oldest)

    def undo(self, change: Change, cells: Iterable[Cell]) -> None:
        """It has not been done, not even in part."""
        with self._lock:
            for cell in cells:
                cell.changes.remove(change)

    # --- reads ------------------------------------------------------------------------

    def begin_read(self) -> int:
        """A read begins; give what this returns to `end_read` or `drop_read`."""
        with self._lock:
            begin = self._tick()
            self._reads.add(begin)
        return begin

    def drop_read(self, begin: int) -> None:
        """Nothing has been read."""
        with self._lock:
            self._reads.discard(begin)

    def end_read(self, begin: int, cell: Cell, value: int) -> Verdict:
        """Judge a read that began then and has found *value*."""
        with self._lock:
            self._reads.discard(begin)
            verdict = _judge(cell.changes, begin, value)
        if verdict.wrong is None:
            return verdict
        wrong = verdict.wrong
        if value and value >> _COUNT_BITS != cell.number:
            wrong = f"belongs to {self._owner(value)}"
        return Verdict(f"{cell}: read {_told(value)}, which {wrong}")


def _judge(changes: list[Change], begin: int, value: int) -> Verdict:
    makers = [change for change in changes if change.stamp == value]
    if not makers:
        return Verdict("was never written there, or is long overwritten")
    over = [each for each in changes if each.end is not None and each.end < begin]
    # The last to have begun of those that were over when the read began.
    last = max(over, key=lambda each: each.begin, default=changes[0])
    possible = [each for each in makers if each.end is None or each.end >= last.begin]
    if not possible:
        told = f"was replaced by {_told(last.stamp)} before the read began"
        return Verdict(told)
    early = all(each.end is None or each.end > begin for each in possible)
    return Verdict(None, tuple(possible) if early else ())


def _tidy(cell: Cell, oldest: int) -> None:
    """Forget what no read can find that began at *oldest* or later."""
    over = [c.begin for c in cell.changes if c.end is not None and c.end < oldest]
    bound = max(over, default=0)
    cell.changes = [c for c in cell.changes if c.end is None or c.end >= bound]


def _told(value: int) -> str:
    return f"stamp {value & (1 << _COUNT_BITS) - 1}" if value else "zeros"
