"""Calls that change a file, as values: fallocate(2), and conversions of pages."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

if TYPE_CHECKING:
    from collections.abc import Iterator


class Kind(Enum):
    """What an operation does to the pages of a file. Each kind has its own events."""

    ALLOCATE = "allocate"
    # A truncation is one, too: of the pages past the new end.
    PUNCH = "punch"
    # Pages become private, or shared, and stay where they are.
    CONVERT = "convert"

    # Enum's own is written in Python, and each punch looks up its plan.
    __hash__ = object.__hash__


class PageRange(NamedTuple):
    """Pages of a file from a start to an end, which is not one of them."""

    start: int
    end: int


class Part(NamedTuple):
    """The pages that an operation concerns."""

    # Every page that the operation touches, if only in part. Events report these.
    touched: PageRange
    # The pages that lie in it as a whole. A punch removes these; of the others it
    # clears a part.
    whole: PageRange

    @classmethod
    def of(cls, offset: int, length: int, page_size: int) -> Part:
        """The pages of a range in bytes."""
        end = offset + length
        return cls(
            PageRange(offset // page_size, -(-end // page_size)),
            PageRange(-(-offset // page_size), end // page_size),
        )


class Call(NamedTuple):
    """One fallocate(2). In bytes."""

    mode: int
    offset: int
    length: int
    # For traces: the process that makes it, 0 if unknown; and when it began, see
    # `inaccfs.shim.trace.Happened`.
    who: int = 0
    began: int = 0

    @property
    def arguments(self) -> tuple[int, int, int]:
        """The arguments of the system call, after the fd."""
        return self.mode, self.offset, self.length

    def pieces(self, length: int) -> Iterator[Call]:
        """The same in calls of *length* bytes at most, in order of their offsets."""
        end = self.offset + self.length
        for at in range(self.offset, end, length):
            yield self._replace(offset=at, length=min(length, end - at))

    @property
    def kind(self) -> Kind:
        """A mode that neither allocates nor punches is refused as an allocation."""
        return Kind.PUNCH if self.mode & FALLOC_FL_PUNCH_HOLE else Kind.ALLOCATE

    @property
    def allocates(self) -> bool:
        """Whether it only allocates: a mode such as ZERO_RANGE does more."""
        return not self.mode & ~FALLOC_FL_KEEP_SIZE

    def part(self, page_size: int) -> Part:
        """The pages that it concerns."""
        return Part.of(self.offset, self.length, page_size)


class Conversion(NamedTuple):
    """KVM_SET_MEMORY_ATTRIBUTES2 of a file. In pages, from a start to an end."""

    start: int
    end: int
    # Whether the pages become private; otherwise they become shared.
    private: bool
    # The number of the peer that asks for it, for traces; 0 if unknown.
    who: int = 0

    @property
    def kind(self) -> Kind:
        """See `Kind`."""
        return Kind.CONVERT


class Begun(Enum):
    """How far `InaccessibleFile.begin` has taken a call."""

    # The call is complete: the backing has changed, and no notifier has to answer.
    DONE = "done"
    # The `Done` function will be called when the call is complete.
    UNDER_WAY = "under way"
    # The rules allow it. Nothing has been done: call `InaccessibleFile.finish`.
    LATER = "later"
