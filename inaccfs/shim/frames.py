"""Which page frames a file's pages are in: what all sources of frames share.

inaccessible_get_pfn() of the v8 patch returns a page's frame and the order of its
folio. Frames are real (`inaccfs.shim.pagemap`) or simulated (`inaccfs.shim.simulated`).
"""

from __future__ import annotations

from itertools import islice
from operator import itemgetter
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from inaccfs import syscalls
from inaccfs.mmcalls import KEEP_GIL_BYTES
from inaccfs.shim.frameoptions import FRAME_BYTES, HUGE_ORDER
from inaccfs.shim.rangemap import RangeMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from inaccfs.shim.call import PageRange


class Extent(NamedTuple):
    """Contiguous pages in contiguous frames, whose folios are all of one order."""

    # offset and count are in pages of the file.
    offset: int
    # The frame of the page at offset. It need not be the first frame of its folio.
    pfn: int
    count: int  # type: ignore[assignment] # tuple has a method of that name
    # The order of the folios, in 4 KiB frames: 0, or 9 for a huge page of 2 MiB.
    order: int


class Fetched(NamedTuple):
    """The result of `Frames.fetch`."""

    # Where the pages are.
    extents: list[Extent]
    # The old places of known pages that have moved.
    moved: list[Extent]


class Punched(NamedTuple):
    """The result of `Frames.punch`."""

    # The known pages of the punched range.
    removed: list[Extent]
    # The old places of known pages outside of the range that have moved.
    moved: list[Extent]


class Frames(Protocol):
    """The frames of one file. Offsets, starts, ends and counts are pages of the file.

    Only one of `fetch`, `punch` and `close` may run at a time. They block, so they may
    run in a worker thread. All others block for microseconds at most, and may run
    beside them.
    """

    # An O_RDWR fd of the backing file. The caller owns it, and may replace it.
    fd: int

    @property
    def pages(self) -> int:
        """How many pages are known. O(1)."""

    def extents(self) -> list[Extent]:
        """All known pages."""

    def extents_since(self, start: int, most: int) -> list[Extent]:
        """The first *most* extents of known pages from page *start* on."""

    def known(self, start: int, end: int) -> list[Extent] | None:
        """The extents of [start, end); None if a page is unknown or may have moved."""

    def reach(self, start: int, end: int) -> PageRange:
        """[start, end), widened by what `fetch` of it may allocate besides."""

    def fetch(self, start: int, end: int, *, reach: bool = True) -> Fetched:
        """Allocate the holes of [start, end), inside the file, and find its frames.

        Without *reach* no other page is allocated, not even the rest of a folio.
        Extents are as few as the frames allow. On an error no page becomes known.

        Raises:
            OSError: ENOSPC, the backing is full; ENOMEM, there is no free frame.
        """

    def punch(self, start: int, end: int, punch: Callable[[], None]) -> Punched:
        """Unpin [start, end), then call *punch*, which removes it from the backing.

        If *punch* raises, the pages stay known, and the exception is passed on.
        """

    def move(self, start: int, end: int) -> list[Extent]:
        """Move the known pages of [start, end) to other frames; return the old places.

        Free these frames like those of punched pages.

        Raises:
            OSError: ENOMEM, there are no free frames; EOPNOTSUPP, frames are real.
        """

    def free(self, pfn: int, count: int) -> None:
        """The last reference to these punched pages has been dropped."""

    def poison(self, page: int) -> None:
        """The memory of *page*, which must be allocated, has failed.

        A simulated frame is not reused after the page has been punched, as none with
        PG_hwpoison is: free_pages_prepare() in mm/page_alloc.c. A real frame may be.
        """

    def close(self) -> None:
        """Forget all pages, and free their frames. May be called again."""


