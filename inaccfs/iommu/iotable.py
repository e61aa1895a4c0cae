"""The I/O page table, its lookups, and its counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.iommu.stats import Stats
from inaccfs.kvm.invalidation import Invalidation

if TYPE_CHECKING:
    from inaccfs.iommu.area import Area, Entry
    from inaccfs.kvm.memory import GuestMemory
    from inaccfs.kvm.shim import Shim
    from inaccfs.kvm.sync import Lock, Sync
    from inaccfs.kvm.uapi import Hook


class IoTable:
    """The state that an IOMMU and its devices share."""

    def __init__(self, shim: Shim, memory: GuestMemory, hook: Hook, sync: Sync) -> None:
        self._shim: Final = shim
        self.memory: Final = memory
        self.hook: Final = hook
        # Guards all attributes below.
        self.lock: Final = sync.lock("iommu_lock")
        # Notified when an invalidation ends.
        self._changed: Final = sync.condition(self.lock)
        self.invalidation: Final = Invalidation()
        # By iova, in pages. Read by devices without the lock.
        self.table: Final[dict[int, Entry]] = {}
        # Replaced as a whole; read without the lock.
        self.areas: tuple[Area, ...] = ()
        # The lock of each device, which it holds during an access.
        self.devices: Final[list[Lock]] = []
        self.stats: Final = Stats()

    def end(self) -> None:
        """End one invalidation. With the lock."""
        self.invalidation.end()
        self._changed.notify_all()

    def wait(self, start: int, end: int) -> None:
        """Wait while an invalidation may concern these iovas; see `Invalidation`."""
        with self.lock:
            self.invalidation.wait(self._changed, start, end)

    def drop(self, pages: list[int]) -> None:
        """Unmap pages, and wait for the devices. With the lock."""
        for page in pages:
            del self.table[page]
        for busy in self.devices:
            with busy:
                pass

    def area_of(self, page: int) -> Area | None:
        """The area at an iova, in pages."""
        return next((a for a in self.areas if a.first <= page < a.end), None)

    def stale_entry(self, page: int) -> Entry | None:
        """The entry at an iova, in pages, if its page has changed since the mapping.

        It asks the daemon which frame the page has, and of what kind it is.
        """
        entry, area = self.table.get(page), self.area_of(page)
        if entry is None or area is None:
            return None
        pgoff = area.page_of(page)
        backing = area.backing
        if entry.private is not None and backing.attribute(pgoff)[0] != entry.private:
            return entry
        for pin in self._shim.query_pins().extents:
            if pin.ino == backing.ino:
                first = pin.offset << backing.shift
                if first <= pgoff < first + (pin.count << backing.shift):
                    return None if pin.pfn + pgoff - first == entry.pfn else entry
        return entry

    def count(self, *, aborted: bool, stale: bool) -> None:
        """Count an access of a device to a page."""
        with self.lock:
            self.stats.accesses += 1
            self.stats.aborted += aborted
            self.stats.uses_after_change += stale
