"""Tracks which pages of a file are private, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inaccfs.explore import keys
from inaccfs.explore.names import MOST_PAGES
from inaccfs.shim.attributes import Attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.explore.tracked_vm import Tracker
    from inaccfs.shim.file import InaccessibleFile


class TrackedAttributes(Attributes):
    """The attributes of a file, tracked page by page."""

    _tracker: Tracker

    def _touch(self, start: int, end: int, write: bool) -> None:
        tracker = self._tracker
        if tracker.schedule.tracks:
            # No file has more pages; a huge page may end past the end of the file.
            for page in range(start, min(end, MOST_PAGES)):
                tracker.schedule.touch(keys.kind(tracker.number, page), write)

    def is_private(self, page: int) -> bool:
        """See `Attributes.is_private`."""
        self._touch(page, page + 1, False)
        return super().is_private(page)

    def since(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """See `Attributes.since`."""
        self._touch(start, end, False)
        return super().since(start, end)

    def set(self, start: int, end: int, *, private: bool) -> None:
        """See `Attributes.set`."""
        self._touch(start, end, True)
        word = "private" if private else "shared"
        self._tracker.schedule.note(f"pages [{start}, {end}) are {word} now")
        super().set(start, end, private=private)


def watch_attributes(file: InaccessibleFile, tracker: Tracker) -> None:
    """Track the attributes of a file's pages."""
    attributes: Any = file.attributes
    attributes._tracker = tracker
    attributes.__class__ = TrackedAttributes
