"""The statistics of a VM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inaccfs.kvm.pagetable import ByLevel


@dataclass(slots=True)
class Counters:
    """The counters, guarded by mmu_lock."""

    faults: int = 0
    retries: int = 0
    spurious: int = 0
    exits: int = 0
    invalidations: int = 0
    zaps: int = 0
    conversions: int = 0
    prefaulted: int = 0
    destroyed: int = 0
    # By level, from 4 KiB on.
    installed: list[int] = field(default_factory=lambda: [0, 0, 0])
    zapped: list[int] = field(default_factory=lambda: [0, 0, 0])


def add(counts: list[int], more: ByLevel) -> None:
    """Count *more* mappings, level by level."""
    for index, count in enumerate(more):
        counts[index] += count


@dataclass(frozen=True, slots=True)
class Stats:
    """The counters of a VM since it was made; the last four are its present state."""

    # Private faults that began; each retry counts as one more.
    faults: int
    # Faults and pre-faults that were repeated because an invalidation raced with them.
    retries: int
    # Faults whose gfn another vCPU had mapped meanwhile.
    spurious: int
    # MemoryFaultExits.
    exits: int
    # Callbacks of the shim whose range concerned a slot.
    invalidations: int
    # Ranges that were zapped, for any reason.
    zaps: int
    # Calls of set_memory_attributes() that changed something.
    conversions: int
    # Pages of 4 KiB that pre_fault_memory() has mapped.
    prefaulted: int
    # Private pages of 4 KiB whose content was lost because they were zapped, in a VM
    # with zap="destroys".
    destroyed: int
    # Mappings that were installed and zapped, pre-faulted ones too.
    installed: ByLevel
    zapped: ByLevel
    # Mappings of private pages at this moment, and of a file's shared pages.
    mapped: ByLevel
    # Shared pages of 4 KiB that are mapped: a file's, or the VMM's.
    mapped_shared: int
    # Invalidations in progress at this moment.
    in_progress: int
    # Pages of 4 KiB that both a slot's file and its shared memory have. None if the
    # mount refuses get-memory, or its daemon has ended.
    double_allocated: int | None
