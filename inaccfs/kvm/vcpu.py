"""A vCPU: reads and writes guest memory as the guest's code would."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.memory import Place
from inaccfs.kvm.uapi import (
    PAGE_SHIFT,
    PAGE_SIZE,
    MemoryFaultExit,
    MmioExit,
    no_hook,
    pages_of_level,
)

if TYPE_CHECKING:
    from inaccfs.kvm.faults import Faults
    from inaccfs.kvm.memory import GuestMemory
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.sync import Lock
    from inaccfs.kvm.uapi import Hook


class _Read:
    """Copies out of guest memory."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory: Final = memory
        self.pieces: Final[list[bytes]] = []

    def private(self, place: Place, size: int) -> None:
        self.pieces.append(self._memory.read(place, size))

    def shared(self, view: memoryview) -> None:
        self.pieces.append(bytes(view))


class _Write:
    """Copies into guest memory."""

    def __init__(self, memory: GuestMemory, data: bytes) -> None:
        self._memory: Final = memory
        self._rest = memoryview(data)

    def private(self, place: Place, size: int) -> None:
        self._memory.write(place, self._rest[:size])
        self._rest = self._rest[size:]

    def shared(self, view: memoryview) -> None:
        view[:] = self._rest[: len(view)]
        self._rest = self._rest[len(view) :]


class Vcpu:
    """A vCPU. One thread uses it at a time.

    The guest decides whether an access is private: by the C-bit of its page table on
    SEV-SNP, by the shared bit of the gpa on TDX. Here it is an argument. If that
    differs from the attribute that the VMM has set by `VM.set_memory_attributes`, the
    vCPU exits.

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

    def __repr__(self) -> str:
        return f"<Vcpu {self.number}>"

    def read(self, gpa: int, size: int, *, private: bool = True) -> bytes:
        """Read *size* bytes of guest memory at *gpa*.

        Raises:
            MemoryFaultExit: the VMM has to convert, or there is no such memory.
            MmioExit: a shared access where there is no slot.
            OSError: EPERM where the mount refuses get-memory; EFAULT where a slot has
                no shared half; `ControlError` when the daemon has ended.
        """
        transfer = _Read(self._memory)
        self._access(gpa, size, transfer, private)
        return b"".join(transfer.pieces)

    def write(self, gpa: int, data: bytes, *, private: bool = True) -> None:
        """Write *data* to guest memory at *gpa*; raises as `read` does."""
        self._access(gpa, len(data), _Write(self._memory, data), private)

    def _access(
        self, gpa: int, size: int, transfer: _Read | _Write, private: bool
    ) -> None:
        if gpa < 0 or size < 0:
            raise ValueError(f"gpa {gpa}, size {size}")
        end = gpa + size
        step = self._private if private else self._shared
        while gpa < end:
            gpa = step(gpa, end, transfer)

    def _private(self, gpa: int, end: int, transfer: _Read | _Write) -> int:
        """Transfer as much as one mapping has; return the gpa to continue at."""
        gfn = gpa >> PAGE_SHIFT
        while True:
            with self.guest_mode:
                if stop := self._through_spte(gfn, gpa, end, transfer):
                    return stop
            self._faults.resolve(gfn)

    def _through_spte(
        self, gfn: int, gpa: int, end: int, transfer: _Read | _Write
    ) -> int:
        """As `_private`, in guest mode; 0 means a fault."""
        spte = self._mmu.table.walk(gfn)
        if self.hook is not no_hook:
            self.hook("looks_up", gfn, gfn + 1)
        slot = self._mmu.slots.find(gfn)
        if spte is None or slot is None or slot.backing is None or slot.notifier_lost:
            return 0
        window = slot.backing.window
        position = (slot.pgoff(gfn) << PAGE_SHIFT) + gpa % PAGE_SIZE
        # A folio may extend past the file's end, where there is no memory to access.
        if window is None or position >= len(window):
            return 0
        folio_end = (gfn | pages_of_level(spte.level) - 1) + 1
        stop = min(
            *(end, min(folio_end, slot.end_gfn) << PAGE_SHIFT),
            gpa + len(window) - position,
        )
        if self.hook is not no_hook:
            self.hook("access", gfn, folio_end)
        transfer.private(Place(window, position, gpa, spte.pfn), stop - gpa)
        return stop

    def _shared(self, gpa: int, end: int, transfer: _Read | _Write) -> int:
        """As `_private`, but each access checks the attributes.

        Shared pages are never mapped: KVM maps them from the VMM's page table, which
        this model does not have.
        """
        gfn = gpa >> PAGE_SHIFT
        with self.guest_mode:
            if self.hook is not no_hook:
                self.hook("looks_up", gfn, gfn + 1)
            slot = self._mmu.slots.find(gfn)
            if slot is None:
                raise MmioExit(gpa)
            private, limit = False, slot.end_gfn
            if slot.backing is not None:
                private, limit = self._mmu.attributes.run(gfn, limit)
            if not private:
                if slot.shared is None:
                    raise OSError(errno.EFAULT, f"slot {slot.id} has no shared memory")
                stop = min(end, limit << PAGE_SHIFT)
                base = slot.base_gfn << PAGE_SHIFT
                transfer.shared(slot.shared[gpa - base : stop - base])
                return stop
        with self._mmu.lock:
            self._mmu.counters.exits += 1
        raise MemoryFaultExit(0, gfn << PAGE_SHIFT, PAGE_SIZE)
