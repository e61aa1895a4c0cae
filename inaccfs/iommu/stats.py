"""The statistics of an IOMMU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """What an IOMMU and its devices have done so far. Pages are of 4 KiB."""

    # Pages that `map_file` and `restore` have mapped.
    mapped: int = 0
    # Pages that events have unmapped.
    unmapped: int = 0
    # Events that concerned an area.
    events: int = 0
    # Areas that were revoked as a whole.
    revoked: int = 0
    # Pages that `restore` has mapped again.
    restored: int = 0
    # Lookups that were dropped because an event raced with them.
    retries: int = 0
    # Accesses of devices, page by page; and those of pages that were not mapped: a
    # device cannot fault, so it reads ones, and what it writes is lost.
    accesses: int = 0
    aborted: int = 0
    # Accesses through a mapping of a frame that the page did not have any more, or
    # that was of another kind by then. Each is certain: the change was over before the
    # access began. There may be more, which came while a page changed.
    uses_after_change: int = 0
