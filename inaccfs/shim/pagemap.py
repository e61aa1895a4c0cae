"""Real page frames: those that the kernel has allocated to the backing file.

A page is pinned first; then its frame is read from /proc/self/pagemap. Pinning may move
the page out of CMA or movable memory, so a frame that was read before is not reliable.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Final

from inaccfs import mmcalls
from inaccfs.errnos import os_error
from inaccfs.shim import pins
from inaccfs.shim.buffers import WINDOW_BYTES, Buffers, spans
from inaccfs.shim.call import PageRange
from inaccfs.shim.frameoptions import FRAME_BYTES
from inaccfs.shim.frames import (
    Extent,
    Fetched,
    Punched,
    Table,
    allocate,
    differing,
    whole_folios,
)
from inaccfs.shim.proc_pages import ProcPages

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.shim.buffers import Piece
    from inaccfs.shim.pins import Pins

# For up to this many pages, fallocate(2) costs less than checking whether it is needed.
_UNCHECKED_PAGES: Final = 16

# How often to look up a page that is being migrated. That takes microseconds.
_TRIES: Final = 1000


class PagemapSource:
    """Reads page frames from /proc, and pins pages."""

    name: Final = "pagemap"

    def __init__(
        self,
        proc: ProcPages,
        pins: Pins,
        *,
        large_folios: bool,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        """*window_bytes* is how much of a file is mapped at once."""
        self.proc: Final = proc
        self.pins: Final = pins
        self.large_folios: Final = large_folios
        self._window_bytes: Final = window_bytes
        self._files: set[PagemapFrames] = set()

    @property
    def pinning(self) -> str:
        movable = (
            0
            if not self.pins.refusal
            else sum(one.unpinned for one in list(self._files))
        )
        if not movable:
            return self.pins.description
        return (
            f"{self.pins.description}; {movable} pages can move ({self.pins.refusal}: "
            "raise the limit of locked memory, RLIMIT_MEMLOCK)"
        )

    def open(self, fd: int, page_size: int) -> PagemapFrames:
        """The frames of one file."""
        buffers = Buffers(self.pins, page_size, self._window_bytes)
        made = PagemapFrames(self, fd, page_size, buffers)
        self._files.add(made)
        return made

    def forget(self, frames: PagemapFrames) -> None:
        """Drop a file that has been closed."""
        self._files.discard(frames)

    def close(self) -> None:
        """Unpin all pages, and close the files in /proc."""
        self.pins.close()
        self.proc.close()


def make_source(
    *, large_folios: bool, movable: bool = False, window_bytes: int = WINDOW_BYTES
) -> PagemapSource:
    """A source of real frames; with *movable* it pins no page.

    Raises:
        OSError: the kernel does not show page frames to this process.
    """
    proc = ProcPages()
    if not proc.are_shown():
        proc.close()
        raise OSError(errno.EPERM, "the kernel shows all page frame numbers as 0")
    kind = pins.NoPins("the semantics let pages move") if movable else pins.choose()
    return PagemapSource(
        proc, kind, large_folios=large_folios, window_bytes=window_bytes
    )


class PagemapFrames:
    """One file's frames. See `inaccfs.shim.frames.Frames`."""

    def __init__(
        self, source: PagemapSource, fd: int, page_size: int, buffers: Buffers
    ) -> None:
        self.fd = fd
        self._source: Final = source
        self._page_size: Final = page_size
        self._per_page: Final = page_size // FRAME_BYTES
        # The frame of each page when it was last read. A page that a buffer pins is
        # still there. Every page in a buffer is in the table, except during a call.
        self._table: Final = Table(self._per_page)
        self._buffers: Final = buffers
        # Lets `known` read both consistently while a thread changes them.
        self._lock: Final = Lock()

    @property
    def pages(self) -> int:
        return self._table.pages

    @property
    def unpinned(self) -> int:
        """How many known pages are in no buffer."""
        return max(self.pages - self._buffers.ranges.size, 0)

    def extents(self) -> list[Extent]:
        return self._table.extents()

    def extents_since(self, start: int, most: int) -> list[Extent]:
        return self._table.since(start, most)

    def known(self, start: int, end: int) -> list[Extent] | None:
        with self._lock:
            if self._buffers.pinned(start, end):
                return self._table.look(start, end)
        return None

    def free(self, pfn: int, count: int) -> None:
        # The kernel freed them with the punch.
        pass

    def poison(self, page: int) -> None:
        # Do not tell the kernel. Keeping the frame out of use would take a pin for the
        # life of the mount, so that any peer could use up the memory.
        pass

    def close(self) -> None:
        self._buffers.close()
        self._table.clear()
        self._source.forget(self)

    # --- fetching ----------------------------------------------------------------

    def move(self, start: int, end: int) -> list[Extent]:
        raise OSError(
            errno.EOPNOTSUPP,
            "real frames do not move on demand: mount with --pfn-source simulated",
        )

    def reach(self, start: int, end: int) -> PageRange:
        # The kernel may allocate a huge folio for a page. It never kills a process for
        # that: mem_cgroup_oom() of mm/memcontrol.c skips orders above 3.
        return PageRange(start, end)

    def fetch(self, start: int, end: int, *, reach: bool = True) -> Fetched:
        moved: list[Extent] = []
        pieces = self._buffers.pieces(start, end)
        if pieces:
            self._allocate(pieces[0].start, pieces[-1].end)
            moved = self._find(pieces)
        return Fetched(self._table.look(start, end), moved)

    def _allocate(self, start: int, end: int) -> None:
        """Fill the holes of the file in [start, end); on an error none is filled."""
        if end - start > _UNCHECKED_PAGES and self._per_page == 1:
            with suppress(OSError):
                if not self._holes(start, end):
                    return
        allocate(self.fd, start * self._page_size, (end - start) * self._page_size)

    def _holes(self, start: int, end: int) -> int:
        """How many pages of [start, end) of a tmpfs are holes."""
        # st_blocks counts the whole file in one call. Few pages are past the end, so
        # cachestat(2) counts these cheaply.
        status = os.fstat(self.fd)
        pages = -(-status.st_size // FRAME_BYTES)
        beyond = mmcalls.pages_there(self.fd, pages * FRAME_BYTES, 0)
        if status.st_blocks * 512 // FRAME_BYTES - beyond == pages:
            return 0
        length = (end - start) * FRAME_BYTES
        there = mmcalls.pages_there(self.fd, start * FRAME_BYTES, length)
        return end - start - there

    def _find(self, pieces: list[Piece]) -> list[Extent]:
        """Pin allocated pages, read their frames and record both.

        Returns the old places of pages that have moved. On an error nothing changes.
        """
        buffers = self._buffers
        tokens: list[int | None] = []
        found: list[tuple[int, int, list[Extent]]] = []
        try:
            for some in buffers.windows(pieces):
                with buffers.mapped(self.fd, some) as window:
                    tokens += buffers.pin(window)
                    for start, end in spans([(one.start, one.end) for one in some]):
                        found.append((start, end, self._read(window.base, start, end)))
        except BaseException:
            buffers.release(tokens)
            raise
        moved: list[Extent] = []
        with self._lock:
            can_move = not buffers.stays or self.unpinned
            for start, end, extents in found:
                if can_move:
                    old = self._table.look(start, end)
                    moved += differing(old, extents, self._per_page)
                self._table.record(start, end, extents)
            replaced = buffers.record(pieces, tokens)
        buffers.release(replaced)
        return moved

    def _read(self, base: int, start: int, end: int) -> list[Extent]:
        """The frames of mapped pages. *base* is the address of page 0 of the file."""
        proc = self._source.proc
        address = base + start * self._page_size
        for _ in range(_TRIES):
            if self._per_page > 1:
                found = proc.huge_pages(address, start, end - start, self._page_size)
            else:
                found = proc.base_pages(address, start, end - start)
            if found is not None:
                if self._per_page == 1 and self._source.large_folios:
                    return proc.with_orders(found)
                return found
            # A page is being migrated, even if the migration will fail. This waits
            # until it ends.
            mmcalls.populate(address, (end - start) * self._page_size)
        raise os_error(errno.EAGAIN)

    # --- punching ----------------------------------------------------------------

    def punch(self, start: int, end: int, punch: Callable[[], None]) -> Punched:
        low, high = self._whole_folios(start, end)
        removed = self._table.look(start, end)
        if not removed and low == start and high == end:
            # No known page means that no buffer has a page of the range.
            punch()
            return Punched([], [])
        first, stop = self._unpin(low, high)
        moved: list[Extent] = []
        try:
            punch()
        except BaseException:
            with suppress(OSError):
                self._put_back(first, stop, moved)
            # This call cannot report the pages that have moved. The table keeps their
            # old frames, without a pin, so that the next fetch finds the difference.
            for one in moved:
                self._unpin(one.offset, one.offset + one.count)
                self._table.record(one.offset, one.offset + one.count, [one])
            raise
        self._table.record(start, end, [])
        try:
            self._put_back(first, stop, moved)
        except OSError:
            # The pages that could not be read again may have any frame: forget them.
            for one in self._movable(first, stop):
                moved.append(one)
                self._unpin(one.offset, one.offset + one.count)
                self._table.record(one.offset, one.offset + one.count, [])
        return Punched(removed, moved)

    def _whole_folios(self, start: int, end: int) -> tuple[int, int]:
        """[start, end), and the rest of the folios at its ends: a pin is on a folio."""
        if self._source.large_folios and self._per_page == 1:
            return whole_folios(self._table.look, start, end)
        return start, end

    def _unpin(self, low: int, high: int) -> tuple[int, int]:
        """Unpin [low, high). Return it, widened by the buffers that it was part of.

        Other pages of these buffers are pinned by new buffers first, so that they
        cannot move meanwhile, unless the kernel refuses that.
        """
        buffers = self._buffers
        old = buffers.ranges.overlapping(low, high)
        if not old:
            return low, high
        first, stop = min(low, old[0][0]), max(high, old[-1][1])
        rest = [(first, low), (high, stop)]
        tokens = [
            buffers.pin_again(self.fd, start, end) if start < end else None
            for start, end in rest
        ]
        with self._lock:
            buffers.ranges.delete(first, stop)
            for (start, end), token in zip(rest, tokens, strict=True):
                if token is not None:
                    buffers.ranges.set(start, end, token)
        buffers.release(token for _, _, token in old)
        return first, stop

    def _movable(self, start: int, end: int) -> list[Extent]:
        """The known pages of [start, end) that are not pinned."""
        return [
            one
            for gap in self._buffers.unpinned(start, end)
            for one in self._table.look(*gap)
        ]

    def _put_back(self, start: int, end: int, moved: list[Extent]) -> None:
        """Pin and read again those known pages of [start, end) that can move.

        Adds the old places of those that have moved to *moved*, also before an error.
        """
        known = self._movable(start, end)
        for span in spans((one.offset, one.offset + one.count) for one in known):
            for low, high in self._buffers.chunks(*span):
                # Do this one by one: each may replace the buffer of the one before.
                moved += self._find([self._buffers.piece(low, high)])
