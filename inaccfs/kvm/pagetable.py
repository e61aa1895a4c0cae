"""The secondary MMU's page table: from gfn to frame, in three levels.

A dict by GiB holds dicts by 2 MiB, and these hold arrays of 512 entries, like the
tables of the hardware: so zapping a range drops whole tables and copies runs. An entry
is the frame's address and a present bit, as in hardware.

Changes need mmu_lock. `walk` needs no lock: each of its steps is atomic, and if it
walks a table that has just been dropped, `Mmu.flush` waits for the access to end.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from inaccfs.kvm.uapi import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    TABLE_SHIFT,
    Spte,
    pages_of_level,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_PRESENT: Final = 1
_ENTRIES: Final = 1 << TABLE_SHIFT
_LAST: Final = _ENTRIES - 1
_GIB: Final = pages_of_level(PG_LEVEL_1G)
_EMPTY: Final = array("Q", bytes(_ENTRIES * 8))
# The bytes of a table that have the present bits. No entry has other bits in them.
_PRESENT_BYTES: Final = slice(0 if sys.byteorder == "little" else 7, None, 8)

_Table: TypeAlias = "array[int]"
# By gfn >> 9; an int is a mapping of 2 MiB.
_Directory: TypeAlias = "dict[int, int | _Table]"


class ByLevel(NamedTuple):
    """The number of mappings of each size."""

    pages_4k: int = 0
    pages_2m: int = 0
    pages_1g: int = 0


class Run(NamedTuple):
    """Mappings of one level, of contiguous gfns to contiguous frames."""

    gfn: int
    pfn: int
    # Counted in 4 KiB, whatever the level.
    pages: int
    level: int


def _entry(pfn: int) -> int:
    return pfn << PAGE_SHIFT | _PRESENT


def _entries(pfn: int, count: int) -> _Table:
    first = _entry(pfn)
    return array("Q", range(first, first + count * PAGE_SIZE, PAGE_SIZE))


def _mapped(table: _Table) -> int:
    """How many entries are present. array.count() would make an int of each."""
    return table.tobytes()[_PRESENT_BYTES].count(_PRESENT)


class PageTable:
    """The mappings. gfns and pfns count 4 KiB pages; ends are exclusive."""

    def __init__(self) -> None:
        # By gfn >> 18; an int is a mapping of 1 GiB.
        self._top: Final[dict[int, int | _Directory]] = {}

    def walk(self, gfn: int) -> Spte | None:
        """The mapping of *gfn*, or None."""
        top = self._top.get(gfn >> 2 * TABLE_SHIFT)
        if top is None:
            return None
        if isinstance(top, int):
            return Spte((top >> PAGE_SHIFT) + (gfn & _GIB - 1), PG_LEVEL_1G)
        middle = top.get(gfn >> TABLE_SHIFT)
        if middle is None:
            return None
        if isinstance(middle, int):
            return Spte((middle >> PAGE_SHIFT) + (gfn & _LAST), PG_LEVEL_2M)
        entry = middle[gfn & _LAST]
        return Spte(entry >> PAGE_SHIFT, PG_LEVEL_4K) if entry else None

    def map_huge(self, gfn: int, pfn: int, level: int) -> None:
        """Map one huge page; both numbers are aligned, and nothing is mapped there."""
        if level == PG_LEVEL_1G:
            self._top[gfn >> 2 * TABLE_SHIFT] = _entry(pfn)
        else:
            self._directory(gfn)[gfn >> TABLE_SHIFT] = _entry(pfn)

    def map_pages(self, gfn: int, pfn: int, count: int) -> int:
        """Map 4 KiB pages; return how many of them were mapped already, at any level.

        Existing huge mappings stay.
        """
        before = 0
        while count:
            index = gfn & _LAST
            step = min(count, _ENTRIES - index)
            table = self._table(gfn)
            if table is None:
                before += step
            elif step == 1:
                before += table[index] != 0
                table[index] = _entry(pfn)
            else:
                before += _mapped(table[index : index + step])
                table[index : index + step] = _entries(pfn, step)
            gfn, pfn, count = gfn + step, pfn + step, count - step
        return before

    def _directory(self, gfn: int) -> _Directory:
        key = gfn >> 2 * TABLE_SHIFT
        directory = self._top.get(key)
        if isinstance(directory, dict):
            return directory
        made: _Directory = {}
        self._top[key] = made
        return made

    def _table(self, gfn: int) -> _Table | None:
        """The table of *gfn*, made if needed; None if a huge mapping has *gfn*."""
        if isinstance(self._top.get(gfn >> 2 * TABLE_SHIFT), int):
            return None
        directory = self._directory(gfn)
        table = directory.get(gfn >> TABLE_SHIFT)
        if table is None:
            table = directory[gfn >> TABLE_SHIFT] = _EMPTY[:]
        return None if isinstance(table, int) else table

    # --- zapping ----------------------------------------------------------------------

    def split(self, gfn: int) -> ByLevel:
        """Split the huge mapping that has *gfn* in it, unless it begins with *gfn*.

        The same frames stay mapped. Returns the change of the number of mappings, by
        level.
        """
        large = middle = small = 0
        key = gfn >> 2 * TABLE_SHIFT
        top = self._top.get(key)
        if isinstance(top, int) and gfn & _GIB - 1:
            pfn, first = top >> PAGE_SHIFT, key << TABLE_SHIFT
            made: _Directory = {
                first + index: _entry(pfn + (index << TABLE_SHIFT))
                for index in range(_ENTRIES)
            }
            self._top[key] = top = made
            large, middle = -1, _ENTRIES
        if isinstance(top, dict) and gfn & _LAST:
            huge = top.get(gfn >> TABLE_SHIFT)
            if isinstance(huge, int):
                top[gfn >> TABLE_SHIFT] = _entries(huge >> PAGE_SHIFT, _ENTRIES)
                middle, small = middle - 1, _ENTRIES
        return ByLevel(small, middle, large)

    def zap(self, start: int, end: int) -> ByLevel:
        """Unmap the gfns from *start* to *end*, and huge mappings of any as a whole."""
        small = middle = large = 0
        for key in _keys(self._top, start, end, 2 * TABLE_SHIFT):
            top = self._top[key]
            if isinstance(top, int):
                large += 1
            else:
                zapped = _zap_directory(top, start, end)
                small, middle = small + zapped[0], middle + zapped[1]
                if top:
                    continue
            del self._top[key]
        return ByLevel(small, middle, large)

    # --- looking ----------------------------------------------------------------------

    def count(self) -> ByLevel:
        """The number of mappings."""
        counts = [0, 0, 0]
        for top in self._top.values():
            if isinstance(top, int):
                counts[2] += 1
                continue
            for middle in top.values():
                if isinstance(middle, int):
                    counts[1] += 1
                else:
                    counts[0] += _mapped(middle)
        return ByLevel(*counts)

    def copy(self) -> PageTable:
        """A copy, to be read without mmu_lock."""
        made = PageTable()
        for key, top in self._top.items():
            made._top[key] = (
                top
                if isinstance(top, int)
                else {
                    number: middle if isinstance(middle, int) else middle[:]
                    for number, middle in top.items()
                }
            )
        return made

    def runs(self) -> list[Run]:
        """All mappings in the order of gfns, in as few runs as possible."""
        return _merged(self._leaves())

    def walked(self, start: int, end: int) -> list[Run]:
        """As `runs`, for the gfns from *start* to *end* only: cheap if they are few.

        A huge mapping of any of them is returned as a whole. Needs no lock.
        """
        return _merged(self._walk_all(start, end))

    def between(self, start: int, end: int) -> list[Run]:
        """As `walked`, for a range of any size. With mmu_lock."""
        if end - start <= _ENTRIES:
            return self.walked(start, end)
        return [
            run._replace(
                gfn=max(run.gfn, start),
                pfn=run.pfn + max(start - run.gfn, 0),
                pages=min(run.gfn + run.pages, end) - max(run.gfn, start),
            )
            if run.level == PG_LEVEL_4K
            else run
            for run in self.runs()
            if run.gfn < end and start < run.gfn + run.pages
        ]

    def _walk_all(self, start: int, end: int) -> Iterator[Run]:
        gfn = start
        while gfn < end:
            spte = self.walk(gfn)
            if spte is None:
                gfn += 1
            else:
                pages = pages_of_level(spte.level)
                inside = gfn & (pages - 1)
                yield Run(gfn - inside, spte.pfn - inside, pages, spte.level)
                gfn += pages - inside

    def _leaves(self) -> Iterator[Run]:
        for key, top in sorted(self._top.items()):
            if isinstance(top, int):
                gfn = key << 2 * TABLE_SHIFT
                yield Run(gfn, top >> PAGE_SHIFT, _GIB, PG_LEVEL_1G)
                continue
            for number, middle in sorted(top.items()):
                gfn = number << TABLE_SHIFT
                if isinstance(middle, int):
                    yield Run(gfn, middle >> PAGE_SHIFT, _ENTRIES, PG_LEVEL_2M)
                else:
                    yield from _runs_of_table(gfn, middle)


def merged(private: list[Run], shared: list[Run]) -> list[Run]:
    """The runs of two tables, in the order of gfns."""
    return sorted([*private, *shared]) if shared else private


def _merged(leaves: Iterable[Run]) -> list[Run]:
    merged: list[Run] = []
    for gfn, pfn, pages, level in leaves:
        if merged:
            last = merged[-1]
            if (last.gfn + last.pages, last.pfn + last.pages, last.level) == (
                gfn,
                pfn,
                level,
            ):
                merged[-1] = last._replace(pages=last.pages + pages)
                continue
        merged.append(Run(gfn, pfn, pages, level))
    return merged


def _keys(entries: Mapping[int, object], start: int, end: int, shift: int) -> list[int]:
    """The keys of the entries that overlap the gfns from *start* to *end*."""
    first, last = start >> shift, (end - 1) >> shift
    if last - first < len(entries):
        return [key for key in range(first, last + 1) if key in entries]
    return [key for key in entries if first <= key <= last]


def _zap_directory(directory: _Directory, start: int, end: int) -> tuple[int, int]:
    small = huge = 0
    for key in _keys(directory, start, end, TABLE_SHIFT):
        middle = directory[key]
        if isinstance(middle, int):
            del directory[key]
            huge += 1
            continue
        first = max(start - (key << TABLE_SHIFT), 0)
        last = min(end - (key << TABLE_SHIFT), _ENTRIES)
        if last - first == _ENTRIES:
            del directory[key]
            small += _mapped(middle)
        else:
            small += _mapped(middle[first:last])
            middle[first:last] = _EMPTY[first:last]
    return small, huge


def _runs_of_table(gfn: int, table: _Table) -> Iterator[Run]:
    index = 0
    # The most common case, and a hundred times faster.
    if table[0] and table == _entries(table[0] >> PAGE_SHIFT, _ENTRIES):
        yield Run(gfn, table[0] >> PAGE_SHIFT, _ENTRIES, PG_LEVEL_4K)
        return
    while index < _ENTRIES:
        first = entry = table[index]
        begin = index
        while entry and entry == first + (index - begin) * PAGE_SIZE:
            index += 1
            entry = table[index] if index < _ENTRIES else 0
        if index == begin:
            index += 1
        else:
            yield Run(gfn + begin, first >> PAGE_SHIFT, index - begin, PG_LEVEL_4K)
