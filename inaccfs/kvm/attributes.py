"""Which gfns are private and which are shared; patch 5/8.

The kernel has an xarray with an entry for each gfn that differs from the default.
Here a sorted list holds the gfns at which private and shared alternate.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


class MemoryAttributes:
    """The attributes of gfns. Changed under mmu_lock; read with and without it.

    A gfn that was never converted is private in v8, and shared since v10.
    """

    def __init__(self, *, default_private: bool = True) -> None:
        self._default: Final = default_private
        # Sorted. Items at even indexes begin a run that differs from the default, those
        # at odd ones end it. The list is replaced, never changed in place: so a reader
        # without the lock sees one consistent state.
        self._bounds: list[int] = []

    def is_private(self, gfn: int) -> bool:
        """Whether *gfn* has the private attribute."""
        return self._default != bool(bisect_right(self._bounds, gfn) & 1)

    def run(self, gfn: int, limit: int) -> tuple[bool, int]:
        """Whether *gfn* is private, and the next gfn, at most *limit*, that differs."""
        bounds = self._bounds
        index = bisect_right(bounds, gfn)
        end = min(limit, bounds[index]) if index < len(bounds) else limit
        return self._default != bool(index & 1), end

    def set(self, start: int, end: int, *, private: bool) -> bool:
        """Set the attribute of the gfns *start* to *end*; False if nothing changed."""
        bounds = self._bounds
        other = private != self._default
        first, last = bisect_left(bounds, start), bisect_right(bounds, end)
        new = []
        if bool(first & 1) != other:
            new.append(start)
        if bool(last & 1) != other:
            new.append(end)
        if bounds[first:last] == new:
            return False
        self._bounds = [*bounds[:first], *new, *bounds[last:]]
        return True

    def mixed(self, start: int, end: int) -> bool:
        """Whether the gfns from *start* to *end* are partly private, partly shared.

        The kernel caches the answer for each huge page, and updates the first and last
        one of a changed range (patch 6/8). Searching the list costs as little, and
        cannot be out of date.
        """
        bounds = self._bounds
        return bisect_right(bounds, start) != bisect_left(bounds, end)

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The runs between two gfns: first gfn, end, and whether it is private."""
        while start < end:
            private, stop = self.run(start, end)
            yield start, stop, private
            start = stop
