"""The first content of private pages, and its loss where a zap destroys it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.memory import Place
from inaccfs.kvm.uapi import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inaccfs.kvm.faults import Faults
    from inaccfs.kvm.memory import GuestMemory
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.pagetable import Run
    from inaccfs.kvm.shim import ShimFile

_ZEROS: Final = memoryview(bytes(PAGE_SIZE))


def populate(
    mmu: Mmu,
    faults: Faults,
    start: int,
    end: int,
    source: ShimFile | None,
    source_offset: int,
) -> int:
    """See `VM.populate`. With slots_lock; gfns."""
    slot = mmu.slots.find(start)
    if slot is None or slot.backing is None:
        raise OSError(
            errno.EINVAL, f"no slot with a file at gpa {start << PAGE_SHIFT:#x}"
        )
    end = min(end, slot.end_gfn)
    done = slot.backing.populate(slot.pgoff(start), end - start, source, source_offset)
    if mmu.destroy is not None:
        faults.pre_fault(start, start + done)
    return done


def destroy(mmu: Mmu, memory: GuestMemory, runs: Iterable[Run]) -> None:
    """Clear the content of private pages that were zapped, where a zap destroys it.

    With mmu_lock, after the flush. The pages are still present: mappings are zapped
    before a removal, except under the rule `order` "after".
    """
    if mmu.rules.order == "after":
        # Writing to removed pages would allocate new ones.
        return
    for run in runs:
        for gfn in range(run.gfn, run.gfn + run.pages):
            slot = mmu.slots.find(gfn)
            backing = None if slot is None else slot.backing
            window = None if backing is None else backing.window
            if slot is None or window is None:
                continue
            position = slot.pgoff(gfn) << PAGE_SHIFT
            if position < len(window):
                pfn = run.pfn + gfn - run.gfn
                memory.write(Place(window, position, gfn << PAGE_SHIFT, pfn), _ZEROS)
