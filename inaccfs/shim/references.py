"""The references to frames of one file, by holder.

inaccessible_get_pfn() of v8 leaves its caller a reference to the folio, which
outlives a punch: the frame is not free before inaccessible_put_pfn(). Here references
are counted for each page and holder, and those to punched pages are kept apart.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from inaccfs.errnos import os_error
from inaccfs.shim.rangemap import RangeMap, add

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator

    from inaccfs.shim.frames import Extent


class FrameRun(NamedTuple):
    """Contiguous pages in contiguous frames."""

    # The frame of the first page.
    pfn: int
    # In pages of the file.
    count: int  # type: ignore[assignment] # tuple has a method of that name


class Put(NamedTuple):
    """One reference to each of some pages has been put."""

    run: FrameRun
    # The punched pages that have no reference any more.
    freed: list[FrameRun]


# References of one holder to a page, all got between two punches: how many; the shift,
# which is the page's offset in the file minus its place (both in pages); and whether
# the page has been punched since. All pages of a run have the same lot. These are plain
# tuples: the garbage collector would follow a million of a class of their own, and
# get-pfn would take half as long again.
_Lot: TypeAlias = tuple[int, int, bool]
# The frame of a punched page may become another page while there are references. The
# oldest lot is the first.
_Lots: TypeAlias = tuple[_Lot, ...]


PAGES_A_STEP: Final = 512
"""References to this many pages are handled in one step: each may have its own."""


class Reference(NamedTuple):
    """For people: a run of pages, to each of which a holder has *refs* references."""

    holder: Hashable
    # In pages of the file, like count.
    offset: int
    pfn: int
    count: int  # type: ignore[assignment] # tuple has a method of that name
    refs: int
    punched: bool


class References:
    """The references to one file's frames.

    Frames are in 4 KiB, counts in pages of the file. Cost grows with extents, not with
    pages.
    """

    def __init__(self, frames_per_page: int = 1) -> None:
        self._frames: Final = frames_per_page
        # The references of each holder by place: the frame number in units of a page.
        self._ranges: dict[Hashable, RangeMap[_Lots]] = {}
        # How many references each holder has, so that they need not be counted.
        self._totals: dict[Hashable, int] = {}
        # By place: the number of references to punched pages.
        self._punched: RangeMap[int] = RangeMap()

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def get(self, holder: Hashable, extents: Iterable[Extent]) -> None:
        """*holder* gets a reference to each page of *extents*."""
        ranges = self._ranges.get(holder)
        if ranges is None:
            ranges = self._ranges[holder] = RangeMap()
            self._totals[holder] = 0
        for offset, pfn, count, _ in extents:
            start = pfn // self._frames
            end = start + count
            lot = 1, offset - start, False
            if count == 1:
                ranges.set(start, end, _more(ranges.get(start), lot))
            else:
                pieces = ranges.clipped(start, end)
                pieces += [(*gap, ()) for gap in ranges.gaps(start, end)]
                ranges.replace(
                    start,
                    end,
                    [
                        (first, stop, _more(lots, lot))
                        for first, stop, lots in sorted(pieces)
                    ],
                )
            self._totals[holder] += count

    def put(self, holder: Hashable, pfn: int, count: int) -> list[FrameRun]:
        """*holder* gives back one reference to each of *count* pages from frame *pfn*.

        Of several references to a page the oldest is put, so one to a punched page is
        first. Returns punched pages that have no reference any more.

        Raises:
            OSError: EINVAL if it lacks one to any of them; then nothing has changed.
        """
        ranges = self._ranges.get(holder)
        start, rest = divmod(pfn, self._frames)
        end = start + count
        if ranges is None or rest or count < 1:
            raise os_error(errno.EINVAL)
        if count == 1:
            # The most frequent case.
            one = ranges.get(start)
            pieces = [] if one is None else [(start, end, one)]
        else:
            pieces = ranges.clipped(start, end)
        if sum([stop - first for first, stop, _ in pieces]) != count:
            raise os_error(errno.EINVAL)
        released = []
        for first, stop, lots in pieces:
            _, _, punched = lots[0]
            if punched:
                released.append((first, stop, 1))
            if left := _fewer(lots):
                ranges.set(first, stop, left)
            else:
                ranges.delete(first, stop)
        self._totals[holder] -= count
        if not ranges.size:
            self._forget(holder)
        return self._gone(released) if released else []

    def put_all(
        self, holder: Hashable, extents: Collection[tuple[int, int]]
    ) -> Iterator[Put | None]:
        """`put` for each (pfn, count) of *extents*, in steps that are short.

        Yields None after each step in which it only checks. *holder* must not get pages
        in between.

        Raises:
            OSError: EINVAL if it lacks any of them; then nothing has changed.
        """
        # Check this first, so that the time depends on what the holder has, and not on
        # the numbers that it names.
        if sum(count for _, count in extents) > self.total(holder):
            raise os_error(errno.EINVAL)
        # By place: how many references to put. A page may be in several extents.
        wanted: RangeMap[int] = RangeMap()
        for pfn, count in extents:
            start, rest = divmod(pfn, self._frames)
            if rest:
                raise os_error(errno.EINVAL)
            for first, stop in _pieces(start, start + count):
                add(wanted, first, stop, 1)
                yield None
        for start, end, number in wanted.since(0):
            for first, stop in _pieces(start, end):
                self._check(holder, first, stop, number)
                yield None
        for start, end, number in wanted.since(0):
            for first, stop in _pieces(start, end):
                run = self._as_frames(first, stop)
                for _ in range(number):
                    yield Put(run, self.put(holder, *run))

    def _check(self, holder: Hashable, start: int, end: int, number: int) -> None:
        """Raise `OSError` unless *holder* has *number* references to each page."""
        ranges = self._ranges.get(holder)
        pieces = [] if ranges is None else ranges.clipped(start, end)
        enough = sum(
            stop - first
            for first, stop, lots in pieces
            if sum(refs for refs, _, _ in lots) >= number
        )
        if enough != end - start:
            raise os_error(errno.EINVAL)

    def drop(self, holder: Hashable) -> Iterator[list[FrameRun]]:
        """Remove all references of *holder* at once; yield in steps what `put` returns.

        Exhaust the iterator.
        """
        ranges = self._ranges.get(holder)
        if ranges is None:
            return iter(())
        self._forget(holder)
        return (
            self._gone([(start, end, refs)])
            for start, end, lots in ranges
            for refs in [sum(refs for refs, _, punched in lots if punched)]
        )

    def punched(self, extents: Iterable[Extent]) -> list[FrameRun]:
        """Record that the pages of *extents* have been punched.

        Returns those without references.
        """
        free = []
        for offset, pfn, count, _ in extents:
            start = pfn // self._frames
            end = start + count
            shift = offset - start
            for ranges in self._ranges.values():
                self._mark(ranges, start, end, shift)
            free += self._punched.gaps(start, end)
        return [self._as_frames(start, end) for start, end in free]

    def total(self, holder: Hashable) -> int:
        """How many references *holder* has: a page that it got twice counts twice."""
        return self._totals.get(holder, 0)

    def holders(self) -> list[Hashable]:
        """All holders of references."""
        return list(self._ranges)

    def holders_of(self, extents: Iterable[Extent]) -> list[Hashable]:
        """The holders of references to *extents* that have not been punched since."""
        found: dict[Hashable, None] = {}
        for offset, pfn, count, _ in extents:
            start = pfn // self._frames
            shift = offset - start
            for holder, ranges in self._ranges.items():
                for lots in ranges.values(start, start + count):
                    if _refers(lots, shift):
                        found[holder] = None
                        break
        return list(found)

    def first_of(
        self, extents: Iterable[Extent], holders: Iterable[Hashable]
    ) -> int | None:
        """The first page of *extents*, not punched since, that *holders* refer to."""
        found: list[int] = []
        ranges = [self._ranges[holder] for holder in holders]
        for offset, pfn, count, _ in extents:
            start = pfn // self._frames
            shift = offset - start
            found += (
                first + shift
                for each in ranges
                for first, _, lots in each.clipped(start, start + count)
                if _refers(lots, shift)
            )
        return min(found, default=None)

    def places(self, extents: Iterable[Extent]) -> list[tuple[int, int]]:
        """The referenced pages of *extents*, as ranges, in order.

        References to pages that were punched since do not count.
        """
        found: RangeMap[bool] = RangeMap()
        for offset, pfn, count, _ in extents:
            start = pfn // self._frames
            shift = offset - start
            for ranges in self._ranges.values():
                for first, stop, lots in ranges.clipped(start, start + count):
                    if _refers(lots, shift):
                        found.set(first + shift, stop + shift, True)
        return [(first, stop) for first, stop, _ in found]

    def describe(self, holder: Hashable, since: int = 0) -> Iterator[Reference]:
        """The references of *holder* from frame *since* on, in order of frames.

        The iterator is not valid after a change.
        """
        ranges = self._ranges.get(holder)
        if ranges is None:
            return
        at = since // self._frames
        for start, end, lots in ranges.since(at):
            first = max(start, at)
            for refs, shift, punched in lots:
                offset, pfn = first + shift, first * self._frames
                yield Reference(holder, offset, pfn, end - first, refs, punched)

    def _mark(self, ranges: RangeMap[_Lots], start: int, end: int, shift: int) -> None:
        """Mark the references of one holder to these pages as punched."""
        for first, stop, lots in ranges.clipped(start, end):
            number = sum(
                refs for refs, at, punched in lots if at == shift and not punched
            )
            if number:
                marked = tuple(
                    (refs, at, punched or at == shift) for refs, at, punched in lots
                )
                ranges.set(first, stop, marked)
                add(self._punched, first, stop, number)

    def _gone(self, puts: list[tuple[int, int, int]]) -> list[FrameRun]:
        """Subtract (start, end, refs) from the punched pages; return the free ones."""
        free = []
        for start, end, refs in puts:
            if refs:
                add(self._punched, start, end, -refs)
                free += self._punched.gaps(start, end)
        return [self._as_frames(start, end) for start, end in free]

    def _as_frames(self, start: int, end: int) -> FrameRun:
        return FrameRun(start * self._frames, end - start)

    def _forget(self, holder: Hashable) -> None:
        del self._ranges[holder]
        del self._totals[holder]


def _refers(lots: _Lots, shift: int) -> bool:
    """Whether one of *lots* is of a page with this shift, not punched since."""
    return any(at == shift and not punched for _, at, punched in lots)


def _more(lots: _Lots | None, lot: _Lot) -> _Lots:
    """*lots* with one reference more."""
    if not lots:
        return (lot,)
    refs, shift, punched = lots[-1]
    if (shift, punched) == lot[1:]:
        return (*lots[:-1], (refs + 1, shift, punched))
    return (*lots, lot)


def _fewer(lots: _Lots) -> _Lots:
    """*lots* without one reference, of the oldest."""
    refs, shift, punched = lots[0]
    return ((refs - 1, shift, punched), *lots[1:]) if refs > 1 else lots[1:]


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """A range in parts, as each page may have much to do."""
    for first in range(start, end, PAGES_A_STEP):
        yield first, min(first + PAGES_A_STEP, end)
