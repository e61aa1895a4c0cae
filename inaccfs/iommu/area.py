"""An area: the part of a file that `Iommu.map_file` has mapped, and its notifier."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from inaccfs.kvm.invalidation import small_pages
from inaccfs.kvm.uapi import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.kvm.backing import BackingFile, Frames
    from inaccfs.kvm.shim import ShimNotifier, ShimSemantics

    Heard: TypeAlias = Callable[["Area", int, int, str | None], object]

Learns: TypeAlias = Literal["nothing", "before and after", "revoke", "pins"]
"""How an IOMMU learns that pages change; see `inaccfs.iommu.Iommu`."""

GETS_EVENTS: Final[tuple[Learns, ...]] = ("before and after", "revoke")
"""The ways in which an area has a notifier."""


class Entry(NamedTuple):
    """An I/O page table entry."""

    pfn: int
    # Whether the page was private; None if attributes are not kept in the file.
    private: bool | None


class Area:
    """Pages of a file, mapped from an iova on. Numbers are pages of 4 KiB."""

    def __init__(
        self, backing: BackingFile, iova: int, pages: int, pgoff: int, learns: Learns
    ) -> None:
        self.backing: Final = backing
        self.first: Final = iova
        self.pages: Final = pages
        self.pgoff: Final = pgoff
        self.learns: Final = learns
        # The long-term pins; or the references that stand for them.
        self.pins: list[Frames] = []
        # An event has revoked the area: it maps nothing, and stays until it is
        # unmapped.
        self.revoked = False
        # Pages that events have unmapped, and `restore` may map again.
        self.pending: Final[set[int]] = set()
        self.notifier: ShimNotifier | None = None
        # The starts minus the ends so far. Only callbacks change it.
        self.begun = 0

    def __repr__(self) -> str:
        state = ", revoked" if self.revoked else ""
        return (
            f"<Area of {self.pages} pages at iova {self.first << PAGE_SHIFT:#x}{state}>"
        )

    @property
    def end(self) -> int:
        """The iova after the last page, in pages."""
        return self.first + self.pages

    def page_of(self, iova: int) -> int:
        """The file's page of 4 KiB at an iova, in pages."""
        return self.pgoff + iova - self.first

    def listen(
        self,
        semantics: ShimSemantics,
        invalidate: Heard,
        start: Heard,
        end: Heard,
    ) -> None:
        """Register for events, or bind the area. The callbacks get iovas, in pages."""
        in_bytes = semantics.unit == "bytes"

        def heard(
            callback: Heard, first: int, last: int, kinds: str | None = None
        ) -> None:
            if (iovas := self._iovas(first, last, in_bytes=in_bytes)) is not None:
                callback(self, *iovas, kinds)

        self.notifier = self.backing.listen(
            semantics,
            self.pgoff,
            self.pages,
            invalidate=partial(heard, invalidate),
            start=partial(heard, start),
            end=partial(heard, end),
            with_kinds=semantics.in_place,
        )

    def _iovas(self, start: int, end: int, *, in_bytes: bool) -> tuple[int, int] | None:
        """The iovas of an event's range; None if it does not concern the area."""
        start, end = small_pages(start, end, self.backing.shift, in_bytes=in_bytes)
        start, end = max(start, self.pgoff), min(end, self.pgoff + self.pages)
        if start >= end:
            return None
        shift = self.first - self.pgoff
        return start + shift, end + shift
