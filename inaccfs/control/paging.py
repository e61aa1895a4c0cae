"""Pages of a list: parts of a query's result that is too long for one reply."""

from __future__ import annotations

from heapq import nsmallest
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")
Place = TypeVar("Place")

MOST_ROWS: Final = 1000
"""The most rows of a page: their encoding as JSON takes some 2 ms."""

# Names of files may be as long as paths are, and so are in rows.
_NAME_BYTES: Final = 1 << 18


def most_rows(limit: int | None) -> int:
    """The most rows of a reply, if the peer has asked for *limit*."""
    return min(limit or MOST_ROWS, MOST_ROWS)


class Paging:
    """How much goes into one page."""

    def __init__(self, limit: int | None) -> None:
        self.limit: Final = most_rows(limit)
        self.slices: Final = Slices()
        self.rows: Final[list[Any]] = []
        self._bytes = 0

    @property
    def room(self) -> int:
        """The number of rows for which there is room."""
        return self.limit - len(self.rows)

    @property
    def has_room(self) -> bool:
        """Whether there is room for one more. The first row always has room."""
        return not self.rows or (self.room > 0 and self._bytes < _NAME_BYTES)

    def add(self, name: str, row: object) -> None:
        """Add a row of a file."""
        self.rows.append(row)
        self._bytes += len(name)

    def fill(self, name: str, rows: Iterable[tuple[object, Place]]) -> Place | None:
        """Add rows of a file; return the place of the first without room, if any."""
        for row, place in rows:
            if not self.has_room:
                return place
            self.add(name, row)
        return None

    async def first_of(
        self, found: Iterable[tuple[int, T]], start: int
    ) -> list[tuple[int, T]]:
        """The first from *start* on, in order of their keys: one more than fits."""
        most = self.limit + 1
        first: list[tuple[int, T]] = []
        for each in found:
            if each[0] >= start:
                first.append(each)
                if len(first) >= 4 * most:
                    first = nsmallest(most, first, key=itemgetter(0))
            await self.slices.give()
        return nsmallest(most, first, key=itemgetter(0))
