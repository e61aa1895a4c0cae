"""IOMMUs of a scenario: what their steps touch; finds uses after a change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from inaccfs.explore import keys
from inaccfs.explore.guard import GuardError
from inaccfs.explore.memory import GuestBytes
from inaccfs.explore.names import frame
from inaccfs.iommu import Iommu
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.shim.attributes import Attributes

if TYPE_CHECKING:
    from collections.abc import Hashable

    from inaccfs.explore.client import ExploredClient
    from inaccfs.explore.schedule import Schedule
    from inaccfs.iommu.area import Area, Entry
    from inaccfs.kvm.memory import Place
    from inaccfs.shim.file import InaccessibleFile


class _Entries(dict[int, "Entry"]):
    """An I/O page table that tracks each entry."""

    def __init__(self, schedule: Schedule, number: int) -> None:
        super().__init__()
        self._schedule: Final = schedule
        self._number: Final = number
        # The last entry of each page, also after it was unmapped.
        self.last: Final[dict[int, Entry]] = {}

    def _touch(self, page: int, write: bool) -> None:
        if self._schedule.runs:
            self._schedule.touch(("iopte", self._number, page), write)

    def get(self, page: int, default: Any = None) -> Any:  # noqa: ANN401 - a dict's
        self._touch(page, False)
        return super().get(page, default)

    def __contains__(self, page: object) -> bool:
        assert isinstance(page, int)
        self._touch(page, False)
        return super().__contains__(page)

    def __setitem__(self, page: int, entry: Entry) -> None:
        self._touch(page, True)
        self._schedule.note(f"maps iova page {page} -> frame {frame(entry.pfn)}")
        self.last[page] = entry
        super().__setitem__(page, entry)

    def __delitem__(self, page: int) -> None:
        self._touch(page, True)
        self._schedule.note(f"unmaps iova page {page}")
        super().__delitem__(page)


class DeviceBytes(GuestBytes):
    """What devices read and write; an access after a change is a violation."""

    file: InaccessibleFile
    iommu: ExploredIommu

    def _reach(self, place: Place, *, write: bool) -> tuple[int, int]:
        file, page = super()._reach(place, write=write)
        if self._schedule.runs:
            self._schedule.touch(keys.page(file, page), False)
            self._schedule.touch(keys.kind(file, page), False)
        memory = self.file.pages.memory
        known = None if memory is None else memory.frames.known(page, page + 1)
        now = known[0].pfn if known else None
        # A device may use an entry while it is being unmapped, until the unmapping
        # waits for the device.
        entry = self.iommu.entries.last[place.gpa // PAGE_SIZE]
        private = Attributes.is_private(self.file.attributes, page)
        why = ""
        if now != place.pfn:
            why = f"which has {'none' if now is None else frame(now)} now"
        elif entry.private is not None and private != entry.private:
            why = f"which is {'private' if private else 'shared'} now"
        if why:
            self._schedule.violate(
                "use-after-change",
                f"a device uses frame {frame(place.pfn)} for page {page}, {why}",
            )
        return file, page


class ExploredIommu(Iommu):
    """An IOMMU of a scenario."""

    client: ExploredClient
    entries: _Entries

    def map_file(self, fd: int, iova: int, size: int, offset: int = 0) -> Area:
        """See `Iommu.map_file`. For `setup`: devices read the areas without a lock."""
        self._check_setup("map_file")
        return super().map_file(fd, iova, size, offset)

    def unmap(self, iova: int, size: int) -> int:
        """See `Iommu.unmap`. For `setup`, too."""
        self._check_setup("unmap")
        return super().unmap(iova, size)

    def _check_setup(self, name: str) -> None:
        if self.client.schedule.runs:
            raise GuardError(f"an actor calls {name}(), which is for setup()")

    def watch(self, schedule: Schedule, number: int) -> None:
        """Track what its devices and callbacks share. It has no areas yet."""
        io = self._io
        io.__dict__["table"] = self.entries = _Entries(schedule, number)
        # The originals ask the daemon whether an entry is stale, and count. Here
        # `DeviceBytes` finds stale entries.
        io.__dict__["stale_entry"] = lambda _: None
        io.__dict__["count"] = lambda **_: None
        schedule.state.untracked.append(self._state)

    def _state(self) -> Hashable:
        io = self._io
        now = io.invalidation
        return (
            *(now.in_progress, now.seq, now.range_start, now.range_end),
            tuple(sorted(dict.items(io.table))),
            *((each.revoked, each.begun, *sorted(each.pending)) for each in io.areas),
        )
