"""MMIO SPTEs: which gfns KVM remembers to have no memory.

check_mmio_spte() of arch/x86/kvm/mmu/mmu.c. Such an entry is not a mapping: neither a
conversion nor the deletion of a slot zaps it. It is good for one generation of slots;
later the access is looked up again. But the CPU then reports a reserved bit, and KVM
takes no such fault for a private one, whatever the attribute says.
"""

from __future__ import annotations

from typing import Final


class MmioCache:
    """By gfn, the generation of slots in which it had an MMIO exit.

    vCPUs add and look in guest mode, and take no lock.
    """

    def __init__(self) -> None:
        self._generations: Final[dict[int, int]] = {}
        self._generation = 0

    def __contains__(self, gfn: int) -> bool:
        """Whether there is an entry, be it of an earlier generation."""
        return gfn in self._generations

    def is_valid(self, gfn: int) -> bool:
        """Whether the entry is of this generation of slots."""
        return self._generations.get(gfn) == self._generation

    def add(self, gfn: int) -> None:
        """An access to *gfn* had an MMIO exit."""
        self._generations[gfn] = self._generation

    def drop(self, gfn: int) -> None:
        """*gfn* is mapped: the entry is overwritten."""
        self._generations.pop(gfn, None)

    def next_generation(self) -> None:
        """A slot has been made, changed or deleted."""
        self._generation += 1
