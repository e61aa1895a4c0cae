"""The poisoned pages of one file, which memory-failure has reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.errnos import EHWPOISON
from inaccfs.errors import PageError
from inaccfs.shim.frameoptions import FRAME_BYTES
from inaccfs.shim.frames import split_folios

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.shim.frames import Extent


class Poisoned:
    """Pages with PG_hwpoison. They stay poisoned until they are punched."""

    __slots__ = ("_changed", "_pages", "_per_page")

    def __init__(self, page_size: int, changed: Callable[[], None]) -> None:
        """*changed* is called after each change."""
        self._pages: Final[set[int]] = set()
        self._per_page: Final = page_size // FRAME_BYTES
        self._changed: Final = changed

    def __len__(self) -> int:
        return len(self._pages)

    def add(self, page: int) -> None:
        """Poison a page.

        Raises:
            OSError: EHWPOISON, if it is poisoned already, as memory_failure() says.
        """
        if page in self._pages:
            raise OSError(EHWPOISON, f"page {page} is poisoned already")
        self._pages.add(page)
        self._changed()

    def first(self, start: int, end: int) -> int | None:
        """The first page from *start* to *end* that is poisoned."""
        return min((page for page in self._pages if start <= page < end), default=None)

    def refusal(self, start: int, end: int) -> OSError | None:
        """The error of get-pfn for pages from *start* to *end*, if one is poisoned."""
        if (bad := self.first(start, end)) is None:
            return None
        return PageError(EHWPOISON, f"page {bad} is poisoned: punch it", bad)

    def within(self, start: int, end: int) -> list[int]:
        """The poisoned pages from *start* to *end*, in order."""
        return sorted(page for page in self._pages if start <= page < end)

    def heal(self, start: int, end: int) -> None:
        """Forget punched pages: the memory that replaces them is good."""
        if self._pages:
            self._pages.difference_update(
                [page for page in self._pages if start <= page < end]
            )
            self._changed()

    def split(self, extents: list[Extent]) -> list[Extent]:
        """*extents*, with folios that have a poisoned page split into single pages.

        memory_failure() splits such a folio. Otherwise a peer that gets another page of
        the folio would map all of it again.
        """
        if not self._pages:
            return extents
        return split_folios(extents, self._pages, self._per_page)
