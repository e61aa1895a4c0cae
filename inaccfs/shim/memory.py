"""A file's memory as KVM sees it: frames, and the references to them.

inaccessible_get_pfn() and inaccessible_put_pfn() of v8. Pages that were fetched
once keep their frames until they are punched or the file is freed; references are
counted for each holder, and outlive a punch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

from inaccfs.shim.frameoptions import FRAME_BYTES
from inaccfs.shim.frames import clipped
from inaccfs.shim.references import References

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from inaccfs.shim.frames import Extent, Frames, FrameSource, Punched
    from inaccfs.shim.references import FrameRun
    from inaccfs.shim.trace import FileTrace


_EXTENTS_A_STEP: Final = 256


class Holder(Protocol):
    """A peer that can have references. Hashable."""

    @property
    def who(self) -> int:
        """The number of the peer, for traces."""

    def __hash__(self) -> int: ...

    def evict_holder(self) -> None:
        """Disconnect it, because it keeps pages locked for too long."""


@dataclass(frozen=True, slots=True)
class Pinner:
    """Holds the pins of *holder* as references that are separate from its others.

    FOLL_PIN of get_user_pages(): a process that can map shared pages can pin them,
    whatever the rules say about get-pfn.
    """

    holder: Holder

    @property
    def who(self) -> int:
        """See `Holder`."""
        return self.holder.who

    def evict_holder(self) -> None:
        """See `Holder`."""
        self.holder.evict_holder()


class Memory:
    """The fetched pages of one file. Offsets, starts and ends are pages of the file."""

    def __init__(
        self,
        source: FrameSource,
        fd: int,
        page_size: int,
        trace: FileTrace,
        changed: Callable[[], None] = lambda: None,
        put: Callable[[], None] | None = None,
        *,
        keeps_references: bool = True,
    ) -> None:
        """*changed* is called when pages have been fetched or removed.

        *put* is called when the number of references has fallen. Without
        *keeps_references* there are none: `get` only counts the pages.
        """
        # The pages themselves; its methods that block may run in a thread.
        self.frames: Final[Frames] = source.open(fd, page_size)
        self._per_page: Final = page_size // FRAME_BYTES
        self.references: Final = References(self._per_page)
        self._trace: Final = trace
        self._changed: Final = changed
        self._keeps_references: Final = keeps_references
        self._put: Final = put

    @property
    def references_count(self) -> int:
        """How many references there are, each page counted as often as it was got."""
        return sum(map(self.references.total, self.references.holders()))

    @property
    def holders(self) -> int:
        """How many holders have references."""
        return len(self.references.holders())

    def extents_in(self, start: int, end: int) -> list[Extent]:
        """The fetched pages from *start* to *end*."""
        if start < end and (known := self.frames.known(start, end)) is not None:
            return known
        return [one for some in self.windows(start, end) for one in some]

    def windows(self, start: int, end: int) -> Iterator[list[Extent]]:
        """The fetched pages from *start* to *end*, some at a time.

        Other tasks may fetch or remove pages in between.
        """
        while start < end:
            some = self.frames.extents_since(start, _EXTENTS_A_STEP)
            found = clipped(some, start, end, self._per_page)
            if found:
                yield found
            if len(some) < _EXTENTS_A_STEP:
                return
            start = some[-1].offset + some[-1].count

    def holders_of(self, start: int, end: int) -> list[Holder]:
        """The holders of references to those pages that are still in the file."""
        if not self.references:
            return []
        return [
            cast("Holder", one)
            for one in self.references.holders_of(self.extents_in(start, end))
        ]

    def first_referenced(
        self, start: int, end: int, *, pins_only: bool = False
    ) -> int | None:
        """The first of the pages that has a reference; with *pins_only* a pin.

        The cost grows with what has been fetched, not with the range.
        """
        found = self.look(start, end, pins_only=pins_only)
        return next((page for page in found if page is not None), None)

    def look(
        self, start: int, end: int, *, pins_only: bool = False
    ) -> Iterator[int | None]:
        """As `first_referenced` in steps that are short: None until it is found."""
        for extents in self.windows(start, end):
            holders = [
                one
                for one in self.references.holders()
                if not pins_only or isinstance(one, Pinner)
            ]
            if not holders:
                return
            yield self.references.first_of(extents, holders)

    def record(self, punched: Punched, who: int = 0) -> None:
        """Record pages that were removed or moved; their references outlive them.

        *who* is the peer that has moved them, 0 for the kernel. Call it in the loop,
        after `frames.punch`, and after a `frames.fetch` that found moved pages.
        """
        if punched.moved:
            self._trace.counters.pages_moved += sum(one.count for one in punched.moved)
            if self._trace.listeners:
                for offset, _, count, _ in punched.moved:
                    self._trace.tell_pages("move", offset, offset + count, who)
        self._free(self.references.punched([*punched.removed, *punched.moved]))
        self._changed()

    def get(self, holder: Holder, extents: list[Extent]) -> None:
        """*holder* gets a reference to each page."""
        if self._keeps_references or isinstance(holder, Pinner):
            self.references.get(holder, extents)
        self._trace.counters.pages_got += sum(extent.count for extent in extents)
        if self._trace.listeners:
            for offset, _, count, _ in extents:
                self._trace.tell_pages("get", offset, offset + count, holder.who)

    def put(self, holder: Holder, pfn: int, count: int) -> None:
        """*holder* gives back a reference to each of *count* pages from frame *pfn*.

        Raises:
            OSError: EINVAL if it lacks one to any of them; then nothing is put.
        """
        self._free(self.references.put(holder, pfn, count))
        self._tell_put(holder, pfn, count)

    def put_all(
        self, holder: Holder, extents: Sequence[tuple[int, int]]
    ) -> Iterator[None]:
        """As `put` for each (pfn, count) of *extents*, in short steps.

        Raises:
            OSError: EINVAL if it lacks any of them; then nothing is put.
        """
        for put in self.references.put_all(holder, extents):
            if put is not None:
                self._free(put.freed)
                self._tell_put(holder, *put.run)
            yield

    def _tell_put(self, holder: Holder, pfn: int, count: int) -> None:
        self._trace.counters.pages_put += count
        if self._trace.listeners:
            end = pfn + count * self._per_page
            self._trace.tell("put", pfn * FRAME_BYTES, end * FRAME_BYTES, holder.who)

    def drop(self, holder: Holder) -> Iterator[None]:
        """Drop all references of *holder*, in steps. Exhaust the iterator."""
        dropped = self.references.drop(holder)
        if self._put is not None:
            self._put()
        return map(self._free, dropped)

    def _free(self, frames: list[FrameRun]) -> None:
        if self._put is not None:
            self._put()
        for pfn, count in frames:
            self.frames.free(pfn, count)

    def poison(self, page: int, who: int = 0) -> None:
        """An allocated page's memory has failed: its frame is not used again.

        *who* is the peer that reports it, for traces.
        """
        self._trace.counters.pages_poisoned += 1
        if self._trace.listeners:
            self._trace.tell_pages("poison", page, page + 1, who)
        self.frames.poison(page)
