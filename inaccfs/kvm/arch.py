"""What the CPU's vendor adds to KVM: hooks, each with its reason and its lock.

One callback was not enough: a conversion must keep what a guest has written, and a free
must scrub it (KVM: guest_memfd: in-place conversion, the discussion of v8). So there is
a hook for each, as in kvm_arch_gmem_*() and as the tree after v8 has them.
"""

from __future__ import annotations


class Arch:
    """Does nothing: derive from it, and give one to a `VM`. gfns and pfns of 4 KiB.

    The hooks of one VM are called from the threads that fault, convert and call back.
    Those with a lock must not use the VM or its client.
    """

    def make_private(self, gfn: int, pfn: int, pages: int) -> None:
        """Each get-pfn of private pages, also repeated: it has to be idempotent.

        With the lock for frames, which stands for the folio's.
        """

    def make_shared(self, pfn: int, pages: int) -> None:
        """Private pages become shared: after their zap, before the attribute is stored.

        With the lock for frames. The file's list of notifiers is locked, which stands
        for the invalidate_lock.
        """

    def reclaim(self, pfn: int, pages: int) -> None:
        """Frames that were made private leave the file. Without a lock."""

    def invalidate_range(self, start: int, end: int) -> None:
        """Gfns are about to be zapped: for an event, and with a slot. With mmu_lock."""
