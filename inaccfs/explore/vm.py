"""A VM of a scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inaccfs.kvm import VM

if TYPE_CHECKING:
    from inaccfs.explore.client import ExploredClient
    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.tracked_guest import Places
    from inaccfs.kvm import Vmm


class ExploredVM(VM):
    """A VM of a scenario."""

    name: str
    client: ExploredClient
    vmm: Vmm
    # The file and the page of each gfn, as the scenario defines them.
    places: Places

    @property
    def in_progress(self) -> int:
        """mmu_invalidate_in_progress."""
        return self._mmu.invalidation.in_progress

    @property
    def is_connected(self) -> bool:
        """Whether it is still connected. The read is tracked."""
        self.client.connected()
        return self.client.client.lost is None

    def balance(self) -> int:
        """The number of mappings by the VM's counters: installed minus zapped."""
        counters = self._mmu.counters
        return sum(counters.installed) - sum(counters.zapped)

    def check_counts(self, schedule: Schedule) -> None:
        """Find counters that do not agree with what is mapped."""
        if any(slot.end_gfn - 1 not in self.places for slot in self.slots):
            return
        mmu = self._mmu
        counters = mmu.counters
        there = sum(
            (mmu.table.walk(gfn) or mmu.shared_table.walk(gfn)) is not None
            for gfn in self.places
        )
        if there != self.balance():
            schedule.violate(
                "miscounted",
                f"{self.name} has counted {sum(counters.installed)} mappings that were "
                f"installed and {sum(counters.zapped)} that were zapped, and has "
                f"{there}",
            )
