"""A device: it reads and writes memory by iova at any time, and cannot fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.memory import Place
from inaccfs.kvm.uapi import PAGE_SHIFT, PAGE_SIZE, no_hook

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.iommu.iotable import IoTable
    from inaccfs.kvm.sync import Lock


class Device:
    """A device behind an IOMMU. One thread uses it at a time.

    An access where nothing is mapped is aborted, and counted: a read returns ones, and
    written data is lost, as on PCI Express.
    """

    def __init__(self, table: IoTable, number: int, busy: Lock) -> None:
        """Use `Iommu.create_device`."""
        self.number: Final = number
        self._io: Final = table
        # Held from the walk to the end of the copy: an unmapping waits for it, as the
        # invalidation of an IOTLB waits for accesses in progress.
        self.busy: Final = busy

    def __repr__(self) -> str:
        return f"<Device {self.number}>"

    def read(self, iova: int, size: int) -> bytes:
        """Read *size* bytes at *iova*.

        Raises:
            ControlError: the daemon has ended.
        """
        pieces: list[bytes] = []

        def copy(place: Place | None, part: int) -> None:
            ones = b"\xff" * part
            pieces.append(ones if place is None else self._io.memory.read(place, part))

        self._access(iova, size, copy)
        return b"".join(pieces)

    def write(self, iova: int, data: bytes) -> None:
        """Write *data* at *iova*; raises as `read` does."""
        rest = memoryview(data)

        def copy(place: Place | None, part: int) -> None:
            nonlocal rest
            if place is not None:
                self._io.memory.write(place, rest[:part])
            rest = rest[part:]

        self._access(iova, len(data), copy)

    def _access(
        self, iova: int, size: int, copy: Callable[[Place | None, int], None]
    ) -> None:
        if iova < 0 or size < 0:
            raise ValueError(f"iova {iova}, size {size}")
        end = iova + size
        while iova < end:
            stop = min(end, (iova | PAGE_SIZE - 1) + 1)
            self._page(iova, stop - iova, copy)
            iova = stop

    def _page(
        self, iova: int, size: int, copy: Callable[[Place | None, int], None]
    ) -> None:
        io, page = self._io, iova >> PAGE_SHIFT
        # Ask before the access: then a stale entry was certainly stale before it.
        stale = io.stale_entry(page)
        with self.busy:
            entry = io.table.get(page)
            if io.hook is not no_hook:
                io.hook("access", page, page + 1)
            area = io.area_of(page)
            window = None if area is None else area.backing.window
            place: Place | None = None
            if entry is not None and area is not None and window is not None:
                position = (area.page_of(page) << PAGE_SHIFT) + iova % PAGE_SIZE
                if position + size <= len(window):
                    place = Place(window, position, iova, entry.pfn)
            copy(place, size)
        io.count(
            aborted=place is None,
            stale=place is not None and stale is not None and entry is stale,
        )
