"""Real page frames: those that the kernel has given to the backing file.

The file is mapped, a window at a time, for only as long as it takes to pin its pages
and to read where they are. A pin may move a page first, out of memory that can be taken
away or is meant for devices; so what is read before it does not count.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs import mmcalls
from inaccfs.shim import pins
from inaccfs.shim.frameoptions import FRAME_BYTES
from inaccfs.shim.frames import (
    Extent,
    Fetched,
    Punched,
    Table,
    allocate,
    differing,
    joined,
    whole_folios,
)
from inaccfs.shim.proc_pages import ProcPages
from inaccfs.shim.rangemap import RangeMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from inaccfs.shim.pins import Pins

# A buffer never crosses a multiple of this in the file, nor does a folio of a tmpfs; so
# what a punch must take off is one buffer at each end, at most. In bytes.
_CHUNK_BYTES: Final = 2 << 20

# How much is mapped at once: a call that takes long keeps other threads from mapping
# anything. In bytes.
_WINDOW_BYTES: Final = 32 << 20

# A buffer of so few pages is registered anew with a page beside it. What the kernel
# maps in passing with any page, fault_around_bytes, is as much.
_FEW: Final = 16

# How often to look for a page that is being moved. It takes microseconds.
_TRIES: Final = 1000


class PagemapSource:
    """Reads frames, and holds them."""

    name: Final = "pagemap"

    def __init__(self, proc: ProcPages, pins: Pins, *, large_folios: bool) -> None:
        self.proc: Final = proc
        self.pins: Final = pins
        self.large_folios: Final = large_folios
        self._files: set[PagemapFrames] = set()

    @property
    def pinning(self) -> str:
        loose = (
            0 if not self.pins.refusal else sum(one.unheld for one in list(self._files))
        )
        if not loose:
            return self.pins.description
        return (
            f"{self.pins.description}; {loose} pages can move ({self.pins.refusal}: "
            "raise the limit of locked memory, RLIMIT_MEMLOCK)"
        )

    def open(self, fd: int, page_size: int) -> PagemapFrames:
        """The frames of one file."""
        made = PagemapFrames(self, fd, page_size)
        self._files.add(made)
        return made

    def forget(self, frames: PagemapFrames) -> None:
        """Of a file that has been closed."""
        self._files.discard(frames)

    def close(self) -> None:
        """Close what is open, and let go all that is held."""
        self.pins.close()
        self.proc.close()


def make_source(*, large_folios: bool, movable: bool = False) -> PagemapSource:
    """A source of real frames; with *movable* nothing keeps them where they are.

    Raises:
        OSError: the kernel does not show them to this process.
    """
    proc = ProcPages()
    if not proc.are_shown():
        proc.close()
        raise OSError(errno.EPERM, "the kernel shows all page frame numbers as 0")
    held = pins.NoPins("the semantics let pages move") if movable else pins.choose()
    return PagemapSource(proc, held, large_folios=large_folios)


class _Piece(NamedTuple):
    """What is fetched of one chunk. In pages of the file."""

    start: int
    end: int
    # What its buffer holds: that, and what others held beside it.
    first: int
    stop: int
    # The others.
    replaced: list[int]
    # Whether one of them has all of it, so that there is nothing to do.
    held: bool


class PagemapFrames:
    """One file's frames. See `inaccfs.shim.frames.Frames`."""

    def __init__(self, source: PagemapSource, fd: int, page_size: int) -> None:
        self.fd = fd
        self._source: Final = source
        self._pins: Final = source.pins
        self._page_size: Final = page_size
        self._per_page: Final = page_size // FRAME_BYTES
        self._chunk: Final = max(_CHUNK_BYTES // page_size, 1)
        self._window: Final = max(_WINDOW_BYTES // page_size, 1)
        # Pages that cannot move, and where those were that can. No page is in both.
        self._firm: Final = Table(self._per_page)
        self._loose: Final = Table(self._per_page)
        # What is held, by offset: the token of each buffer.
        self._held: RangeMap[int] = RangeMap()

    @property
    def pages(self) -> int:
        return self._firm.pages + self._loose.pages

    @property
    def unheld(self) -> int:
        """How many known pages nothing holds."""
        return max(self.pages - self._held.size, 0)

    def extents(self) -> list[Extent]:
        return joined([*self._firm.extents(), *self._loose.extents()], self._per_page)

    def extents_since(self, start: int, most: int) -> list[Extent]:
        found = self._firm.since(start, most)
        if self._loose.pages:
            found = joined([*found, *self._loose.since(start, most)], self._per_page)
        return found[:most]

    def known(self, start: int, end: int) -> list[Extent] | None:
        return self._firm.whole(start, end)

    def free(self, pfn: int, count: int) -> None:
        # The kernel has had them back since they were punched.
        pass

    def poison(self, page: int) -> None:
        # The kernel knows nothing of it. To keep the frame from it would take a pin
        # for as long as the mount lasts: memory that any peer could make go away.
        pass

    def close(self) -> None:
        self._pins.release([token for _, _, token in self._held])
        self._held = RangeMap()
        self._firm.clear()
        self._loose.clear()
        self._source.forget(self)

    # --- fetching ----------------------------------------------------------------

    def fetch(self, start: int, end: int) -> Fetched:
        moved: list[Extent] = []
        pieces = [self._piece(low, high) for low, high in self._unknown(start, end)]
        if pieces:
            self._allocate(pieces[0].start, pieces[-1].end)
            moved = self._find(pieces)
        return Fetched(self._look(start, end), moved)

    def _unknown(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of [start, end) is in chunks that are not wholly known."""
        last = start
        for low, high in self._firm.gaps(start, end):
            # From where the chunk begins in which the gap does, to where its last ends.
            first = max(low - low % self._chunk, last)
            last = min(high + -high % self._chunk, end)
            yield from self._chunks(first, last)

    def _piece(self, start: int, end: int) -> _Piece:
        """How to hold pages of one chunk, with few buffers in the end."""
        first, stop = start, end
        inside = self._held.overlapping(start, end)
        if inside:
            first, stop = min(first, inside[0][0]), max(stop, inside[-1][1])
        if len(inside) == 1 and inside[0][:2] == (first, stop):
            return _Piece(start, end, start, end, [], held=True)
        replaced = [token for _, _, token in inside]
        chunk = start - start % self._chunk
        # Like the digits of a counter: buffers grow with their neighbours, so a page is
        # pinned anew some five times while its chunk fills up.
        while first > chunk and (beside := self._held.overlapping(first - 1, first)):
            low, high, token = beside[0]
            if high - low > max(stop - first, _FEW):
                break
            first = low
            replaced.append(token)
        while stop < chunk + self._chunk and (
            beside := self._held.overlapping(stop, stop + 1)
        ):
            low, high, token = beside[0]
            if high - low > max(stop - first, _FEW):
                break
            stop = high
            replaced.append(token)
        return _Piece(start, end, first, stop, replaced, held=False)

    def _allocate(self, start: int, end: int) -> None:
        """Fill the holes of the file in [start, end), or let it be as it was."""
        offset, length = start * self._page_size, (end - start) * self._page_size
        # To ask is cheaper than to allocate again, if there is much.
        if end - start > _FEW and self._per_page == 1:
            with suppress(OSError):
                if not self._holes(start, end):
                    return
        allocate(self.fd, offset, length)

    def _holes(self, start: int, end: int) -> int:
        """How many pages of [start, end) of a tmpfs are holes."""
        # Those of the whole file are counted already, and past its end there are few.
        status = os.fstat(self.fd)
        pages = -(-status.st_size // FRAME_BYTES)
        beyond = mmcalls.pages_there(self.fd, pages * FRAME_BYTES, 0)
        if status.st_blocks * 512 // FRAME_BYTES - beyond == pages:
            return 0
        length = (end - start) * FRAME_BYTES
        there = mmcalls.pages_there(self.fd, start * FRAME_BYTES, length)
        return end - start - there

    def _find(self, pieces: list[_Piece]) -> list[Extent]:
        """Hold pages that are there, read their frames, record them; what had moved.

        On an error all is as it was.
        """
        tokens: list[int | None] = []
        found: list[tuple[int, int, list[Extent]]] = []
        try:
            for window in self._windows(pieces):
                with self._mapped(window) as base:
                    tokens += self._hold(window, base)
                    for start, end in _spans((one.start, one.end) for one in window):
                        found.append((start, end, self._read(base, start, end)))
        except BaseException:
            self._pins.release([token for token in tokens if token is not None])
            raise
        return self._record(pieces, tokens, found)

    def _windows(self, pieces: list[_Piece]) -> Iterator[list[_Piece]]:
        """*pieces* by turns, as many as are mapped at once."""
        window: list[_Piece] = []
        for piece in pieces:
            if window and piece.stop - window[0].first > self._window:
                yield window
                window = []
            window.append(piece)
        yield window

    @contextmanager
    def _mapped(self, pieces: list[_Piece]) -> Iterator[int]:
        """Map a window, and fill the page table; where page 0 of the file would be."""
        size = self._page_size
        first, stop = pieces[0].first, pieces[-1].stop
        address = mmcalls.mmap(self.fd, first * size, (stop - first) * size)
        base = address - first * size
        try:
            for start, end in _spans((one.first, one.stop) for one in pieces):
                mmcalls.populate(base + start * size, (end - start) * size)
            yield base
        finally:
            mmcalls.munmap(address, (stop - first) * size)

    def _hold(self, pieces: list[_Piece], base: int) -> list[int | None]:
        """Hold mapped pages; a token for each piece, if it needs and gets one."""
        size = self._page_size
        buffers = [
            pins.Buffer(
                base + first * size, (stop - first) * size, self.fd, first * size
            )
            for _, _, first, stop, _, held in pieces
            if not held
        ]
        tokens = iter(self._pins.hold(buffers) if buffers else ())
        return [None if piece.held else next(tokens) for piece in pieces]

    def _read(self, base: int, start: int, end: int) -> list[Extent]:
        """Where mapped pages are."""
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
            # Somebody tries to move a page, if in vain. This waits for the end of it.
            mmcalls.populate(address, (end - start) * self._page_size)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _record(
        self,
        pieces: list[_Piece],
        tokens: list[int | None],
        found: list[tuple[int, int, list[Extent]]],
    ) -> list[Extent]:
        """Record pages that are held now; return where those had been that moved."""
        moved: list[Extent] = []
        if self._loose.pages:
            for start, end, extents in found:
                moved += differing(
                    self._loose.look(start, end), extents, self._per_page
                )
        loose = [
            gap
            for piece, token in zip(pieces, tokens, strict=True)
            if not (self._pins.stays and (piece.held or token is not None))
            for gap in self._firm.gaps(piece.start, piece.end)
        ]
        if loose:
            new = Table(self._per_page)
            for start, end, extents in found:
                new.record(start, end, extents)
            for start, end in loose:
                self._loose.record(start, end, new.look(start, end))
                new.record(start, end, [])
            found = [(start, end, new.look(start, end)) for start, end, _ in found]
        for start, end, extents in found:
            self._firm.record(start, end, extents)
            if self._loose.pages:
                for offset, _, count, _ in extents:
                    self._loose.record(offset, offset + count, [])
        for piece, token in zip(pieces, tokens, strict=True):
            if token is not None:
                self._held.set(piece.first, piece.stop, token)
                self._pins.release(piece.replaced)
        return moved

    def _look(self, start: int, end: int) -> list[Extent]:
        found = self._firm.look(start, end)
        if self._loose.pages:
            found = joined([*found, *self._loose.look(start, end)], self._per_page)
        return found

    # --- punching ----------------------------------------------------------------

    def punch(self, start: int, end: int, punch: Callable[[], None]) -> Punched:
        low, high = self._whole_folios(start, end)
        held = self._held.overlapping(low, high)
        removed = self._look(start, end)
        if not held and low == start and high == end and not removed:
            punch()
            return Punched([], [])
        first = min(low, held[0][0]) if held else low
        stop = max(high, held[-1][1]) if held else high
        # What shares a buffer with what goes is held anew before that is let go, so it
        # cannot move. Where it is not, there is another chance below.
        self._hold_again([(first, low), (high, stop)])
        # Until it is found again, nobody knows where the rest is.
        self._loosen(low, high)
        self._pins.release([token for _, _, token in held])
        try:
            punch()
        except BaseException:
            moved: list[Extent] = []
            with suppress(OSError):
                self._put_back(first, stop, moved)
            for one in moved:
                # The next to fetch it is told.
                self._firm.record(one.offset, one.offset + one.count, [])
                self._loose.record(one.offset, one.offset + one.count, [one])
            raise
        self._loose.record(start, end, [])
        moved = []
        try:
            self._put_back(first, stop, moved)
        except OSError:
            # The rest is there, but nobody knows where.
            moved += self._loose.look(first, stop)
            self._loose.record(first, stop, [])
        return Punched(removed, moved)

    def _hold_again(self, ranges: list[tuple[int, int]]) -> None:
        """Hold what is held already, in buffers of its own; where not, it can move."""
        for start, end in ranges:
            if start < end:
                piece = _Piece(start, end, start, end, [], held=False)
                token = None
                with suppress(OSError), self._mapped([piece]) as base:
                    (token,) = self._hold([piece], base)
                if token is not None:
                    self._held.set(start, end, token)
                else:
                    self._loosen(start, end)

    def _whole_folios(self, start: int, end: int) -> tuple[int, int]:
        """[start, end), and what shares a folio with some of it: pins on that count."""
        if self._source.large_folios and self._per_page == 1:
            return whole_folios(self._look, start, end)
        return start, end

    def _loosen(self, start: int, end: int) -> None:
        """Pages of [start, end) are not held from now on: they can move."""
        self._held.delete(start, end)
        self._loose.record(start, end, self._look(start, end))
        self._firm.record(start, end, [])

    def _put_back(self, start: int, end: int, moved: list[Extent]) -> None:
        """Hold and find what can move of [start, end).

        Adds to *moved* where it was, if it did; also if it raises later.
        """
        loose = self._loose.look(start, end)
        for first, stop in _spans(
            (one.offset, one.offset + one.count) for one in loose
        ):
            for low, high in self._chunks(first, stop):
                # One by one: each may take the buffer of the one before into its own.
                moved += self._find([self._piece(low, high)])

    def _chunks(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """[start, end), cut where chunks begin."""
        while start < end:
            stop = min(end, start - start % self._chunk + self._chunk)
            yield start, stop
            start = stop


def _spans(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """*ranges*, in order, with those that touch made one."""
    spans: list[tuple[int, int]] = []
    for start, end in ranges:
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans
