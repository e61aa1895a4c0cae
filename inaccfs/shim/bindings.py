"""Which notifiers of a file are bound to which of its pages: restrictedmem_bind()."""

from __future__ import annotations

from operator import itemgetter
from typing import Final, Generic, TypeVar

from inaccfs.shim.call import PageRange
from inaccfs.shim.rangemap import RangeMap, add

Notifier = TypeVar("Notifier")


class Bindings(Generic[Notifier]):
    """The bound notifiers of one file. Starts and ends are pages."""

    __slots__ = ("_exclusive", "_numbers", "_overlap_errno", "_shared")

    def __init__(self, overlap_errno: int) -> None:
        self._overlap_errno: Final = overlap_errno
        # How many notifiers are bound to a page, for each page that has one.
        self._numbers: Final[RangeMap[int]] = RangeMap()
        # The notifiers themselves: the exclusive ones by page, others by range.
        self._exclusive: Final[RangeMap[Notifier]] = RangeMap()
        self._shared: Final[dict[Notifier, PageRange]] = {}

    def cover(self, start: int, end: int) -> bool:
        """Whether notifiers are bound to each page from *start* to *end*."""
        return not self._numbers.gaps(start, end)

    def first(self, start: int, end: int) -> int | None:
        """The first page from *start* to *end* that a notifier is bound to."""
        first, _, _ = next(self._numbers.since(start), (end, end, 0))
        return max(first, start) if first < end else None

    def add(self, notifier: Notifier, start: int, end: int, *, exclusive: bool) -> None:
        """Bind a notifier that is not bound.

        Raises:
            OSError: *overlap_errno*, if pages are bound to another notifier, and one of
                the two bindings is *exclusive*.
        """
        taken = (self._numbers if exclusive else self._exclusive).overlapping(
            start, end
        )
        if taken:
            first, stop, _ = taken[0]
            raise OSError(
                self._overlap_errno,
                f"pages {max(first, start)} to {min(stop, end)} are bound already: "
                "unbind them",
            )
        add(self._numbers, start, end, 1)
        if exclusive:
            self._exclusive.set(start, end, notifier)
        else:
            self._shared[notifier] = PageRange(start, end)

    def remove(self, notifier: Notifier, start: int, end: int) -> None:
        """Undo `add`."""
        add(self._numbers, start, end, -1)
        if self._shared.pop(notifier, None) is None:
            self._exclusive.delete(start, end)

    def bound_to(self, start: int, end: int) -> dict[Notifier, int]:
        """The notifiers bound to one of these pages, each with the first of them."""
        alone = self._exclusive.clipped(start, end)
        found = [(first, one) for first, _, one in alone]
        if self._shared and start < end:
            found += [
                (max(first, start), one)
                for one, (first, stop) in self._shared.items()
                if first < end and start < stop
            ]
            found.sort(key=itemgetter(0))
        return {one: first for first, one in found}
