"""A vCPU: reads and writes guest memory as the guest's code would."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.faults import memory_fault
from inaccfs.kvm.memory import Place
from inaccfs.kvm.uapi import PAGE_SHIFT, PAGE_SIZE, MmioExit, no_hook, pages_of_level
from inaccfs.kvmcalls import KVM_MEM_READONLY

if TYPE_CHECKING:
    from inaccfs.kvm.faults import Faults
    from inaccfs.kvm.memory import GuestMemory
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.shared import SharedHalf
    from inaccfs.kvm.sync import Lock
    from inaccfs.kvm.uapi import Hook, Spte


class _Read:
    """Copies out of guest memory."""

    writes: Final = False

    def __init__(self, memory: GuestMemory) -> None:
        self._memory: Final = memory
        self.pieces: Final[list[bytes]] = []

    def private(self, place: Place, size: int) -> None:
        self.pieces.append(self._memory.read(place, size))

    def shared(self, half: SharedHalf, offset: int, size: int) -> None:
        self.pieces.append(half.read(offset, size))


class _Write:
    """Copies into guest memory."""

    writes: Final = True

    def __init__(self, memory: GuestMemory, data: bytes) -> None:
        self._memory: Final = memory
        self._rest = memoryview(data)

    def private(self, place: Place, size: int) -> None:
        self._memory.write(place, self._rest[:size])
        self._rest = self._rest[size:]

    def shared(self, half: SharedHalf, offset: int, size: int) -> None:
        half.write(offset, self._rest[:size])
        self._rest = self._rest[size:]


class Vcpu:
    """A vCPU. One thread uses it at a time.

    A guest may decide whether an access is private: by the C-bit of its page table on
    SEV-SNP, by the shared bit of the gpa on TDX. Here it is the argument *private*. If
    that differs from the attribute that the VMM has set by `VM.set_memory_attributes`,
    the vCPU exits. If it is None, the rule kvm_access decides: the access is private,
    or what the attribute says. A VM without private memory has shared accesses only.

    An access of more than a page is made piece by piece. If it exits, part of it may
    have been made; repeat it as a whole.
    """

    def __init__(
        self, number: int, mmu: Mmu, faults: Faults, memory: GuestMemory, mode: Lock
    ) -> None:
        """Use `VM.create_vcpu`."""
        self.number: Final = number
        self._mmu: Final = mmu
        self._faults: Final = faults
        self._memory: Final = memory
        # Held from the walk to the end of the copy: `Mmu.flush` waits for it.
        self.guest_mode: Final = mode
        self.hook: Hook = no_hook
        rules = mmu.rules
        self._checks_all: Final = rules.kvm_mismatch == "every gfn"
        # Whether an access is private if the guest does not say.
        self._by_guest: Final = mmu.protected and rules.kvm_access == "guest"
        self._unsaid: Final = self._private if self._by_guest else self._by_attribute

    def __repr__(self) -> str:
        return f"<Vcpu {self.number}>"

    def read(self, gpa: int, size: int, *, private: bool | None = None) -> bytes:
        """Read *size* bytes of guest memory at *gpa*.

        Raises:
            MemoryFaultExit: the VMM has to convert, or there is no such memory.
            MmioExit: an access where there is no slot, or a write to a read-only one.
            OSError: EPERM where the mount refuses get-memory; EFAULT where a slot has
                no shared half; `ControlError` when the daemon has ended.
        """
        transfer = _Read(self._memory)
        self._access(gpa, size, transfer, private)
        return b"".join(transfer.pieces)

    def write(self, gpa: int, data: bytes, *, private: bool | None = None) -> None:
        """Write *data* to guest memory at *gpa*; raises as `read` does."""
        self._access(gpa, len(data), _Write(self._memory, data), private)

    def as_a_guest(self, gpa: int) -> bool | None:
        """Whether an access to *gpa* is private, if files are private memory.

        None where the attribute decides: the rule kvm_access.
        """
        if not self._by_guest:
            return None
        slot = self._mmu.slots.find(gpa >> PAGE_SHIFT)
        return slot is not None and slot.backing is not None

    def read_by_address(self, gpa: int, size: int) -> bytes:
        """Read as KVM itself does, for an instruction that it emulates.

        It uses the slot's userspace_addr, and looks at no attribute.

        Raises:
            MmioExit: there is no slot, or nothing is mapped there.
        """
        transfer = _Read(self._memory)
        self._by_address(gpa, size, transfer)
        return b"".join(transfer.pieces)

    def write_by_address(self, gpa: int, data: bytes) -> None:
        """Write as KVM itself does; see `read_by_address`."""
        self._by_address(gpa, len(data), _Write(self._memory, data))

    def _by_address(self, gpa: int, size: int, transfer: _Read | _Write) -> None:
        end = gpa + size
        with self.guest_mode:
            while gpa < end:
                slot = self._mmu.slots.find(gpa >> PAGE_SHIFT)
                if slot is None or slot.shared is None:
                    raise MmioExit(gpa)
                if transfer.writes and slot.flags & KVM_MEM_READONLY:
                    raise MmioExit(gpa)
                base = slot.base_gfn << PAGE_SHIFT
                stop = min(end, slot.end_gfn << PAGE_SHIFT)
                try:
                    transfer.shared(slot.shared, gpa - base, stop - gpa)
                except OSError as exc:
                    raise MmioExit(gpa) from exc
                gpa = stop

    def _access(
        self, gpa: int, size: int, transfer: _Read | _Write, private: bool | None
    ) -> None:
        if gpa < 0 or size < 0:
            raise ValueError(f"gpa {gpa}, size {size}")
        end = gpa + size
        if self._mmu.in_place:
            if private is None and self._by_guest:
                private = True
            said = private if self._mmu.protected else None
            while gpa < end:
                gpa = self._in_file(gpa, end, transfer, said)
            return
        if private is None or not self._mmu.protected:
            step = self._unsaid
        else:
            step = self._private if private else self._shared
        while gpa < end:
            gpa = step(gpa, end, transfer)

    def _by_attribute(self, gpa: int, end: int, transfer: _Read | _Write) -> int:
        """As `_private`, for a guest that does not say what its access is.

        The kind of access is decided here, and checked later, as in KVM: if the
        attribute changes in between, the vCPU exits although nothing is wrong.
        """
        mmu, gfn = self._mmu, gpa >> PAGE_SHIFT
        if mmu.is_served(mmu.slots.find(gfn)):
            return self._private(gpa, end, transfer)
        if gfn in mmu.mmio:
            if mmu.mmio.is_valid(gfn):
                raise MmioExit(gpa)
        elif mmu.attributes.is_private(gfn):
            return self._private(gpa, end, transfer)
        return self._shared(gpa, end, transfer)

    def _private(self, gpa: int, end: int, transfer: _Read | _Write) -> int:
        """Transfer as much as one mapping has; return the gpa to continue at."""
        gfn = gpa >> PAGE_SHIFT
        while True:
            with self.guest_mode:
                if stop := self._through_spte(gfn, gpa, end, transfer, True):
                    return stop
            self._faults.resolve(gfn)

    def _in_file(
        self, gpa: int, end: int, transfer: _Read | _Write, private: bool | None
    ) -> int:
        """As `_private`, where files keep attributes.

        A gfn in no slot with a file is shared: it loses its attribute with its slot.
        """
        mmu, gfn = self._mmu, gpa >> PAGE_SHIFT
        while mmu.uses_file(mmu.slots.find(gfn)):
            with self.guest_mode:
                stop = self._through_spte(gfn, gpa, end, transfer, private)
                if not (stop or private or mmu.shared_in_file):
                    stop = self._in_vmm(gfn, gpa, end, transfer)
                if stop:
                    return stop
            self._faults.resolve(gfn, private)
        if private:
            with mmu.lock:
                mmu.counters.exits += 1
            raise memory_fault(mmu.rules, gfn, private=True)
        return self._shared(gpa, end, transfer)

    def _in_vmm(self, gfn: int, gpa: int, end: int, transfer: _Read | _Write) -> int:
        """As `_through_spte`, for a shared page of the memory that the VMM gave."""
        mapped = self._mmu.shared_table.walk(gfn) is not None
        slot = self._mmu.slots.find(gfn)
        if not mapped or slot is None or slot.shared is None or slot.notifier_lost:
            return 0
        if self.hook is not no_hook:
            self.hook("access", gfn, gfn + 1)
        stop = min(end, (gfn + 1) << PAGE_SHIFT)
        transfer.shared(slot.shared, gpa - (slot.base_gfn << PAGE_SHIFT), stop - gpa)
        return stop

    def _walk(self, gfn: int, private: bool | None) -> Spte | None:
        mmu = self._mmu
        if private is None:
            return mmu.walk(gfn)
        if private:
            return mmu.table.walk(gfn)
        return mmu.shared_table.walk(gfn) if mmu.shared_in_file else None

    def _through_spte(
        self,
        gfn: int,
        gpa: int,
        end: int,
        transfer: _Read | _Write,
        private: bool | None,
    ) -> int:
        """As `_private`, in guest mode; 0 means a fault."""
        spte = self._walk(gfn, private)
        if self.hook is not no_hook:
            self.hook("looks_up", gfn, gfn + 1)
        slot = self._mmu.slots.find(gfn)
        if spte is None or slot is None or slot.backing is None or slot.notifier_lost:
            return 0
        window = slot.backing.window
        position = (slot.pgoff(gfn) << PAGE_SHIFT) + gpa % PAGE_SIZE
        # A folio may extend past the file's end, where there is nothing to access.
        if window is None or position >= len(window):
            return 0
        folio_end = (gfn | pages_of_level(spte.level) - 1) + 1
        stop = min(
            end,
            min(folio_end, slot.end_gfn) << PAGE_SHIFT,
            gpa + len(window) - position,
        )
        if self.hook is not no_hook:
            self.hook("access", gfn, folio_end)
        transfer.private(Place(window, position, gpa, spte.pfn), stop - gpa)
        return stop

    def _shared(self, gpa: int, end: int, transfer: _Read | _Write) -> int:
        """As `_private`, but each access checks the attributes.

        Shared pages are not in the page table: KVM maps them from the VMM's, which this
        model does not have. They are only counted.
        """
        mmu, gfn = self._mmu, gpa >> PAGE_SHIFT
        with self.guest_mode:
            if self.hook is not no_hook:
                self.hook("looks_up", gfn, gfn + 1)
            slot = mmu.slots.find(gfn)
            private, limit = False, gfn + 1 if slot is None else slot.end_gfn
            if self._checks_all or (slot is not None and slot.backing is not None):
                private, limit = mmu.attributes.run(gfn, limit)
            if not private:
                if slot is None and mmu.rules.kvm_keeps_mmio:
                    mmu.mmio.add(gfn)
                if slot is None or (transfer.writes and slot.flags & KVM_MEM_READONLY):
                    raise MmioExit(gpa)
                if slot.shared is None:
                    raise OSError(errno.EFAULT, f"slot {slot.id} has no shared memory")
                stop = min(end, limit << PAGE_SHIFT)
                base = slot.base_gfn << PAGE_SHIFT
                transfer.shared(slot.shared, gpa - base, stop - gpa)
                mmu.shared.map(gfn, (stop - 1 >> PAGE_SHIFT) + 1)
                if gfn in mmu.mmio:
                    mmu.mmio.drop(gfn)
                return stop
        with mmu.lock:
            mmu.counters.exits += 1
        raise memory_fault(mmu.rules, gfn, private=False)
