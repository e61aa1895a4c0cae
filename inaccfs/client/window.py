"""What the shared windows of both faces have in common."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from inaccfs.errors import BusError, PageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A piece is in one page, whatever the page size: as an access, it faults on one page.
_PIECE_BYTES: Final = 4096


def pieces(offset: int, count: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that are accessed one after the other: offset and size."""
    if offset < 0 or count < 0:
        raise ValueError(f"no bytes from {offset} on, {count} of them")
    end = offset + count
    while offset < end:
        size = min(end, (offset // _PIECE_BYTES + 1) * _PIECE_BYTES) - offset
        yield offset, size
        offset += size


def span(place: slice) -> tuple[int, int]:
    """The offset and the size of window[start:stop]."""
    start, stop = place.start or 0, place.stop
    if place.step not in (None, 1) or stop is None:
        raise ValueError("a window has window[start:stop], without a step")
    return start, max(stop - start, 0)


@contextmanager
def bus_error() -> Iterator[None]:
    """Turn the refusal of one page into `BusError`."""
    try:
        yield
    except PageError as exc:
        raise BusError(exc.errno or 0, str(exc.strerror), exc.offset) from None
