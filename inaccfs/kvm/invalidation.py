"""The retry protocol: a fault that raced with an invalidation starts over.

Patch 4/8: the range is of gfns, where KVM had host addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.uapi import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from inaccfs.kvm.sync import Condition

# After so many seconds a waiting fault retries, and so finds out if the daemon has
# died: a dead daemon never ends what it has begun.
_PATIENCE: Final = 1.0


def small_pages(start: int, end: int, shift: int, *, in_bytes: bool) -> tuple[int, int]:
    """The pages of 4 KiB, start and end, of an event's range.

    The range is in bytes, or else in pages of the file, each of 1 << *shift* pages of
    4 KiB.
    """
    if in_bytes:
        return start >> PAGE_SHIFT, -(-end // PAGE_SIZE)
    return start << shift, end << shift


class Invalidation:
    """in_progress, seq and range. All of it is guarded by mmu_lock.

    A fault reads `seq` before it looks anything up, and calls `retry` under mmu_lock
    just before it installs the frames that it found.
    """

    __slots__ = ("in_progress", "range_end", "range_start", "seq")

    def __init__(self) -> None:
        # How many invalidations have begun and not ended.
        self.in_progress = 0
        # How many invalidations have ended.
        self.seq = 0
        # gfns; meaningless while no invalidation is in progress.
        self.range_start = 0
        self.range_end = 0

    def begin(self, start: int, end: int) -> None:
        """Begin an invalidation of the gfns from *start* to *end*.

        While several are in progress the range is their hull, and it stays so until the
        last one has ended: this can only cause needless retries.
        """
        self.in_progress += 1
        if self.in_progress == 1:
            self.range_start, self.range_end = start, end
        else:
            self.range_start = min(self.range_start, start)
            self.range_end = max(self.range_end, end)

    def end(self) -> None:
        """End one invalidation."""
        assert self.in_progress > 0, "an end without its begin"
        # The kernel needs this order: a reader without the lock that sees in_progress
        # at 0 must also see the new seq.
        self.seq += 1
        self.in_progress -= 1

    def covers(self, start: int, end: int) -> bool:
        """Whether an invalidation in progress may concern the gfns *start* to *end*."""
        return (
            self.in_progress > 0 and start < self.range_end and self.range_start < end
        )

    def wait(self, changed: Condition, start: int, end: int) -> None:
        """Wait while `covers` is true, but not for ever. (KVM just faults again.)

        *changed* is notified when an invalidation ends; the caller holds its lock.
        """
        changed.wait_for(lambda: not self.covers(start, end), _PATIENCE)

    def retry(self, seq: int, start: int, end: int) -> bool:
        """mmu_invalidate_retry_gfn(): whether what was found since *seq* is stale."""
        return self.covers(start, end) or self.seq != seq
