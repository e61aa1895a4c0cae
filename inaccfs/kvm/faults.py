"""Private page faults, one at a time and many at once. Patch 7/8.

In both the order is: take seq; look up; get the frame, which waits for the daemon;
take mmu_lock; ask whether to retry; map; let go; put the reference. KVM keeps no
reference to what is mapped: it relies on being told.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from inaccfs.client.errors import ConnectionLostError
from inaccfs.kvm.memslots import MemorySlots
from inaccfs.kvm.uapi import (
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    PAGE_SHIFT,
    PAGE_SIZE,
    MemoryFaultExit,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.backing import BackingFile, Frame, Frames
    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.uapi import Hook

# Pages of one pre-fault: its reply is to stay in proportion, and a punch meanwhile is
# to cost no more than that.
_CHUNK: Final = 1 << 16


class Faults:
    """Handles private faults of one VM."""

    def __init__(self, mmu: Mmu, hook: Hook) -> None:
        self._mmu: Final = mmu
        self._hook: Final = hook
        # Replaced as a whole, under mmu_lock; read without it.
        self.slots = MemorySlots()

    def resolve(self, gfn: int) -> None:
        """Handle one private fault; the guest will try again, whatever came of it.

        Raises:
            MemoryFaultExit: there is no private memory, or the gfn is shared; or, with
                an errno, the page cannot be had.
            OSError: EPERM where the mount refuses get-memory; `ControlError` when the
                daemon has gone.
        """
        mmu = self._mmu
        with mmu.lock:
            # Before anything is looked up.
            seq = mmu.invalidation.seq
            mmu.counters.faults += 1
            slot, backing = self._private_slot(gfn)
            slot.users += 1
        try:
            self._hook("fault:begin", gfn, gfn + 1)
            if self._fault(slot, backing, gfn, seq):
                # While the slot is sure to be there, and not in guest mode: it asks.
                backing.reach(slot.pgoff(gfn) + 1)
                return
        finally:
            self._leave(slot)
        mmu.wait(gfn, gfn + 1)

    def _private_slot(self, gfn: int) -> tuple[MemorySlot, BackingFile]:
        slot = self.slots.find(gfn)
        if (
            slot is None
            or slot.backing is None
            or not self._mmu.attributes.is_private(gfn)
        ):
            self._mmu.counters.exits += 1
            raise _exit(gfn)
        _check_told(slot)
        return slot, slot.backing

    @contextmanager
    def hold(self, slot: MemorySlot) -> Iterator[bool]:
        """Keep a slot from being freed meanwhile; False if it has been deleted."""
        with self._mmu.lock:
            there = slot in self.slots.slots
            slot.users += there
        try:
            yield there
        finally:
            if there:
                self._leave(slot)

    def _leave(self, slot: MemorySlot) -> None:
        with self._mmu.lock:
            slot.users -= 1
            if not slot.users:
                self._mmu.changed.notify_all()

    def _fault(
        self, slot: MemorySlot, backing: BackingFile, gfn: int, seq: int
    ) -> bool:
        """Return whether it is mapped, or else is to be retried."""
        mmu = self._mmu
        frame = self._get_pfn(backing, slot.pgoff(gfn), gfn)
        if frame is None:
            return False
        try:
            self._hook("fault:before_install", gfn, gfn + 1)
            with mmu.lock:
                retry = mmu.invalidation.retry(seq, gfn, gfn + 1)
                if retry:
                    mmu.counters.retries += 1
                else:
                    mmu.install_locked(slot, gfn, frame.pfn, frame.order)
        finally:
            backing.put_pfn(frame.referenced)
        return not retry

    def _get_pfn(self, backing: BackingFile, pgoff: int, gfn: int) -> Frame | None:
        """Its errors are exits, as in mainline; in v8 the vCPU faults for ever.

        None while another vCPU has the page locked, in semantics that lock pages.
        """
        try:
            return backing.get_pfn(pgoff)
        except ConnectionError:
            # Of the control socket, so of no page.
            raise
        except OSError as exc:
            if exc.errno == errno.EAGAIN:
                with self._mmu.lock:
                    self._mmu.counters.retries += 1
                return None
            with self._mmu.lock:
                self._mmu.counters.exits += 1
            raise _exit(gfn, exc.errno or errno.EFAULT) from exc

    # --- many at once -----------------------------------------------------------------

    def pre_fault(self, gfn: int, end: int) -> None:
        """Map what is private of the gfns from *gfn* to *end*.

        Raises:
            OSError: ENOENT at the first gfn without private memory, with what is before
                it mapped; what get-pfn fails with.
        """
        size = _CHUNK
        while gfn < end:
            stop = self._pre_fault(gfn, min(end, gfn + size))
            if stop == gfn:
                # What is done at once is worth as little as it has to be to get done.
                size = max(size >> 1, 1)
                self._mmu.wait(gfn, gfn + size)
            else:
                gfn, size = stop, _CHUNK

    def _pre_fault(self, gfn: int, end: int) -> int:
        """Do some; return where to go on, *gfn* itself if it is to be retried."""
        mmu = self._mmu
        with mmu.lock:
            seq = mmu.invalidation.seq
            slot = self.slots.find(gfn)
            if slot is None or slot.backing is None:
                raise FileNotFoundError(
                    errno.ENOENT, f"no private memory at gpa {gfn << PAGE_SHIFT:#x}"
                )
            private, end = mmu.attributes.run(gfn, min(end, slot.end_gfn))
            if not private:
                return end
            _check_told(slot)
            slot.users += 1
        try:
            self._hook("fault:begin", gfn, end)
            mapped = self._map_range(slot, slot.backing, gfn, end, seq)
            # So that the first access is no fault. It has its own complaint.
            with suppress(PermissionError):
                slot.backing.reach(slot.pgoff(end))
        finally:
            self._leave(slot)
        return end if mapped else gfn

    def _map_range(
        self, slot: MemorySlot, backing: BackingFile, gfn: int, end: int, seq: int
    ) -> bool:
        mmu = self._mmu
        try:
            found = backing.get_pfns(slot.pgoff(gfn), end - gfn)
        except OSError as exc:
            if exc.errno == errno.EAGAIN:
                return False
            raise
        try:
            self._hook("fault:before_install", gfn, end)
            with mmu.lock:
                retry = mmu.invalidation.retry(seq, gfn, end)
                if retry:
                    mmu.counters.retries += 1
                else:
                    for frames in found:
                        self._install(slot, frames, gfn, end)
                    mmu.counters.prefaulted += end - gfn
        finally:
            backing.put_pfns(found)
        return not retry

    def _install(self, slot: MemorySlot, frames: Frames, gfn: int, end: int) -> None:
        first = frames.pgoff - slot.private_pgoff + slot.base_gfn
        # On a hugetlbfs there is more than was asked for.
        start, stop = max(first, gfn), min(first + frames.pages, end)
        self._mmu.install_run_locked(
            slot, start, frames.pfn + start - first, stop - start, frames.order
        )


def _check_told(slot: MemorySlot) -> None:
    """Of pages that go. KVM cannot lose its notifier, a client can."""
    if slot.untold:
        raise ConnectionLostError(
            f"slot {slot.id}: the daemon has disconnected its notifier, and its pages "
            "may go untold: delete it, or make the VM anew"
        )


def _exit(gfn: int, number: int = 0) -> MemoryFaultExit:
    return MemoryFaultExit(
        KVM_MEMORY_EXIT_FLAG_PRIVATE, gfn << PAGE_SHIFT, PAGE_SIZE, number
    )
