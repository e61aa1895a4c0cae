"""The retry protocol: a fault that has met an invalidation begins anew.

Patch 4/8: the range is of gfns, where KVM had host addresses.
"""

from __future__ import annotations


class Invalidation:
    """in_progress, seq and range. All of it is guarded by mmu_lock.

    A fault takes `seq` before it looks anything up, and asks `retry` under mmu_lock
    just before it installs what it has found.
    """

    __slots__ = ("in_progress", "range_end", "range_start", "seq")

    def __init__(self) -> None:
        # How many have begun and not ended.
        self.in_progress = 0
        # How many have ended.
        self.seq = 0
        # gfns; of no meaning while none is in progress.
        self.range_start = 0
        self.range_end = 0

    def begin(self, start: int, end: int) -> None:
        """Pages of the gfns from *start* to *end* are about to go, or have gone.

        Of several at once the range is the hull, and it is not made narrower before
        the last has ended: that only makes faults retry which would not need to.
        """
        self.in_progress += 1
        if self.in_progress == 1:
            self.range_start, self.range_end = start, end
        else:
            self.range_start = min(self.range_start, start)
            self.range_end = max(self.range_end, end)

    def end(self) -> None:
        """What the last unended `begin` has announced is over."""
        assert self.in_progress > 0, "an end without its begin"
        # In this order, as in the kernel, where a reader without the lock that sees
        # in_progress at 0 must see the new seq, too.
        self.seq += 1
        self.in_progress -= 1

    def covers(self, start: int, end: int) -> bool:
        """Whether one in progress may concern the gfns from *start* to *end*."""
        return (
            self.in_progress > 0 and start < self.range_end and self.range_start < end
        )

    def retry(self, seq: int, start: int, end: int) -> bool:
        """mmu_invalidate_retry_gfn(): whether what was found since *seq* is stale."""
        return self.covers(start, end) or self.seq != seq
