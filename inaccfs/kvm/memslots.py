"""Memslots: the ranges of guest memory, and the memory that backs them.

Patches 2/8 and 8/8, and __kvm_set_memory_region() of virt/kvm/kvm_main.c. A slot has
two halves: shared memory, which the VMM has mapped, and private memory, which is in a
file of the shim.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from inaccfs.kvm.uapi import (
    KVM_LPAGE_PRIVATE_SHARED_MIXED,
    PAGE_SHIFT,
    pages_of_level,
)

if TYPE_CHECKING:
    from inaccfs.kvm.attributes import MemoryAttributes
    from inaccfs.kvm.backing import BackingFile
    from inaccfs.kvm.memory import WritableBuffer
    from inaccfs.kvm.shared import SharedHalf


class Region(NamedTuple):
    """struct kvm_userspace_memory_region_ext: what a VMM asks for. Sizes are bytes."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    # The shared half: a buffer, or the userspace_addr.
    shared: WritableBuffer | int | None
    private_fd: int
    private_offset: int


class Notifier(Protocol):
    """The part of a notifier that a slot uses; see kvm/notifier.py."""

    @property
    def lost(self) -> bool:
        """Whether the daemon no longer sends it events."""

    def close(self) -> None:
        """Unregister."""


@dataclass(eq=False, slots=True)
class MemorySlot:
    """A range of guest memory. All but `users` is fixed for its life."""

    id: int
    flags: int
    # In pages.
    base_gfn: int
    npages: int
    # In bytes.
    private_offset: int
    # The shared half; None if the VMM gave none.
    shared: SharedHalf | None = field(repr=False)
    # The private half; None without KVM_MEM_PRIVATE.
    backing: BackingFile | None = field(default=None, repr=False)
    # The notifier of the private half; set before the slot can be found.
    notifier: Notifier | None = field(default=None, repr=False)
    # The number of current users. The slot is not freed before this is 0, as the
    # kernel waits for its SRCU readers. Guarded by mmu_lock.
    users: int = field(default=0, repr=False)

    @property
    def notifier_lost(self) -> bool:
        """Whether it no longer gets events: its pages may go at any time: use none."""
        return self.notifier is not None and self.notifier.lost

    @property
    def end_gfn(self) -> int:
        """The gfn after the last."""
        return self.base_gfn + self.npages

    @property
    def private_pgoff(self) -> int:
        """The offset in the file at which the slot begins, in pages of 4 KiB."""
        return self.private_offset >> PAGE_SHIFT

    def pgoff(self, gfn: int) -> int:
        """The offset of *gfn* in the file, in pages of 4 KiB."""
        return gfn - self.base_gfn + self.private_pgoff

    def gfns(self, start: int, end: int) -> tuple[int, int] | None:
        """The gfns of the file's pages *start* to *end*; None if the slot has none.

        Patch 8/8 subtracts first and then compares, in unsigned numbers: a range that
        ends before the slot begins gives a huge result. So a range outside the slot
        must be rejected first, as Vishal Annapurve found.
        """
        base = self.private_pgoff
        if start >= base + self.npages or end <= base or start >= end:
            return None
        return (
            self.base_gfn + max(start, base) - base,
            self.base_gfn + min(end, base + self.npages) - base,
        )

    def disallow_lpage(self, gfn: int, level: int, attributes: MemoryAttributes) -> int:
        """kvm_lpage_info: nonzero where *gfn* cannot be in a private page of *level*.

        The reason is that the huge page extends beyond the slot; that the slot's
        offsets in the file and in the guest are not congruent; or, which sets bit 31,
        that the huge page is partly private and partly shared (patch 6/8).

        The kernel also wants the address of the shared half to be congruent. That is
        not checked here, as it does not affect private pages.
        """
        pages = pages_of_level(level)
        first = gfn & -pages
        if first < self.base_gfn or first + pages > self.end_gfn:
            return 1
        if (self.base_gfn ^ self.private_pgoff) & (pages - 1):
            return 1
        mixed = attributes.mixed(first, first + pages)
        return KVM_LPAGE_PRIVATE_SHARED_MIXED if mixed else 0


class MemorySlots:
    """The slots of a VM at one moment. Immutable: a change makes a new object."""

    def __init__(self, slots: tuple[MemorySlot, ...] = ()) -> None:
        # In the order of gfns; they do not overlap.
        self.slots: Final = tuple(sorted(slots, key=lambda slot: slot.base_gfn))
        self._bases: Final = [slot.base_gfn for slot in self.slots]

    def find(self, gfn: int) -> MemorySlot | None:
        """gfn_to_memslot()."""
        index = bisect_right(self._bases, gfn)
        if index:
            slot = self.slots[index - 1]
            if gfn < slot.base_gfn + slot.npages:
                return slot
        return None

    def by_id(self, number: int) -> MemorySlot | None:
        """id_to_memslot()."""
        return next((slot for slot in self.slots if slot.id == number), None)

    def overlaps(self, start: int, end: int) -> bool:
        """Whether there is a slot somewhere between the gfns."""
        index = bisect_right(self._bases, end - 1)
        return index > 0 and self.slots[index - 1].end_gfn > start

    def plus(self, slot: MemorySlot) -> MemorySlots:
        """A copy with *slot* added."""
        return MemorySlots((*self.slots, slot))

    def minus(self, slot: MemorySlot) -> MemorySlots:
        """A copy without *slot*."""
        return MemorySlots(tuple(each for each in self.slots if each is not slot))
