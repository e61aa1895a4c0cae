"""Which pages of a file are pinned, and by which buffers: what to pin, not where it is.

A file is mapped, one window at a time, only for as long as it takes to pin its pages
(`inaccfs.shim.pins`) and to read where they are (`inaccfs.shim.pagemap`).
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs import mmcalls
from inaccfs.shim import pins
from inaccfs.shim.rangemap import RangeMap
from inaccfs.shim.releasing import Releasing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inaccfs.shim.pins import Pins

# No buffer crosses a multiple of this many bytes of the file, and no folio of a tmpfs
# does. So a punch has to split at most one buffer at each of its ends.
_CHUNK_BYTES: Final = 2 << 20

WINDOW_BYTES: Final = 32 << 20
"""How much is mapped at once. Other threads cannot mmap(2) during a longer call."""

# A buffer of at most this many pages is replaced when a page beside it is pinned. It is
# as much as the kernel maps around a fault: fault_around_bytes, in pages of 4 KiB.
_MERGED_PAGES: Final = 16


def _unmap(mappings: list[tuple[int, int]], at: int) -> int:
    mmcalls.munmap(*mappings[at])
    return 1


# The mappings of this process, by address and length. A mapping that cannot be removed
# keeps the memory of its file.
_mappings: Final = Releasing(_unmap)


class Piece(NamedTuple):
    """Pages of one chunk to pin and to read. In pages of the file."""

    start: int
    end: int
    # The new buffer: [start, end), and the buffers beside it that it replaces.
    first: int
    stop: int
    # The tokens of the replaced buffers.
    replaced: list[int]
    # Whether one buffer already covers [start, end), so that no new one is needed.
    pinned: bool


class Window(NamedTuple):
    """Pieces of a file that are mapped, with their page table filled."""

    pieces: list[Piece]
    fd: int
    # The address that page 0 of the file would have.
    base: int


class Buffers:
    """The pinned buffers of one file. Offsets, starts and ends are pages of the file.

    It does not lock. `pinned` may run beside a change only if the caller guards both.
    """

    def __init__(
        self, pins: Pins, page_size: int, window_bytes: int = WINDOW_BYTES
    ) -> None:
        self._pins: Final = pins
        self._page_size: Final = page_size
        self._chunk: Final = max(_CHUNK_BYTES // page_size, 1)
        self._window: Final = max(window_bytes // page_size, 1)
        self.ranges: RangeMap[int] = RangeMap()
        """The token of each buffer, by the range that it covers."""

    @property
    def stays(self) -> bool:
        """Whether a page in a buffer cannot move. With mlock(2) it can."""
        return self._pins.stays

    def pinned(self, start: int, end: int) -> bool:
        """Whether no page of [start, end) can move."""
        return self._pins.stays and self.ranges.covers(start, end)

    def unpinned(self, start: int, end: int) -> list[tuple[int, int]]:
        """The pages of [start, end) that can move."""
        return self.ranges.gaps(start, end) if self._pins.stays else [(start, end)]

    def chunks(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """[start, end), cut where chunks begin."""
        while start < end:
            stop = min(end, start - start % self._chunk + self._chunk)
            yield start, stop
            start = stop

    def pieces(self, start: int, end: int) -> list[Piece]:
        """The pages to pin for [start, end): all of each chunk with a gap."""
        found = []
        last = start
        for low, high in self.unpinned(start, end):
            first = max(low - low % self._chunk, last)
            last = min(high + -high % self._chunk, end)
            found += [self.piece(*one) for one in self.chunks(first, last)]
        return found

    def piece(self, start: int, end: int) -> Piece:
        """Plan the buffer for [start, end), which lies in one chunk.

        It replaces neighbours that are not larger than itself, as a carry does in a
        binary counter. So a chunk that is pinned page by page has few buffers, and each
        page is pinned some five times.
        """
        first, stop = start, end
        inside = self.ranges.overlapping(start, end)
        if inside:
            first, stop = min(first, inside[0][0]), max(stop, inside[-1][1])
        if len(inside) == 1 and inside[0][:2] == (first, stop):
            return Piece(start, end, start, end, [], pinned=True)
        replaced = [token for _, _, token in inside]
        chunk = start - start % self._chunk
        while first > chunk and (beside := self.ranges.overlapping(first - 1, first)):
            low, high, token = beside[0]
            if high - low > max(stop - first, _MERGED_PAGES):
                break
            first = low
            replaced.append(token)
        while stop < chunk + self._chunk and (
            beside := self.ranges.overlapping(stop, stop + 1)
        ):
            low, high, token = beside[0]
            if high - low > max(stop - first, _MERGED_PAGES):
                break
            stop = high
            replaced.append(token)
        return Piece(start, end, first, stop, replaced, pinned=False)

    # --- mapping and pinning -----------------------------------------------------

    def windows(self, pieces: list[Piece]) -> Iterator[list[Piece]]:
        """Group *pieces* by the windows that are mapped at once."""
        window: list[Piece] = []
        for piece in pieces:
            if window and piece.stop - window[0].first > self._window:
                yield window
                window = []
            window.append(piece)
        yield window

    @contextmanager
    def mapped(self, fd: int, pieces: list[Piece]) -> Iterator[Window]:
        """Map the pages of *pieces* and fill the page table.

        Raises:
            OSError: ENOMEM; EFAULT, where the file has no page and gets none.
        """
        size = self._page_size
        first, stop = pieces[0].first, pieces[-1].stop
        address = mmcalls.mmap(fd, first * size, (stop - first) * size)
        base = address - first * size
        try:
            for start, end in spans([(one.first, one.stop) for one in pieces]):
                mmcalls.populate(base + start * size, (end - start) * size)
            yield Window(pieces, fd, base)
        finally:
            try:
                mmcalls.munmap(address, (stop - first) * size)
            except OSError:
                _mappings.release([(address, (stop - first) * size)])

    def pin(self, window: Window) -> list[int | None]:
        """Pin a mapped window: a token for each piece that needs and gets a buffer."""
        size = self._page_size
        wanted = [
            pins.Buffer(
                window.base + first * size,
                (stop - first) * size,
                window.fd,
                first * size,
            )
            for _, _, first, stop, _, pinned in window.pieces
            if not pinned
        ]
        tokens = iter(self._pins.hold(wanted) if wanted else ())
        return [None if piece.pinned else next(tokens) for piece in window.pieces]

    def release(self, tokens: Iterable[int | None]) -> None:
        """Unpin buffers that are not in `ranges`, or not any more."""
        pinned = [token for token in tokens if token is not None]
        if pinned:
            self._pins.release(pinned)

    def record(self, pieces: list[Piece], tokens: list[int | None]) -> list[int]:
        """Enter new buffers; return the tokens that they replace, to be released."""
        replaced: list[int] = []
        for piece, token in zip(pieces, tokens, strict=True):
            if token is not None:
                self.ranges.set(piece.first, piece.stop, token)
                replaced += piece.replaced
        return replaced

    def pin_again(self, fd: int, start: int, end: int) -> int | None:
        """Make a buffer for [start, end), which is already pinned; None if refused."""
        piece = Piece(start, end, start, end, [], pinned=False)
        token = None
        with suppress(OSError), self.mapped(fd, [piece]) as window:
            (token,) = self.pin(window)
        return token

    def close(self) -> None:
        """Release all."""
        old, self.ranges = self.ranges, RangeMap()
        self.release(token for _, _, token in old)


def spans(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge those of *ranges*, which are in order, that touch."""
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged
