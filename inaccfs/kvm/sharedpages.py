"""Which shared pages KVM has mapped.

KVM maps shared pages from the VMM's page table, page by page, and unmaps them with a
conversion or with their slot. This model copies their bytes from the VMM's memory, so
it only counts the mappings, as pages of 4 KiB. It does not see that the VMM itself
unmaps its memory, after which KVM's MMU notifier would unmap it, too.
"""

from __future__ import annotations

from typing import Final


class SharedPages:
    """A set of gfns. Any thread may add; only one at a time may zap."""

    def __init__(self) -> None:
        self._gfns: Final[set[int]] = set()

    def __len__(self) -> int:
        return len(self._gfns)

    def map(self, start: int, end: int) -> None:
        """The gfns from *start* to *end* are mapped."""
        if end - start == 1:
            self._gfns.add(start)
        else:
            self._gfns.update(range(start, end))

    def zap(self, start: int, end: int) -> None:
        """The gfns from *start* to *end* are mapped no more."""
        if end - start <= len(self._gfns):
            self._gfns.difference_update(range(start, end))
        else:
            # A copy, made at once: others may add meanwhile.
            gone = [gfn for gfn in self._gfns.copy() if start <= gfn < end]
            self._gfns.difference_update(gone)
