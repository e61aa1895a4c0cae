"""The common parts of the shared windows of both faces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from inaccfs.errors import BusError, PageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A piece lies in one page of any page size, so each access faults on one page.
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


class Sliced(ABC):
    """Adds window[start:stop] to a class with `read` and `write`. In bytes."""

    @abstractmethod
    def read(self, offset: int, count: int) -> bytes:
        """Read *count* bytes."""

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Write *data*."""

    def __getitem__(self, place: slice) -> bytes:
        """Read window[start:stop]."""
        return self.read(*_span(place))

    def __setitem__(self, place: slice, data: bytes) -> None:
        """Write window[start:stop]; *data* must have that size."""
        offset, count = _span(place)
        if len(data) != count:
            raise ValueError(f"{len(data)} bytes do not fit into {count}")
        self.write(offset, data)


def _span(place: slice) -> tuple[int, int]:
    """The offset and the size of a slice."""
    if not isinstance(place, slice) or place.stop is None:
        raise TypeError("a window has window[start:stop]")
    if place.step not in (None, 1):
        raise ValueError("a window has no steps")
    start = place.start or 0
    return start, max(place.stop - start, 0)


@contextmanager
def bus_error() -> Iterator[None]:
    """Turn the refusal of one page into `BusError`."""
    try:
        yield
    except PageError as exc:
        raise BusError(exc.errno or 0, str(exc.strerror), exc.offset) from None
