"""KVM_SET_USER_MEMORY_REGION: makes, changes and deletes slots. With slots_lock.

kvm_set_memslot() and kvm_gmem_bind(). A slot is never changed: another takes its place.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs.kvm import regions
from inaccfs.kvm.memslots import MemorySlot
from inaccfs.kvm.notifier import SlotNotifier
from inaccfs.kvm.regions import Kind
from inaccfs.kvm.shared import half_of
from inaccfs.kvm.uapi import KVM_MEM_PRIVATE, PAGE_SHIFT

if TYPE_CHECKING:
    from inaccfs.kvm.backing import BackingFiles
    from inaccfs.kvm.memslots import Region
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.shared import SharedHalf
    from inaccfs.kvm.shim import ShimSemantics
    from inaccfs.kvm.uapi import Hook


class SlotChanges:
    """Changes the slots of one VM."""

    def __init__(
        self,
        mmu: Mmu,
        files: BackingFiles,
        rules: ShimSemantics,
        hook: Hook,
        *,
        protected: bool,
    ) -> None:
        """*protected*: the VM has private memory."""
        self._mmu: Final = mmu
        self._files: Final = files
        self._rules: Final = rules
        self._hook: Final = hook
        self._protected: Final = protected

    def apply(self, region: Region) -> None:
        """Do what a region asks for.

        Raises:
            OSError: EINVAL; EEXIST; and for the file the errno of `BackingFiles.open`
                or of bind.
        """
        change = regions.check(
            region, self._mmu.slots, self._rules, protected=self._protected
        )
        old = change.old
        if old is None:
            self._create(region)
        elif change.kind is Kind.DELETE:
            self.delete(old)
        elif change.kind is not Kind.NOTHING:
            regions.check_gfns(region)
            self._replace(old, region)

    def _create(self, region: Region) -> None:
        shared = half_of(region.shared)
        slot = _made(region, shared)
        with ExitStack() as undo:
            if shared is not None:
                undo.callback(shared.release)
            if region.flags & KVM_MEM_PRIVATE:
                slot.backing = self._files.open(region.private_fd)
                undo.callback(self._files.release, slot.backing)
                # Do this before the slot can be found: no mapping without a notifier.
                slot.notifier = SlotNotifier(
                    slot, slot.backing, self._mmu, self._rules, self._hook
                )
                undo.callback(slot.notifier.close)
            regions.check_gfns(region)
            self._mmu.exchange(None, slot)
            undo.pop_all()

    def _replace(self, old: MemorySlot, region: Region) -> None:
        """Move a slot without a file, or change its flags."""
        self._withdraw(old, _made(region, old.shared))

    def delete(self, slot: MemorySlot) -> None:
        """Delete a slot. Raises what a hook raised in a callback of its notifier."""
        self._withdraw(slot, None)
        with ExitStack() as stack:
            if slot.shared is not None:
                stack.callback(slot.shared.release)
            if slot.backing is not None:
                stack.callback(self._files.release, slot.backing)
            if slot.notifier is not None:
                stack.callback(slot.notifier.close)

    def _withdraw(self, slot: MemorySlot, then: MemorySlot | None) -> None:
        """Replace a slot by *then*, and wait until it has no users."""
        mmu = self._mmu
        if mmu.destroy is not None:
            # Do this while the slot can be found: its content may be destroyed.
            mmu.zap(slot.base_gfn, slot.end_gfn)
        mmu.exchange(slot, then)
        # Zap afterwards: a fault that found the slot then has an outdated seq.
        mmu.zap(slot.base_gfn, slot.end_gfn)
        with mmu.lock:
            # Shared memory is accessed without mappings, so the zap did not wait for
            # it.
            mmu.flush()
            mmu.shared.zap(slot.base_gfn, slot.end_gfn)
            # As synchronize_srcu(): afterwards the slot has no users.
            mmu.changed.wait_for(lambda: not slot.users)


def _made(region: Region, shared: SharedHalf | None) -> MemorySlot:
    return MemorySlot(
        region.slot,
        region.flags,
        base_gfn=region.guest_phys_addr >> PAGE_SHIFT,
        npages=region.memory_size >> PAGE_SHIFT,
        private_offset=region.private_offset,
        shared=shared,
    )
