"""The hooks of a CPU's vendor in KVM, each with its reason and its lock.

One callback was not enough: a conversion must keep what a guest has written, and a free
must scrub it (Fuad Tabba, review of in-place conversion v8). So there is a hook for
each reason, as in the tree after v8.
"""

from __future__ import annotations


class Arch:
    """Hooks that do nothing. Derive from it. gfns and pfns count pages of 4 KiB.

    Hooks are called in the threads that fault, convert and run callbacks. They must use
    neither the VM nor its client. This KVM is a client, so it gets less information
    than KVM in the kernel: two hooks need rules that provide it.
    """

    def make_private(self, gfn: int, pfn: int, pages: int) -> None:
        """For each get-pfn of private pages, also repeated ones: it must be idempotent.

        Called with the lock of frames, which stands for the folio lock.
        """

    def make_shared(self, pfn: int, pages: int) -> None:
        """For mapped private pages that become shared: after the zap, before the store.

        Called with the lock of frames; the file's list of notifiers is locked, too,
        which stands for the invalidate_lock. It needs the rules `conversion_kinds`
        "opposite" and `kinds` "both": otherwise an event does not say whether a
        conversion sends it.
        """

    def reclaim(self, pfn: int, pages: int) -> None:
        """For frames that have left the file, as in free_folio(). No lock is held.

        It needs the rule `tells_frames`: otherwise events do not list the frames that
        are removed.
        """

    def invalidate_range(self, start: int, end: int) -> None:
        """Before gfns are zapped for an event or a slot. mmu_lock is held."""
