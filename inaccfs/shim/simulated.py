"""Simulated page frames, of memory that does not exist.

They serve to study orders and fragmentation, and they serve users to whom the kernel
shows no real frames. The same calls in the same order give the same frames. The file's
pages are also allocated in the backing.
"""

from __future__ import annotations

import errno
import os
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.errnos import os_error
from inaccfs.shim.buddy import Buddy
from inaccfs.shim.call import PageRange
from inaccfs.shim.frameoptions import FRAME_BYTES
from inaccfs.shim.frames import (
    Extent,
    Fetched,
    Punched,
    Table,
    allocate,
    whole_folios,
)
from inaccfs.shim.rangemap import RangeMap

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.shim.buddy import Watch
    from inaccfs.shim.frameoptions import SimulatedMemory

FIRST_PFN: Final = 0x100000
"""The first frame: at 4 GiB, where most memory of a PC is."""


class SimulatedSource:
    """Gives simulated frames to the files of one mount."""

    name: Final = "simulated"
    pinning: Final = "simulated"

    def __init__(self, memory: SimulatedMemory, watch: Watch | None = None) -> None:
        """*watch* is that of `Buddy`, called with a lock held, so it must not block."""
        frames = memory.size // FRAME_BYTES
        self.largest_order: Final = memory.order
        self.buddy: Final = Buddy(frames, frames * memory.fragmentation // 100, watch)
        # Failed frames, counted from 0. They never become free.
        self.poisoned: Final[RangeMap[bool]] = RangeMap()
        # Guards both: files fetch in worker threads.
        self.lock: Final = Lock()

    def open(self, fd: int, page_size: int) -> SimulatedFrames:
        """The frames of one file."""
        return SimulatedFrames(self, fd, page_size)

    def close(self) -> None:
        """Nothing to do."""


class _Folios(NamedTuple):
    """Frames for some pages, in folios of one order. *start* counts frames from 0."""

    offset: int
    start: int
    order: int
    # In pages of the file.
    pages: int


class SimulatedFrames:
    """One file's frames. See `inaccfs.shim.frames.Frames`.

    A page gets its frame together with its whole folio, as on a fault on a tmpfs with
    huge pages. That is the largest naturally aligned block of pages that lies inside
    the file, has no frames yet, and for which there is a free block of frames. Frames
    of punched pages become free with `free` or `close`, not before.
    """

    def __init__(self, source: SimulatedSource, fd: int, page_size: int) -> None:
        self.fd = fd
        self._source: Final = source
        self._page_size: Final = page_size
        self._per_page: Final = page_size // FRAME_BYTES
        self._page_order: Final = self._per_page.bit_length() - 1
        self._table: Final = Table(self._per_page)
        # Frames of punched pages that are not free yet, counted from 0. Guarded by
        # _lock: a worker thread punches while the trio loop frees.
        self._punched: RangeMap[bool] = RangeMap()
        # Pages that have failed. Guarded by _lock, too.
        self._poisoned: set[int] = set()
        self._lock: Final = Lock()
        self._closed = False

    @property
    def pages(self) -> int:
        return self._table.pages

    def extents(self) -> list[Extent]:
        return self._table.extents()

    def extents_since(self, start: int, most: int) -> list[Extent]:
        return self._table.since(start, most)

    def known(self, start: int, end: int) -> list[Extent] | None:
        return self._table.whole(start, end)

    def reach(self, start: int, end: int) -> PageRange:
        gaps = self._table.gaps(start, end)
        if not gaps:
            return PageRange(start, end)
        pages = self._pages_of_file()
        low, _ = self._room(*gaps[0], pages)
        _, high = self._room(*gaps[-1], pages)
        return PageRange(min(low, start), max(high, end))

    def _pages_of_file(self) -> int:
        return -(-os.fstat(self.fd).st_size // self._page_size)

    @property
    def _largest(self) -> int:
        """The largest order of a folio, in pages."""
        return self._source.largest_order if self._page_order == 0 else 0

    def fetch(self, start: int, end: int, *, reach: bool = True) -> Fetched:
        """See `Frames.fetch`.

        Raises:
            OSError: ENOSPC, the backing is full; ENOMEM, the simulated memory has no
                free frame, as when shmem fails to allocate a page.
        """
        gaps = self._table.gaps(start, end)
        if gaps:
            pages = self._pages_of_file()
            try:
                self._fill(gaps, pages, reach=reach)
            except OSError as exc:
                if exc.errno != errno.ENOSPC or not reach:
                    raise
                # The pages asked for may fit without the rest of their folios.
                self._fill(gaps, pages, reach=False)
        return Fetched(self._table.look(start, end), [])

    def _fill(self, gaps: list[tuple[int, int]], pages: int, *, reach: bool) -> None:
        """Give frames to *gaps*; with *reach* also to the rest of their folios."""
        taken: list[_Folios] = []
        try:
            with self._source.lock:
                ceiling = self._largest
                for start, end in gaps:
                    low, high = self._room(start, end, pages) if reach else (start, end)
                    ceiling = self._take(start, end, low, high, ceiling, taken)
            at, last = taken[0].offset, taken[-1]
            size = (last.offset + last.pages - at) * self._page_size
            allocate(self.fd, at * self._page_size, size)
        except BaseException:
            for one in taken:
                self._give_back(one.start, one.pages * self._per_page)
            raise
        for offset, start, order, count in taken:
            extent = Extent(offset, FIRST_PFN + start, count, order)
            self._table.record(offset, offset + count, [extent])

    def _room(self, start: int, end: int, pages: int) -> tuple[int, int]:
        """The gap [start, end), widened to all that a folio with one of it may have."""
        folio = 1 << self._largest
        low, high = start & -folio, min((end + folio - 1) & -folio, pages)
        high = max(high, end)
        before = self._table.look(low, start) if low < start else []
        after = self._table.look(end, high) if end < high else []
        if before:
            low = before[-1].offset + before[-1].count
        if after:
            high = after[0].offset
        return low, high

    def _take(
        self,
        start: int,
        end: int,
        low: int,
        high: int,
        ceiling: int,
        taken: list[_Folios],
    ) -> int:
        """Take frames for [start, end); folios may reach from *low* to *high*.

        Adds them to *taken*. *ceiling* is the largest order to try, in pages. Returns
        the ceiling for the next call, which is lower once larger blocks have run out.
        """
        while start < end:
            order = ceiling
            while start & -1 << order < low or (start | (1 << order) - 1) >= high:
                order -= 1
            first = start & -1 << order
            # Where alignment sets the order, the next folio may be a larger one.
            most = end - first if order == ceiling else 1
            block = self._source.buddy.take(
                order + self._page_order, most << self._page_order
            )
            if block is not None:
                count = 1 << block[1] - self._page_order
                folio_order = order + self._page_order
                taken.append(_Folios(first, block[0], folio_order, count))
                start = low = first + count
            elif order == 0:
                raise os_error(errno.ENOMEM)
            else:
                ceiling = order - 1
        return ceiling

    def punch(self, start: int, end: int, punch: Callable[[], None]) -> Punched:
        punch()
        removed = self._table.look(start, end)
        self._retire(start, end)
        self._split_at(start, end)
        self._table.record(start, end, [])
        self._to_be_freed(removed)
        return Punched(removed, [])

    def move(self, start: int, end: int) -> list[Extent]:
        old = self._table.look(start, end)
        taken: list[_Folios] = []
        try:
            with self._source.lock:
                ceiling = self._largest
                for offset, _, count, _ in old:
                    stop = offset + count
                    ceiling = self._take(offset, stop, offset, stop, ceiling, taken)
        except BaseException:
            for one in taken:
                self._give_back(one.start, one.pages * self._per_page)
            raise
        self._split_at(start, end)
        for offset, first, order, count in taken:
            extent = Extent(offset, FIRST_PFN + first, count, order)
            self._table.record(offset, offset + count, [extent])
        self._to_be_freed(old)
        return old

    def _split_at(self, start: int, end: int) -> None:
        """A folio of which only a part is in [start, end) becomes base pages."""
        low, high = whole_folios(self._table.look, start, end)
        for one in [*self._table.look(low, start), *self._table.look(end, high)]:
            base = one._replace(order=0)
            self._table.record(one.offset, one.offset + one.count, [base])

    def _to_be_freed(self, extents: list[Extent]) -> None:
        with self._lock:
            for _, pfn, count, _ in extents:
                first = pfn - FIRST_PFN
                self._punched.set(first, first + count * self._per_page, True)

    def poison(self, page: int) -> None:
        # Look the frame up when the page is punched: the page may have none yet, and
        # may get one later with another page's folio.
        with self._lock:
            self._poisoned.add(page)

    def _retire(self, start: int, end: int) -> None:
        """Take the frames of failed pages out of use, before [start, end) is freed."""
        with self._lock:
            failed = {page for page in self._poisoned if start <= page < end}
            self._poisoned -= failed
        for page in failed:
            for one in self._table.look(page, page + 1):
                first = one.pfn - FIRST_PFN
                with self._source.lock:
                    self._source.poisoned.set(first, first + self._per_page, True)

    def free(self, pfn: int, count: int) -> None:
        if self._closed:
            return
        start, size = pfn - FIRST_PFN, count * self._per_page
        with self._lock:
            if self._punched.gaps(start, start + size):
                raise ValueError(
                    f"frames {pfn:#x} and {count} pages on are not punched ones"
                )
            self._punched.delete(start, start + size)
        self._give_back(start, size)

    def close(self) -> None:
        self._closed = True
        self._retire(0, 1 << 63)
        for _, pfn, count, _ in self._table.extents():
            self._give_back(pfn - FIRST_PFN, count * self._per_page)
        with self._lock:
            punched, self._punched = self._punched, RangeMap()
        for start, end, _ in punched:
            self._give_back(start, end - start)
        self._table.clear()

    def _give_back(self, start: int, size: int) -> None:
        source = self._source
        with source.lock:
            for first, stop in source.poisoned.gaps(start, start + size):
                source.buddy.free(first, stop - first)
