"""What the CPU's vendor adds to KVM: hooks, each with its reason and its lock.

One callback was not enough: a conversion must keep what a guest has written, and a free
must scrub it (Fuad Tabba, review of in-place conversion v8). So there is a hook for
each reason, as in the tree after v8.
"""

from __future__ import annotations


class Arch:
    """Does nothing: derive from it, and give one to a `VM`. gfns and pfns of 4 KiB.

    Hooks are called from the threads that fault, convert and call back. They must use
    neither the VM nor its client. This KVM is a client, which learns less than KVM in
    the kernel: two hooks need rules that let it know.
    """

    def make_private(self, gfn: int, pfn: int, pages: int) -> None:
        """Each get-pfn of private pages, also repeated: it has to be idempotent.

        With the lock of frames, which stands for the folio's.
        """

    def make_shared(self, pfn: int, pages: int) -> None:
        """Mapped private pages become shared: after the zap, before the store.

        With the lock of frames; the file's list of notifiers is locked, too, which
        stands for the invalidate_lock. Where `conversion_kinds` is "opposite" and
        `kinds` "both": else an event does not say whether it is of a conversion.
        """

    def reclaim(self, pfn: int, pages: int) -> None:
        """Frames have left the file, as by free_folio(). Without a lock.

        Where `tells_frames` is True: else events do not say which frames go.
        """

    def invalidate_range(self, start: int, end: int) -> None:
        """Gfns are about to be zapped: for an event, or a slot. With mmu_lock."""
