"""The steps of a fault: operations that may wait for other threads, or let them run.

No lock is held when `Faults` yields one. Calling a step performs it, and returns the
value to send to the generator.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from inaccfs.kvm.uapi import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.kvm.backing import BackingFile, Frames
    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.uapi import Hook


class Point(NamedTuple):
    """Call the hook."""

    hook: Hook
    name: str
    start: int
    end: int

    def __call__(self) -> None:
        self.hook(self.name, self.start, self.end)


class Get(NamedTuple):
    """Ask the daemon for the frames of pages; the result is frames with references.

    Numbers are pages of 4 KiB.
    """

    backing: BackingFile
    pgoff: int
    pages: int

    def __call__(self) -> Sequence[Frames]:
        return self.backing.get(self.pgoff, self.pages)


class Ask(NamedTuple):
    """Ask the daemon whether a gfn is private, and where the gfns alike end."""

    slot: MemorySlot
    gfn: int

    def __call__(self) -> tuple[bool, int]:
        slot, backing = self.slot, self.slot.backing
        assert backing is not None
        pgoff = slot.pgoff(self.gfn)
        private, end = backing.attribute(pgoff)
        return private, self.gfn + end - pgoff


class Put(NamedTuple):
    """Give the references back."""

    backing: BackingFile
    frames: Sequence[Frames]

    def __call__(self) -> None:
        self.backing.put(self.frames)


class Reach(NamedTuple):
    """Map the file's memory up to a page, for the accesses that come next."""

    backing: BackingFile
    pgoff: int

    def __call__(self) -> None:
        self.backing.reach(self.pgoff)


class Wait(NamedTuple):
    """Wait until no invalidation may concern these gfns."""

    mmu: Mmu
    start: int
    end: int

    def __call__(self) -> None:
        self.mmu.wait(self.start, self.end)


class Look(NamedTuple):
    """Look shared pages up in the VMM's page table, as by touching them.

    The result is the gfn after those that have memory.

    Raises:
        OSError: EFAULT where the VMM has no memory for the first of them.
    """

    slot: MemorySlot
    start: int
    end: int

    def __call__(self) -> int:
        slot = self.slot
        if slot.shared is None:
            raise OSError(errno.EFAULT, f"slot {slot.id} has no shared memory")
        for gfn in range(self.start, self.end):
            try:
                slot.shared.read((gfn - slot.base_gfn) << PAGE_SHIFT, 1)
            except OSError:
                if gfn == self.start:
                    raise
                return gfn
        return self.end


class Touch(NamedTuple):
    """Map shared pages, if the VM has the attributes. As `Look`."""

    mmu: Mmu
    slot: MemorySlot
    start: int
    end: int

    def __call__(self) -> int:
        mmu = self.mmu
        end = Look(self.slot, self.start, self.end)()
        for gfn in range(self.start, end):
            with mmu.lock:
                if not mmu.attributes.is_private(gfn):
                    mmu.shared.map(gfn, gfn + 1)
        return end


Step: TypeAlias = Ask | Get | Look | Point | Put | Reach | Touch | Wait
