"""Which page frames a file's pages are in: what every source of frames has in common.

inaccessible_get_pfn() of the seed tells a page's frame and the order of its folio. The
frames are real (`inaccfs.shim.pagemap`) or made up (`inaccfs.shim.simulated`).
"""

from __future__ import annotations

from itertools import islice
from operator import itemgetter
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from inaccfs import syscalls
from inaccfs.shim.frameoptions import HUGE_ORDER
from inaccfs.shim.rangemap import RangeMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# So much is allocated in well under a millisecond, and may keep the GIL.
_QUICK_BYTES: Final = 2 << 20


class Extent(NamedTuple):
    """A run of pages whose frames are contiguous and belong to folios of one order."""

    # In pages of the file, as is count.
    offset: int
    # The frame of the page at offset, which need not be the first of its folio.
    pfn: int
    count: int  # type: ignore[assignment] # tuple has a method of that name
    # Of the folios, in 4 KiB frames: 0, or 9 for a huge page of 2 MiB.
    order: int


class Fetched(NamedTuple):
    """What `Frames.fetch` has found."""

    extents: list[Extent]
    # Pages whose frames had been known and have changed: as they were known before.
    moved: list[Extent]


class Punched(NamedTuple):
    """What `Frames.punch` has taken away."""

    # What had been known in the punched range.
    removed: list[Extent]
    # Known pages outside of it whose frames have changed: as they were known before.
    moved: list[Extent]


class Frames(Protocol):
    """The frames of one file. Offsets, starts, ends and counts are pages of the file.

    Only one of `fetch`, `punch` and `close` may run at once for a file. They block, so
    they may run in a worker thread; the rest can be called at any time, and takes no
    system call.
    """

    # An O_RDWR fd of the backing file, owned by who gave it; may be replaced.
    fd: int

    @property
    def pages(self) -> int:
        """How many pages are known. O(1). One that is being punched may count twice."""

    def extents(self) -> list[Extent]:
        """All that is known."""

    def extents_since(self, start: int, most: int) -> list[Extent]:
        """The first *most* of what is known from page *start* on."""

    def known(self, start: int, end: int) -> list[Extent] | None:
        """Where [start, end) is, if all of it was fetched and cannot have moved."""

    def fetch(self, start: int, end: int) -> Fetched:
        """Allocate what is missing of [start, end), which lies inside the file.

        As few extents as the frames allow. On an error nothing more is known than was.

        Raises:
            OSError: ENOSPC, when the backing is full; ENOMEM, when there is no frame.
        """

    def punch(self, start: int, end: int, punch: Callable[[], None]) -> Punched:
        """Let *punch* take [start, end) out of the backing, with no pin in its way.

        What it raises is passed on, and all is as it was before.
        """

    def free(self, pfn: int, count: int) -> None:
        """Nobody has a reference any more to these pages, which were punched."""

    def poison(self, page: int) -> None:
        """The memory of *page*, which is allocated, has failed.

        Made-up frames do not come back when it has been punched: neither does what
        has PG_hwpoison, see free_pages_prepare() in mm/page_alloc.c. Real ones do.
        """

    def close(self) -> None:
        """Forget all, and give everything back. May be called again."""


class FrameSource(Protocol):
    """Where the frames of a mount's files come from."""

    @property
    def name(self) -> str:
        """ "pagemap" or "simulated"."""

    @property
    def pinning(self) -> str:
        """For people: what keeps fetched frames where they are, or why nothing does."""

    def open(self, fd: int, page_size: int) -> Frames:
        """The frames of one file: *fd* is an O_RDWR fd of it in the backing."""

    def close(self) -> None:
        """Give everything back. The files must have been closed before."""


