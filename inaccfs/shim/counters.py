"""The counters of a mount."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counters of all files of a mount since it was made; see query-stats."""

    # Calls of fallocate(2), and those among them that punch.
    fallocates: int = 0
    punches: int = 0
    # Invalidations, the events sent for them, and notifiers that did not answer.
    invalidations: int = 0
    events: int = 0
    evictions: int = 0
    # References got and put, in pages.
    pages_got: int = 0
    pages_put: int = 0
    # Fetched pages whose frame changed while their pins were off for a punch.
    pages_moved: int = 0
    # Pages that memory-failure has reported.
    pages_poisoned: int = 0