class FrameSource(Protocol):
    """Where the frames of a mount's files come from."""

    @property
    def name(self) -> str:
        """ "pagemap" or "simulated"."""

    @property
    def pinning(self) -> str:
        """For people: what pins fetched pages, or why nothing does."""

    def open(self, fd: int, page_size: int) -> Frames:
        """The frames of one file; *fd* is an O_RDWR fd of it in the backing."""

    def close(self) -> None:
        """Free everything. The files must have been closed before."""


def in_pieces(extents: Iterable[Extent], most: int, page_size: int) -> Iterator[Extent]:
    """*extents*, those of more than *most* pages in parts."""
    per_page = page_size // FRAME_BYTES
    for extent in extents:
        offset, pfn, count, order = extent
        if count <= most:
            yield extent
            continue
        for at in range(0, count, most):
            pages = min(most, count - at)
            yield Extent(offset + at, pfn + at * per_page, pages, order)


def clipped(
    extents: Iterable[Extent], start: int, end: int, frames_per_page: int
) -> list[Extent]:
    """The parts of *extents* in [start, end)."""
    found = []
    for extent in extents:
        first = max(extent.offset, start)
        count = min(extent.offset + extent.count, end) - first
        if count > 0:
            pfn = extent.pfn + (first - extent.offset) * frames_per_page
            found.append(Extent(first, pfn, count, extent.order))
    return found