class Table:
    """What is known of one file's frames, in the process. Guarded by its own lock."""

    def __init__(self, frames_per_page: int) -> None:
        self._per_page: Final = frames_per_page
        # By offset. The value of a range is the extent that it is: to look is to copy.
        self._runs: RangeMap[Extent] = RangeMap()
        # A worker thread may change the table while the trio loop looks at it.
        self._lock: Final = Lock()

    @property
    def pages(self) -> int:
        """How many pages are in the table. O(1)."""
        return self._runs.size

    def extents(self) -> list[Extent]:
        """All of the table."""
        with self._lock:
            return [extent for _, _, extent in self._runs]

    def since(self, start: int, most: int) -> list[Extent]:
        """The first *most* of what the table has from *start* on."""
        with self._lock:
            found = [extent for _, _, extent in islice(self._runs.since(start), most)]
        if found:
            found[0] = self._after(found[0], start)
        return found

    def look(self, start: int, end: int) -> list[Extent]:
        """What the table has of [start, end)."""
        with self._lock:
            return self._look(start, end)

    def whole(self, start: int, end: int) -> list[Extent] | None:
        """The same, or None if not all is there."""
        with self._lock:
            return None if self._runs.gaps(start, end) else self._look(start, end)

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is not in the table."""
        with self._lock:
            return self._runs.gaps(start, end)

    def record(self, start: int, end: int, extents: Iterable[Extent]) -> None:
        """Let [start, end) be at *extents*, and nowhere else.

        They lie in it, in order, and no two of them are one.
        """
        new = list(extents)
        with self._lock:
            before, after = self._runs.get(start - 1), self._runs.get(end)
            # What reaches or touches from outside is cut there, or goes on.
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
            self._runs = RangeMap()

    def _look(self, start: int, end: int) -> list[Extent]:
        found = self._runs.values(start, end)
        if found:
            found[0] = self._after(found[0], start)
            last = found[-1]
            if last.offset + last.count > end:
                found[-1] = last._replace(count=end - last.offset)
        return found

    def _go_on(self, one: Extent, other: Extent) -> bool:
        """Whether two extents are one."""
        return (
            one.offset + one.count == other.offset
            and one.pfn + one.count * self._per_page == other.pfn
            and one.order == other.order
        )

    def _after(self, extent: Extent, start: int) -> Extent:
        """What of *extent* is not before page *start*."""
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
    """Where extents begin and end. There may be very many."""
    starts = list(map(itemgetter(0), extents))
    if not starts:
        return [], []
    last = starts[-1] + extents[-1].count
    if sum(map(itemgetter(2), extents)) == last - starts[0]:
        # Without a gap each ends where the next one begins.
        return starts, [*starts[1:], last]
    return starts, [extent.offset + extent.count for extent in extents]


def allocate(fd: int, offset: int, length: int) -> None:
    """Fill the holes of a part of a file, in bytes. fallocate(2), KEEP_SIZE.

    Raises:
        OSError: ENOSPC. A tmpfs has taken back then what it gave.
    """
    quick = length <= _QUICK_BYTES
    call = syscalls.fallocate_quick if quick else syscalls.fallocate
    while True:
        try:
            return call(fd, syscalls.FALLOC_FL_KEEP_SIZE, offset, length)
        except InterruptedError:
            # A hugetlbfs stops for any signal, and for what io_uring has to do when a
            # ring is closed. Nobody waits for either here.
            continue


def joined(extents: Iterable[Extent], frames_per_page: int) -> list[Extent]:
    """*extents*, which are disjoint, in order, and those that go on made one."""
    table = Table(frames_per_page)
    for extent in sorted(extents):
        table.record(extent.offset, extent.offset + extent.count, [extent])
    return table.extents()


def differing(
    old: Iterable[Extent], new: Iterable[Extent], frames_per_page: int
) -> list[Extent]:
    """Of *old* what is in other frames in *new*. Both are in order."""
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
    """*extents* as they are when each folio with one of *pages* has been split."""
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
    """[start, end) of a tmpfs, and what of folios that are partly in it is outside.

    *look* gives the known pages of a range, in order; a folio none of which is known
    outside does not count.
    """
    low, high = start, end
    huge = 1 << HUGE_ORDER
    # The nearest known page tells: if it is of another folio, so are all behind it.
    if start % huge:
        for offset, _, count, order in look(start & -huge, start)[-1:]:
            folio = (offset + count - 1) & -1 << order
            low = folio if folio + (1 << order) > start else start
    if end % huge:
        for offset, _, _, order in look(end, (end | huge - 1) + 1)[:1]:
            folio = offset & -1 << order
            high = folio + (1 << order) if folio < end else end
    return low, high
