"""Which pages of a file are private and which are shared.

gmem_inode.attributes of the in-place series: a maple tree by pgoff that covers all of
the file, with or without memory. A punch changes nothing of it.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from inaccfs.semantics.attributes import BOTH, PRIVATE, SHARED
from inaccfs.shim.frames import Extent
from inaccfs.shim.rangemap import RangeMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inaccfs.semantics.attributes import Initial, Kinds

# More pages than any file has, so that no page lacks an entry, whatever the size.
_END: Final = 1 << 52


MOST_RANGES: Final = 1_000_000
"""The most ranges of a file. They take some 200 MB; their pages need no memory."""


class Attributes:
    """The attribute of each page. Ranges with equal ones are merged."""

    def __init__(self, initial: Initial, most: int = MOST_RANGES) -> None:
        """All pages get the attribute *initial*. There may be *most* ranges."""
        self._most: Final = most
        self._initial: Final = initial == PRIVATE
        # Made on first use: each open makes an Attributes object, and few are used.
        self._ranges: RangeMap[bool] | None = None

    @property
    def _private(self) -> RangeMap[bool]:
        if self._ranges is None:
            self._ranges = RangeMap()
            self._ranges.set(0, _END, self._initial)
        return self._ranges

    @property
    def are_initial(self) -> bool:
        """Whether all pages have their initial attribute."""
        if self._ranges is None:
            return True
        return len(self._ranges) == 1 and self.is_private(0) is self._initial

    def is_private(self, page: int) -> bool:
        """Whether *page* is private. If not, it is shared."""
        private = self._private.get(page)
        assert private is not None
        return private

    def first(self, start: int, end: int, *, private: bool) -> int | None:
        """The first page from *start* to *end* that is private, or shared."""
        for first, _, value in self.since(start, end):
            if value is private:
                return first
        return None

    def kinds(self, start: int, end: int) -> Kinds:
        """The kinds of the pages from *start* to *end*, which is not empty."""
        private = self.is_private(start)
        if self.first(start, end, private=not private) is not None:
            return BOTH
        return PRIVATE if private else SHARED

    def has_room(self, start: int, end: int) -> bool:
        """Whether the pages from *start* to *end* may be made one range."""
        # At most, one range is split into three.
        return (
            len(self._private) + 2 <= self._most
            or len(list(islice(self.since(start, end), 3))) == 3
        )

    def set(self, start: int, end: int, *, private: bool) -> None:
        """Make all pages from *start* to *end* private, or shared."""
        self._private.set(start, end, private)

    def since(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Ranges with their attribute from *start* on, clipped to *end*.

        The iterator is not valid after a change.
        """
        for first, stop, private in self._private.since(start):
            if max(first, start) >= end:
                return
            yield max(first, start), min(stop, end), private

    def cut(
        self, extents: Iterable[Extent], granule: int, frames_per_page: int
    ) -> list[Extent]:
        """Cut *extents* where attributes change, and correct their orders.

        Where huge pages of *granule* pages are split, a folio is no larger than a page
        unless all of its huge page is private. With a *granule* of 1 orders stay.
        """
        base = frames_per_page.bit_length() - 1
        found: list[Extent] = []
        for offset, pfn, count, order in extents:
            for first, stop, private in self.since(offset, offset + count):
                for start, end, whole in self._parts(first, stop, private, granule):
                    size = order if whole else min(order, base)
                    at = pfn + (start - offset) * frames_per_page
                    found.append(Extent(start, at, end - start, size))
        return found

    def _parts(
        self, start: int, end: int, private: bool, granule: int
    ) -> Iterator[tuple[int, int, bool]]:
        """Parts of pages with one attribute, and whether their huge pages are whole."""
        if granule == 1 or not private:
            yield start, end, granule == 1
            return
        # Only the first and the last huge page may have other pages, too.
        first, last = start // granule * granule, -(-end // granule) * granule
        low = start if self._is_whole(first, granule) else min(first + granule, end)
        high = end if self._is_whole(last - granule, granule) else last - granule
        high = max(low, high)
        for part in ((start, low, False), (low, high, True), (high, end, False)):
            if part[0] < part[1]:
                yield part

    def _is_whole(self, start: int, granule: int) -> bool:
        return self.first(start, start + granule, private=False) is None