class Table:
    """The known frames of one file. Thread-safe."""

    def __init__(self, frames_per_page: int, load: int | None = None) -> None:
        """*load* is that of `RangeMap`; None for its default."""
        self._per_page: Final = frames_per_page
        # By offset. The value of each range is its extent, so that a lookup only
        # copies.
        self._runs: RangeMap[Extent] = RangeMap() if load is None else RangeMap(load)
        # A worker thread may change the table while the trio loop looks at it.
        self._lock: Final = Lock()

    @property
    def pages(self) -> int:
        """How many pages are in the table. O(1)."""
        return self._runs.size

    def extents(self) -> list[Extent]:
        """All pages."""
        with self._lock:
            return [extent for _, _, extent in self._runs]

    def since(self, start: int, most: int) -> list[Extent]:
        """The first *most* extents of the table from page *start* on."""
        with self._lock:
            found = [extent for _, _, extent in islice(self._runs.since(start), most)]
        if found:
            found[0] = self._after(found[0], start)
        return found

    def look(self, start: int, end: int) -> list[Extent]:
        """The known pages of [start, end)."""
        with self._lock:
            return self._look(start, end)

    def whole(self, start: int, end: int) -> list[Extent] | None:
        """Like `look`, but None unless all of [start, end) is known."""
        with self._lock:
            return None if self._runs.gaps(start, end) else self._look(start, end)

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are not known."""
        with self._lock:
            return self._runs.gaps(start, end)

    def record(self, start: int, end: int, extents: Iterable[Extent]) -> None:
        """Replace the known pages of [start, end) by *extents*.

        These lie inside of it, in order, and no two of them could be merged.
        """
        new = list(extents)
        with self._lock:
            before, after = self._runs.get(start - 1), self._runs.get(end)
            # An extent that crosses or touches an end is cut there, or merged.
            if before is not None:
                rest = before._replace(count=start - before.offset)
                if new and self._go_on(rest, new[0]):
                    new[0] = rest._replace(count=rest.count + new[0].count)
                elif before.offset + before.count > start:
                    new.insert(0, rest)
                start = min(start, new[0].offset) if new else start
            if after is not None:
                rest = self._after(after, end)
                stop = rest.offset + rest.count
                if new and self._go_on(new[-1], rest):
                    new[-1] = new[-1]._replace(count=stop - new[-1].offset)
                    end = stop
                elif after.offset < end:
                    new.append(rest)
                    end = stop
            self._runs.splice(start, end, *_bounds(new), new)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._runs.clear()

    def _look(self, start: int, end: int) -> list[Extent]:
        found = self._runs.values(start, end)
        if found:
            found[0] = self._after(found[0], start)
            last = found[-1]
            if last.offset + last.count > end:
                found[-1] = last._replace(count=end - last.offset)
        return found

    def _go_on(self, one: Extent, other: Extent) -> bool:
        """Whether *other* continues *one*, so that they can be merged."""
        return (
            one.offset + one.count == other.offset
            and one.pfn + one.count * self._per_page == other.pfn
            and one.order == other.order
        )

    def _after(self, extent: Extent, start: int) -> Extent:
        """*extent* without the pages before *start*."""
        if extent.offset >= start:
            return extent
        skipped = start - extent.offset
        return Extent(
            start,
            extent.pfn + skipped * self._per_page,
            extent.count - skipped,
            extent.order,
        )


def _bounds(extents: list[Extent]) -> tuple[list[int], list[int]]:
    """The starts and the ends of *extents*, of which there may be very many."""
    starts = list(map(itemgetter(0), extents))
    if not starts:
        return [], []
    last = starts[-1] + extents[-1].count
    if sum(map(itemgetter(2), extents)) == last - starts[0]:
        # There is no gap: each ends where the next one begins.
        return starts, [*starts[1:], last]
    return starts, [extent.offset + extent.count for extent in extents]


def allocate(fd: int, offset: int, length: int) -> None:
    """Fill the holes of a part of a file, in bytes. fallocate(2), KEEP_SIZE.

    Raises:
        OSError: ENOSPC. A tmpfs has then freed again what it had allocated.
    """
    inline = length <= KEEP_GIL_BYTES
    call = syscalls.fallocate_now if inline else syscalls.fallocate
    while True:
        try:
            return call(fd, syscalls.FALLOC_FL_KEEP_SIZE, offset, length)
        except InterruptedError:
            # A hugetlbfs stops for any signal, also for the task work by which io_uring
            # closes a ring. Neither is a reason to stop here.
            continue


def differing(
    old: Iterable[Extent], new: Iterable[Extent], frames_per_page: int
) -> list[Extent]:
    """The parts of *old* that are in other frames in *new*. Both are in order."""
    table = Table(frames_per_page)
    now = list(new)
    if now:
        table.record(now[0].offset, now[-1].offset + now[-1].count, now)
    moved = []
    for offset, pfn, count, order in old:
        for at, now_pfn, length, _ in table.look(offset, offset + count):
            was = pfn + (at - offset) * frames_per_page
            if was != now_pfn:
                moved.append(Extent(at, was, length, order))
    return moved


def split_folios(
    extents: Iterable[Extent], pages: Iterable[int], frames_per_page: int
) -> list[Extent]:
    """*extents*, after each folio with one of *pages* has been split to order 0."""
    table = Table(frames_per_page)
    for extent in extents:
        offset, pfn, count, order = extent
        table.record(offset, offset + count, [extent])
        span = (1 << order) // frames_per_page
        for folio in {page & -span for page in pages} if span > 1 else ():
            start, end = max(folio, offset), min(folio + span, offset + count)
            if start < end:
                base = Extent(
                    start, pfn + (start - offset) * frames_per_page, end - start, 0
                )
                table.record(start, end, [base])
    return table.extents()


def whole_folios(
    look: Callable[[int, int], list[Extent]], start: int, end: int
) -> tuple[int, int]:
    """Widen [start, end) of a tmpfs to whole folios.

    *look* returns the known pages of a range, in order. A folio counts only if a page
    of it outside of [start, end) is known.
    """
    low, high = start, end
    huge = 1 << HUGE_ORDER
    # If the nearest known page is of another folio, so are all those farther away.
    if start % huge:
        for offset, _, count, order in look(start & -huge, start)[-1:]:
            folio = (offset + count - 1) & -1 << order
            low = folio if folio + (1 << order) > start else start
    if end % huge:
        for offset, _, _, order in look(end, (end | huge - 1) + 1)[:1]:
            folio = offset & -1 << order
            high = folio + (1 << order) if folio < end else end
    return low, high
