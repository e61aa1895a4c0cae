"""A small reference VMM, which handles KVM_EXIT_MEMORY_FAULT as QEMU does.

As kvm_convert_memory() of accel/kvm/kvm-all.c, it sets the new attributes in KVM, then
discards the half that is not used any more.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from inaccfs.kvm.uapi import PAGE_SHIFT, MemoryFaultExit
from inaccfs.syscalls import PUNCH, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.vcpu import Vcpu
    from inaccfs.kvm.vm import VM

    Fallocate: TypeAlias = Callable[[int, int, int, int], object]

T = TypeVar("T")

# How often and for how long a VMM waits where a conversion is EAGAIN.
_TRIES: Final = 100
_PAUSE_SECONDS: Final = 0.001


class Vmm:
    """Runs vCPUs, and makes the conversions that their exits ask for.

    With *discard* a conversion frees the half that is no longer used. Without it both
    halves stay allocated, which `VM.stats` counts as double_allocated. *fallocate*
    replaces fallocate(2), which punches private memory: it is called with an fd, a
    mode, and an offset and a length in bytes.
    """

    def __init__(
        self, vm: VM, *, discard: bool = True, fallocate: Fallocate = fallocate
    ) -> None:
        self._vm: Final = vm
        self._discard: Final = discard
        self._fallocate: Final = fallocate
        # Two vCPUs may ask for opposite conversions of one page.
        self._lock: Final = vm.sync.lock("vmm_lock")
        # The number of handled exits. Guarded by _lock.
        self.conversions = 0

    def run(self, access: Callable[[], T]) -> T:
        """Call *access*, and again after each exit that could be handled.

        Raises:
            MemoryFaultExit: a conversion does not help.
        """
        while True:
            try:
                return access()
            except MemoryFaultExit as exc:
                self.handle(exc)

    def read(
        self, vcpu: Vcpu, gpa: int, size: int, *, private: bool | None = None
    ) -> bytes:
        """`Vcpu.read`, with conversions."""
        return self.run(lambda: vcpu.read(gpa, size, private=private))

    def write(
        self, vcpu: Vcpu, gpa: int, data: bytes, *, private: bool | None = None
    ) -> None:
        """`Vcpu.write`, with conversions."""
        self.run(lambda: vcpu.write(gpa, data, private=private))

    def handle(self, exit_: MemoryFaultExit) -> None:
        """Convert the pages of an exit; raise the exit again if that does not help."""
        if not exit_.asks or not self._convertible(exit_):
            raise exit_
        with self._lock:
            self.conversions += 1
        for left in reversed(range(_TRIES)):
            try:
                self.convert(exit_.gpa, exit_.size, private=exit_.private)
            except OSError as exc:
                # A fault of another vCPU has a reference for a moment.
                if exc.errno != errno.EAGAIN or not left:
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                return

    def _convertible(self, exit_: MemoryFaultExit) -> bool:
        gfn = exit_.gpa >> PAGE_SHIFT
        return any(
            slot.backing is not None and slot.base_gfn <= gfn < slot.end_gfn
            for slot in self._vm.slots
        )

    def convert(self, gpa: int, size: int, *, private: bool) -> None:
        """Make bytes of whole pages private or shared, and discard the other half.

        Where attributes are kept in files, pages are converted there, for all VMs. If a
        file has shared pages, too, nothing is discarded.

        Raises:
            OSError: set_memory_attributes() or fallocate(2) failed; EAGAIN where a page
                that is to be private is referenced.
        """
        with self._lock:
            if not self._vm.in_place:
                self._vm.set_memory_attributes(gpa, size, private=private)
            discards = self._discard and not self._vm.shared_in_file
            first, end = gpa >> PAGE_SHIFT, (gpa + size) >> PAGE_SHIFT
            for slot in self._vm.slots:
                start, stop = max(first, slot.base_gfn), min(end, slot.end_gfn)
                # If the slot were deleted, its fd could be closed and reused for
                # another file.
                with self._vm.hold(slot) as there:
                    if there and start < stop and slot.backing is not None:
                        if self._vm.in_place:
                            pgoff = slot.pgoff(start)
                            slot.backing.convert(pgoff, stop - start, private=private)
                        if discards and private:
                            discard_shared(slot, start, stop)
                        elif discards:
                            discard_private(slot, start, stop, self._fallocate)


def discard_private(
    slot: MemorySlot, start: int, end: int, fallocate: Fallocate = fallocate
) -> None:
    """Punch the gfns from *start* to *end* out of the slot's file."""
    assert slot.backing is not None
    offset, size = slot.pgoff(start) << PAGE_SHIFT, (end - start) << PAGE_SHIFT
    fallocate(slot.backing.fd, PUNCH, offset, size)


def discard_shared(slot: MemorySlot, start: int, end: int) -> None:
    """Free shared memory, or zero it where it cannot be freed."""
    if slot.shared is not None:
        offset, size = start - slot.base_gfn, end - start
        slot.shared.discard(offset << PAGE_SHIFT, size << PAGE_SHIFT)
