"""What a VM has counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inaccfs.kvm.pagetable import ByLevel


@dataclass(slots=True)
class Counters:
    """Guarded by mmu_lock."""

    faults: int = 0
    retries: int = 0
    spurious: int = 0
    exits: int = 0
    invalidations: int = 0
    zaps: int = 0
    conversions: int = 0
    prefaulted: int = 0
    # By level, from 4 KiB on.
    installed: list[int] = field(default_factory=lambda: [0, 0, 0])
    zapped: list[int] = field(default_factory=lambda: [0, 0, 0])


def add(counts: list[int], more: ByLevel) -> None:
    """Count *more* mappings, level by level."""
    for index, count in enumerate(more):
        counts[index] += count


@dataclass(frozen=True, slots=True)
class Stats:
    """A VM at one moment; all but the last three count since it was made."""

    # Private faults that were begun, each retry of one as one more.
    faults: int
    # Faults and pre-faults that were dropped: an invalidation had come between.
    retries: int
    # Faults that found their gfn mapped already, by another vCPU.
    spurious: int
    # MemoryFaultExits.
    exits: int
    # Callbacks of the shim that concerned a slot.
    invalidations: int
    # Ranges that were zapped, for whatever reason.
    zaps: int
    # Calls of set_memory_attributes() that changed something.
    conversions: int
    # Pages of 4 KiB that pre_fault_memory() has mapped.
    prefaulted: int
    # Mappings made and taken away, pre-faulted ones too.
    installed: ByLevel
    zapped: ByLevel
    # Mappings of now.
    mapped: ByLevel
    # Invalidations of now.
    in_progress: int
    # Pages of 4 KiB that are there twice, in a slot's file and in its shared memory.
    # None where the mount refuses get-memory, or its daemon has gone.
    double_allocated: int | None
