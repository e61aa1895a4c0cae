"""The secondary MMU of a VM: mmu_lock, and what it guards.

Locks, from the outside in:

1. slots_lock (`VM`): changes of slots and attributes. Held across client calls.
2. mmu_lock: the page table, the retry protocol, the attributes, the counters, which
   slots there are, and how many users each has. Never held across a client call: the
   daemon may be waiting for a callback that takes it.
3. a vCPU's guest_mode: held while it walks and copies. Its holder takes no other lock
   (except the cipher's, which is held for nothing else), and never calls the client.
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.kvm.arch import Arch
from inaccfs.kvm.attributes import MemoryAttributes
from inaccfs.kvm.invalidation import Invalidation
from inaccfs.kvm.memslots import MemorySlots
from inaccfs.kvm.mmiocache import MmioCache
from inaccfs.kvm.pagetable import ByLevel, PageTable
from inaccfs.kvm.sharedpages import SharedPages
from inaccfs.kvm.stats import Counters, add
from inaccfs.kvm.sync import THREADS
from inaccfs.kvm.uapi import (
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    level_of_order,
    order_of_level,
    pages_of_level,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.pagetable import Run
    from inaccfs.kvm.shim import ShimSemantics
    from inaccfs.kvm.sync import Lock, Sync
    from inaccfs.kvm.uapi import Spte


class Snapshot(NamedTuple):
    """The state at one moment."""

    counters: Counters
    # The mappings, of both kinds.
    mapped: ByLevel
    # The number of mapped shared pages of 4 KiB.
    mapped_shared: int
    # Invalidations in progress.
    in_progress: int


class Mmu:
    """Methods that begin with an underscore or end in _locked need mmu_lock held."""

    def __init__(
        self,
        rules: ShimSemantics,
        *,
        default_private: bool | None = None,
        protected: bool = True,
        invalidation: Invalidation | None = None,
        sync: Sync = THREADS,
        arch: Arch | None = None,
    ) -> None:
        self.rules: Final = rules
        # Whether the VM has private memory.
        self.protected: Final = protected
        self._serves: Final = not protected and rules.kvm_default_vm == "served"
        # Whether attributes are kept in files; and whether these have the shared pages,
        # too. If not, shared pages are in the memory that the VMM gave.
        self.in_place: Final = rules.in_place
        self.shared_in_file: Final = self.in_place and (
            rules.kvm_shared_source == "file" or rules.mappable
        )
        # Whether a fault reads the attribute before it gets the page.
        self.asks_first: Final = self.in_place and (
            rules.kvm_attribute_read == "before get-pfn" or not self.shared_in_file
        )
        self._huge: Final = rules.kvm_huge and (
            # A huge page may have pages of both kinds, which only the file knows.
            not self.in_place or rules.by_huge_page
        )
        if default_private is None:
            default_private = rules.kvm_default_attribute == "private"
        self.lock: Final = sync.lock("mmu_lock")
        # Notified when an invalidation ends, or a slot loses its last user.
        self.changed: Final = sync.condition(self.lock)
        self.invalidation: Final = invalidation or Invalidation()
        self.table: Final = PageTable()
        # The mappings of the shared pages of slots whose file keeps the attributes:
        # KVM's direct root, beside the mirror root for the private ones. If the pages
        # are not in the file, their frames are unknown: the gfn stands for the pfn.
        self.shared_table: Final = PageTable()
        self.attributes: Final = MemoryAttributes(
            default_private=protected and default_private and not self.in_place
        )
        # The gfns of shared pages that are mapped. A vCPU adds to them in guest mode; a
        # thread that removes some has waited for that.
        self.shared: Final = SharedPages()
        # Used by the rule kvm_keeps_mmio.
        self.mmio: Final = MmioCache()
        self.counters: Final = Counters()
        # The hooks of the CPU's vendor.
        self.arch: Final = arch or Arch()
        # Held during hooks that concern frames: it stands for the folio locks. None if
        # there are no hooks.
        self.frames_lock: Final = None if arch is None else sync.lock("frames_lock")
        # Called with the private mappings that were zapped, if a zap destroys their
        # content.
        self.destroy: Callable[[list[Run]], None] | None = None
        # The guest_mode locks of the vCPUs; see `flush`.
        self.guest_modes: Final[list[Lock]] = []
        # Replaced as a whole, under mmu_lock; read without it.
        self.slots = MemorySlots()

    # --- slots ------------------------------------------------------------------------

    def exchange(self, old: MemorySlot | None, new: MemorySlot | None) -> None:
        """Replace slot *old* by *new*; None adds, or removes, a slot."""
        with self.lock:
            slots = self.slots if old is None else self.slots.minus(old)
            self.slots = slots if new is None else slots.plus(new)
            self.mmio.next_generation()

    def is_served(self, slot: MemorySlot | None) -> bool:
        """KVM_MEMSLOT_GMEM_ONLY: whether the file serves all accesses to the slot."""
        serves = self.shared_in_file if self.in_place else self._serves
        return serves and slot is not None and slot.backing is not None

    def uses_file(self, slot: MemorySlot | None) -> bool:
        """Whether the file serves all accesses to the slot, or the private ones."""
        private = self.protected and slot is not None and slot.backing is not None
        return private or self.is_served(slot)

    @contextmanager
    def hold(self, slot: MemorySlot) -> Iterator[bool]:
        """Keep a slot from being freed meanwhile; False if it has been deleted."""
        with self.lock:
            there = slot in self.slots.slots
            slot.users += there
        try:
            yield there
        finally:
            if there:
                self.leave(slot)

    def leave(self, slot: MemorySlot) -> None:
        """Subtract one from `MemorySlot.users`, to which the caller had added one."""
        with self.lock:
            slot.users -= 1
            if not slot.users:
                self.changed.notify_all()

    # --- zapping ----------------------------------------------------------------------

    def zap(
        self,
        start: int,
        end: int,
        kinds: str | None = None,
        zaps: tuple[int, int] | None = None,
    ) -> None:
        """kvm_zap_gfn_range(): begin, unmap, end. Afterwards no access is in progress.

        A fault that looked its frame up before this cannot install it any more.
        """
        with self.lock:
            try:
                self._begin_locked(start, end, kinds, zaps)
            finally:
                self.end_locked()

    def begin(
        self,
        start: int,
        end: int,
        kinds: str | None = None,
        zaps: tuple[int, int] | None = None,
    ) -> list[Run]:
        """Zap, and keep faults out until `end`, also if a hook raises here.

        With *zaps* it unmaps only these gfns, from a start to an end, and splits huge
        mappings that reach beyond them. Returns the private mappings that were zapped,
        if there are hooks.
        """
        with self.lock:
            return self._begin_locked(start, end, kinds, zaps)

    def _begin_locked(
        self, start: int, end: int, kinds: str | None, zaps: tuple[int, int] | None
    ) -> list[Run]:
        self.invalidation.begin(start, end)
        if zaps is not None:
            start, end = zaps
            self._split(start, end)
        hooked = self.frames_lock is not None
        private = self.table.between(start, end) if hooked else []
        if start < end:
            self.zap_locked(start, end, kinds)
        return private

    def _split(self, start: int, end: int) -> None:
        """Split huge mappings of private pages that reach beyond these gfns.

        This needs no flush: each gfn stays mapped to its frame.
        """
        for gfn in (start, end) if start < end else ():
            more = self.table.split(gfn)
            add(self.counters.installed, ByLevel(*(max(each, 0) for each in more)))
            add(self.counters.zapped, ByLevel(*(max(-each, 0) for each in more)))

    def end(self) -> None:
        """End one invalidation."""
        with self.lock:
            self.end_locked()

    def zap_locked(self, start: int, end: int, kinds: str | None = None) -> None:
        """Unmap, and wait for vCPUs that may still use a mapping. With mmu_lock.

        Of a file that has both kinds of pages, it unmaps only those of *kinds*.
        """
        counters = self.counters
        counters.zaps += 1
        lost: list[Run] = []
        try:
            self.arch.invalidate_range(start, end)
        finally:
            if not self.in_place or kinds != "shared":
                if self.destroy is not None:
                    lost = self.table.between(start, end)
                self._unmap(self.table, start, end)
            if self.in_place and kinds != "private":
                self._unmap(self.shared_table, start, end)
        if self.destroy is not None:
            counters.destroyed += sum(run.pages for run in lost)
            self.destroy(lost)

    def _unmap(self, table: PageTable, start: int, end: int) -> None:
        zapped = table.zap(start, end)
        if any(zapped):
            add(self.counters.zapped, zapped)
            self.flush()

    def end_locked(self) -> None:
        """`end`, with mmu_lock."""
        self.invalidation.end()
        self.changed.notify_all()

    def flush(self) -> None:
        """kvm_flush_remote_tlbs(): afterwards no vCPU uses a zapped mapping.

        A vCPU has no TLB; it walks the table at each access. So it is enough to wait
        until each has left guest mode once. With or without mmu_lock.
        """
        for mode in self.guest_modes:
            with mode:
                pass

    def convert(self, start: int, end: int, *, private: bool) -> None:
        """Change the attributes of gfns, and unmap these. Patch 5/8.

        v8 stores and then zaps, without begin and end: a fault that read the attributes
        before would install a page that is no longer private. Here, as in mainline,
        begin and end bracket both.
        """
        with self.lock:
            self.invalidation.begin(start, end)
            try:
                if self.attributes.set(start, end, private=private):
                    self.counters.conversions += 1
                    try:
                        self.zap_locked(start, end)
                    finally:
                        # Even if nothing was zapped: shared memory has no entries.
                        self.flush()
                        self.shared.zap(start, end)
            finally:
                self.end_locked()

    # --- installing -------------------------------------------------------------------

    def wait(self, start: int, end: int) -> None:
        """Wait while an invalidation may concern these gfns; see `Invalidation`."""
        with self.lock:
            self.invalidation.wait(self.changed, start, end)

    def level_locked(self, slot: MemorySlot, gfn: int, pfn: int, order: int) -> int:
        """The largest level at which *gfn* can be mapped. With mmu_lock.

        Attributes change under mmu_lock, so neighbouring gfns cannot be converted
        meanwhile, which this fault's retry would not notice. Invalidations in progress
        are excluded, too: a fault calls `retry` for its own gfn only, as posted, so a
        huge page that reached into a range being punched would stay mapped there
        after the punch.
        """
        level = level_of_order(order) if self._huge else PG_LEVEL_4K
        while level > PG_LEVEL_4K:
            pages = pages_of_level(level)
            first = gfn & -pages
            if not (
                (gfn ^ pfn) & (pages - 1)
                or slot.disallow_lpage(gfn, level, self.attributes)
                or self.invalidation.covers(first, first + pages)
            ):
                break
            level -= 1
        return level

    def install_locked(
        self,
        table: PageTable,
        slot: MemorySlot,
        gfn: int,
        pfn: int,
        pages: int,
        order: int,
    ) -> None:
        """Map the frames of a fault: contiguous ones, of folios of one order.

        With mmu_lock, after `Invalidation.retry`. The *table* is one of the two.
        """
        if pages == 1:
            self._map_one(table, slot, gfn, pfn, order)
            return
        end = gfn + pages
        while gfn < end:
            level = self.level_locked(slot, gfn, pfn, order)
            if level > PG_LEVEL_4K:
                stop = (gfn & -pages_of_level(level)) + pages_of_level(level)
                self._map_one(table, slot, gfn, pfn, order)
            else:
                stop = end
                if order >= order_of_level(PG_LEVEL_2M):
                    stop = min(end, (gfn | pages_of_level(PG_LEVEL_2M) - 1) + 1)
                self._map_pages(table, gfn, pfn, stop - gfn)
            gfn, pfn = stop, pfn + stop - gfn

    def _map_one(
        self, table: PageTable, slot: MemorySlot, gfn: int, pfn: int, order: int
    ) -> None:
        """Map *gfn* by the largest page possible, instead of smaller or stale ones."""
        old = table.walk(gfn)
        level = self.level_locked(slot, gfn, pfn, order)
        if old is not None and old.pfn == pfn and old.level >= level:
            self.counters.spurious += 1
            return
        pages = pages_of_level(level)
        first = gfn & -pages
        if old is not None or level > PG_LEVEL_4K:
            self._unmap(table, first, first + pages)
        if level == PG_LEVEL_4K:
            table.map_pages(gfn, pfn, 1)
        else:
            table.map_huge(first, pfn & -pages, level)
        self.counters.installed[level - 1] += 1

    def _map_pages(self, table: PageTable, gfn: int, pfn: int, count: int) -> None:
        before = table.map_pages(gfn, pfn, count)
        if before:
            # They may have mapped stale frames.
            self.flush()
        self.counters.spurious += before
        self.counters.installed[0] += count - before

    # --- looking ----------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """A copy of the counters, and what is mapped and in progress."""
        with self.lock:
            private, shared = self.table.count(), self.shared_table.count()
            pages = sum(
                count * pages_of_level(level) for level, count in enumerate(shared, 1)
            )
            return Snapshot(
                deepcopy(self.counters),
                ByLevel(*(sum(pair) for pair in zip(private, shared, strict=True))),
                len(self.shared) + pages,
                self.invalidation.in_progress,
            )

    def walk(self, gfn: int) -> Spte | None:
        """The mapping of *gfn* to a frame of a file; None if there is none."""
        spte = self.table.walk(gfn)
        if spte is None and self.shared_in_file:
            spte = self.shared_table.walk(gfn)
        return spte
