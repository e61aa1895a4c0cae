"""The statistics of an IOMMU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """The counters of an IOMMU and its devices. Pages are of 4 KiB."""

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
    # Lookups that were repeated because an event raced with them.
    retries: int = 0
    # Accesses of devices, page by page; and those to pages that were not mapped: a
    # device cannot fault, so it reads ones, and written data is lost.
    accesses: int = 0
    aborted: int = 0
    # Accesses through a mapping of a frame that the page did not have any more, or of a
    # page that was converted since. Each is certain: the change was over before the
    # access began. Accesses during a change are not counted.
    uses_after_change: int = 0
