"""Private and shared pages of a file, for a client whose calls are points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inaccfs.explore import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from inaccfs.explore.schedule import Schedule
    from inaccfs.inprocess import File
    from inaccfs.kvm.shim import ShimAttributes, ShimRun
    from inaccfs.shim.frames import Extent


class PagesOfFile:
    """See `inaccfs.kvm.shim.ShimFile`; a part of `ExploredFile`."""

    # An ExploredClient.
    _client: Any
    _file: File
    _number: int
    _pages: dict[int, int]
    _known: Callable[[int], list[Extent] | None]
    _schedule: Schedule

    def set_memory_attributes(self, offset: int, count: int, private: bool) -> None:
        """See `ShimFile`."""
        word = "private" if private else "shared"
        self._schedule.point(f"makes [{offset}, {offset + count}) {word}")
        self._client.connected()
        self._file.set_memory_attributes(offset, count, private)

    def pin_pages(self, offset: int, count: int = 1) -> list[Extent]:
        """See `ShimFile`."""
        schedule = self._schedule
        schedule.point(f"pins [{offset}, {offset + count})")
        self._client.connected()
        begun = schedule.step
        self._touch_pages(offset, count)
        try:
            found = self._file.pin_pages(offset, count)
        finally:
            if schedule.step != begun:
                # It waited first, and pins the pages in a later step.
                self._touch_pages(offset, count)
        for extent in found:
            for index in range(extent.count):
                if schedule.tracks:
                    key = keys.references(extent.pfn + index)
                    schedule.state.meet_as(key, ())
                self._pages[extent.pfn + index] = extent.offset + index
        self._count(found, 1)
        return found

    def unpin_pages(self, extents: Sequence[ShimRun]) -> None:
        """See `ShimFile`."""
        self._schedule.point("unpins")
        self._client.connected()
        for extent in extents:
            for pfn in range(extent.pfn, extent.pfn + extent.count):
                self._schedule.touch(keys.page(self._number, self._pages[pfn]), False)
        self._count(extents, -1)
        self._file.unpin_pages(extents)

    def _touch_pages(self, offset: int, count: int) -> None:
        """This step gets pages, and fills holes."""
        schedule = self._schedule
        if schedule.tracks:
            schedule.touch(keys.frozen(self._number), False)
            for page in range(offset, offset + count):
                schedule.touch(keys.page(self._number, page))
                for extent in self._known(page) or []:
                    schedule.state.meet_early(keys.references(extent.pfn))

    def _count(self, extents: Iterable[ShimRun], more: int) -> None:
        """Count pins of the client: *more* is 1 or -1."""
        schedule = self._schedule
        for extent in extents:
            for pfn in range(extent.pfn, extent.pfn + extent.count):
                self._client.held[pfn] += more
                if schedule.runs:
                    schedule.touch(keys.references(pfn))

    def populate(
        self,
        offset: int,
        count: int,
        source: PagesOfFile | None = None,
        source_offset: int = 0,
    ) -> int:
        """See `ShimFile`."""
        self._schedule.point(f"populates [{offset}, {offset + count})")
        self._client.connected()
        begun = self._schedule.step
        self._touch_pages(offset, count)
        given = None if source is None else source._file
        try:
            return self._file.populate(offset, count, given, source_offset)
        finally:
            if self._schedule.step != begun:
                self._touch_pages(offset, count)

    def query_memory_attribute(self, offset: int) -> ShimAttributes:
        """See `ShimFile`."""
        self._schedule.point(f"asks what page {offset} is")
        self._client.connected()
        return self._file.query_memory_attribute(offset)
