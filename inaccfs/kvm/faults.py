"""Private page faults, of one touched page or of many pages at once. Patch 7/8.

In both the order is: read seq; look up; get the frames, which waits for the daemon;
take mmu_lock; check whether to retry; map; drop mmu_lock; put the references. KVM keeps
no reference to a page that it maps: it relies on invalidations.

The order is written once, as generators of steps; `Sync.drive` performs them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from inaccfs.client.errors import ConnectionLostError
from inaccfs.kvm.faultsteps import Ask, Get, Look, Point, Put, Reach, Touch, Wait
from inaccfs.kvm.uapi import (
    EXIT_FLAGS,
    PAGE_SHIFT,
    PAGE_SIZE,
    MemoryFaultExit,
    MmioExit,
    VcpuExit,
    no_hook,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from inaccfs.kvm.backing import BackingFile, Frames
    from inaccfs.kvm.faultsteps import Step
    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.pagetable import PageTable
    from inaccfs.kvm.shim import ShimSemantics
    from inaccfs.kvm.sync import Sync
    from inaccfs.kvm.uapi import Hook

# Pages of one pre-fault. This bounds the reply, and the work that is lost when a punch
# comes meanwhile.
_CHUNK: Final = 1 << 16


class _Fault(NamedTuple):
    """A fault, or a part of a pre-fault: of gfns of one slot."""

    slot: MemorySlot
    backing: BackingFile
    gfn: int
    end: int
    # `Invalidation.seq`, read before anything was looked up.
    seq: int
    # Whether the access is private; None if the attribute decides.
    private: bool | None
    # Whether a vCPU has touched the gfns. If so, it exits when get-pfn fails.
    touched: bool


class Faults:
    """Handles private faults of one VM."""

    def __init__(self, mmu: Mmu, hook: Hook, sync: Sync) -> None:
        self._mmu: Final = mmu
        self._hook: Final = hook
        self._sync: Final = sync

    def resolve(self, gfn: int, private: bool | None = True) -> None:
        """Handle one fault on a file. The guest retries its access, whatever happens.

        *private* says whether the access is private; None if the attribute decides.

        Raises:
            MemoryFaultExit: there is no private memory, or the gfn is shared; or, with
                an errno, get-pfn failed.
            OSError: EPERM where the mount refuses get-memory; `ControlError` when the
                daemon has ended.
        """
        self._sync.drive(self.fault(gfn, private))

    def pre_fault(self, gfn: int, end: int) -> int:
        """Map the gfns from *gfn* to *end*; return the first that is not mapped.

        Raises:
            OSError: as `VM.pre_fault_memory`; the gfns before the error are mapped.
        """
        return self._sync.drive(self.populate(gfn, end))

    # --- steps ------------------------------------------------------------------------

    def fault(
        self, gfn: int, private: bool | None = True
    ) -> Generator[Step, Any, None]:
        """The steps of `resolve`."""
        mmu = self._mmu
        with mmu.lock:
            # Read seq before anything is looked up.
            seq = mmu.invalidation.seq
            mmu.counters.faults += 1
            found = self._served(gfn) if mmu.in_place else self._private_slot(gfn)
            if found is None:
                # The slot was deleted: the vCPU looks the gfn up again.
                return
            slot, backing = found
            slot.users += 1
        try:
            fault = _Fault(slot, backing, gfn, gfn + 1, seq, private, touched=True)
            mapped = yield from self._map(fault)
        finally:
            mmu.leave(slot)
        if not mapped:
            yield Wait(mmu, gfn, gfn + 1)

    def populate(self, gfn: int, end: int) -> Generator[Step, Any, int]:
        """The steps of `pre_fault`."""
        first, size = gfn, _CHUNK
        while gfn < end:
            try:
                stop = yield from self._populate(gfn, min(end, gfn + size))
            except ConnectionError:
                raise
            except OSError:
                if gfn == first or not self._mmu.rules.kvm_pre_fault_partial:
                    raise
                return gfn
            if stop == gfn:
                # Halved at each retry, so that constant punching elsewhere in the range
                # does not keep this from making progress.
                size = max(size >> 1, 1)
                yield Wait(self._mmu, gfn, gfn + size)
            else:
                gfn, size = stop, _CHUNK
        return gfn

    def _populate(self, gfn: int, end: int) -> Generator[Step, Any, int]:
        """Map some gfns; return the next gfn to map, *gfn* itself for a retry."""
        mmu = self._mmu
        with mmu.lock:
            seq = mmu.invalidation.seq
            slot = mmu.slots.find(gfn)
            end = end if slot is None else min(end, slot.end_gfn)
            if mmu.in_place and mmu.uses_file(slot):
                # The attribute comes from the file.
                private = True
            else:
                private, end = mmu.attributes.run(gfn, end)
            backing = None if slot is None else slot.backing
            if mmu.rules.kvm_pre_fault == "private":
                # In place, gfns of a slot without a file are never private.
                if not private and backing is not None:
                    return end
                private = True
            if slot is None or (private and backing is None):
                missing = slot is None and not private
                name = "ENOENT" if missing else mmu.rules.kvm_pre_fault_error
                raise OSError(
                    getattr(errno, name),
                    f"no {'' if missing else 'private '}memory at gpa "
                    f"{gfn << PAGE_SHIFT:#x}",
                )
            if private or mmu.is_served(slot):
                assert backing is not None
                _check_notifier(slot)
            slot.users += 1
        try:
            if not (private or mmu.is_served(slot)):
                touched: int = yield Touch(mmu, slot, gfn, end)
                return touched
            assert backing is not None
            if mmu.asks_first:
                private, stop = yield Ask(slot, gfn)
                end = min(end, stop)
                if not (private or mmu.shared_in_file):
                    if mmu.rules.kvm_pre_fault == "private":
                        return end
                    end = yield Look(slot, gfn, end)
            said = private if mmu.protected else None
            fault = _Fault(slot, backing, gfn, end, seq, said, touched=False)
            mapped = yield from self._map(fault)
        finally:
            mmu.leave(slot)
        return end if mapped else gfn

    def _map(self, fault: _Fault) -> Generator[Step, Any, bool]:
        """Map gfns of one slot; the steps return True if mapped, False to retry."""
        # No generator of its own: each step would go through it.
        if self._mmu.asks_first:
            return self._ask_and_map(fault)
        return self._map_file(fault, None)

    def _ask_and_map(self, fault: _Fault) -> Generator[Step, Any, bool]:
        """Map gfns of one slot, after a look at the attribute."""
        mmu, private = self._mmu, fault.private
        if fault.touched:
            try:
                private, _ = yield Ask(fault.slot, fault.gfn)
            except ConnectionError:
                raise
            except OSError as exc:
                return self._refused(exc, fault, private=False)
            with mmu.lock:
                self._check_kind(fault, private)
        if private or mmu.shared_in_file:
            return (yield from self._map_file(fault, private))
        return (yield from self._map_vmm(fault))

    def _map_vmm(self, fault: _Fault) -> Generator[Step, Any, bool]:
        """Map shared pages of the memory that the VMM gave: without get-pfn."""
        mmu, hook, slot = self._mmu, self._hook, fault.slot
        gfn, end = fault.gfn, fault.end
        if hook is not no_hook:
            yield Point(hook, "fault:begin", gfn, end)
        if fault.touched:
            yield Look(slot, gfn, end)
        if hook is not no_hook:
            yield Point(hook, "fault:before_install", gfn, end)
        with mmu.lock:
            if mmu.invalidation.retry(fault.seq, gfn, end):
                mmu.counters.retries += 1
                return False
            mmu.install_locked(mmu.shared_table, slot, gfn, gfn, end - gfn, 0)
            if not fault.touched:
                mmu.counters.prefaulted += end - gfn
        return True

    def _map_file(
        self, fault: _Fault, private: bool | None
    ) -> Generator[Step, Any, bool]:
        """Map frames of the file. *private* is the attribute, if it is known."""
        mmu, hook = self._mmu, self._hook
        slot, backing, gfn, end = fault.slot, fault.backing, fault.gfn, fault.end
        pgoff = slot.pgoff(gfn)
        if hook is not no_hook:
            yield Point(hook, "fault:begin", gfn, end)
        try:
            found: Sequence[Frames] = yield Get(backing, pgoff, end - gfn)
        except ConnectionError:
            # An error of the control socket does not concern a page.
            raise
        except OSError as exc:
            if fault.touched and mmu.in_place and exc.errno != errno.EAGAIN:
                private = yield from self._kind_of(fault, exc)
                with mmu.lock:
                    self._check_kind(fault, private)
            else:
                # Without private memory no access is private.
                private = mmu.protected
            return self._refused(exc, fault, private=private)
        try:
            if mmu.frames_lock is not None:
                self._make_private(found, gfn - pgoff, gfn, end)
            if hook is not no_hook:
                yield Point(hook, "fault:before_install", gfn, end)
            with mmu.lock:
                retry = mmu.invalidation.retry(fault.seq, gfn, end)
                if retry:
                    mmu.counters.retries += 1
                else:
                    for frames in found:
                        kind = frames.private if private is None else private
                        if fault.touched and mmu.in_place:
                            self._check_kind(fault, kind)
                        table = mmu.shared_table if kind is False else mmu.table
                        _install(mmu, table, slot, frames, gfn - pgoff, gfn, end)
                    if not fault.touched:
                        mmu.counters.prefaulted += end - gfn
        finally:
            yield Put(backing, found)
        if retry:
            return False
        # Do this while the slot has a user, and not in guest mode: it asks the daemon.
        # After a pre-fault the first access needs no fault; and it reports an error.
        try:
            yield Reach(backing, slot.pgoff(end))
        except PermissionError:
            if fault.touched:
                raise
        return True

    def _make_private(
        self, found: Sequence[Frames], shift: int, gfn: int, end: int
    ) -> None:
        """Call the hook `make_private` for the private ones of the frames."""
        mmu = self._mmu
        assert mmu.frames_lock is not None
        with mmu.frames_lock:
            for frames in found:
                first = frames.pgoff + shift
                start, stop = max(first, gfn), min(first + frames.pages, end)
                if frames.private is not False and start < stop:
                    pfn = frames.pfn + start - first
                    mmu.arch.make_private(start, pfn, stop - start)

    def _served(self, gfn: int) -> tuple[MemorySlot, BackingFile] | None:
        """The slot whose file serves *gfn*, whatever the access. With mmu_lock."""
        slot = self._mmu.slots.find(gfn)
        if slot is None or slot.backing is None:
            return None
        _check_notifier(slot)
        return slot, slot.backing

    def _check_kind(self, fault: _Fault, private: bool | None) -> None:
        """Exit where an access differs from the attribute. With mmu_lock."""
        if fault.private is not None and private is not fault.private:
            self._mmu.counters.exits += 1
            raise memory_fault(self._mmu.rules, fault.gfn, private=fault.private)

    def _private_slot(self, gfn: int) -> tuple[MemorySlot, BackingFile]:
        """The slot whose file serves *gfn*, or an exit. With mmu_lock."""
        mmu = self._mmu
        slot = mmu.slots.find(gfn)
        if slot is None or (backing := slot.backing) is None:
            raise self._missing(gfn, slot)
        if not (mmu.attributes.is_private(gfn) or mmu.is_served(slot)):
            raise self._exit(gfn)
        _check_notifier(slot)
        return slot, backing

    def _missing(self, gfn: int, slot: MemorySlot | None) -> VcpuExit:
        """The exit of a private access that no file serves."""
        mmu, rules = self._mmu, self._mmu.rules
        differs = rules.kvm_mismatch == "every gfn" and not mmu.attributes.is_private(
            gfn
        )
        mmio = rules.kvm_no_slot == "MMIO" or mmu.mmio.is_valid(gfn)
        if slot is None and mmio and not differs:
            return MmioExit(gfn << PAGE_SHIFT)
        return self._exit(gfn)

    def _exit(self, gfn: int) -> MemoryFaultExit:
        self._mmu.counters.exits += 1
        return memory_fault(self._mmu.rules, gfn, private=True)

    def _kind_of(self, fault: _Fault, exc: OSError) -> Generator[Step, Any, bool]:
        """Whether a page is private that get-pfn has refused: kvm_mem_is_private()."""
        if exc.errno == errno.EFAULT:
            # The file has been released: its pages are shared, and no conversion
            # changes that.
            return bool(fault.private)
        try:
            private, _ = yield Ask(fault.slot, fault.gfn)
        except ConnectionError:
            raise
        except OSError:
            return False
        # Without private memory no access is private.
        return bool(private) and self._mmu.protected

    def _refused(self, exc: OSError, fault: _Fault, *, private: bool) -> bool:
        """Handle an error of get-pfn: return False to retry, or raise.

        Errors become exits, as in mainline; in v8 the vCPU faults for ever.
        """
        with self._mmu.lock:
            # Another vCPU has the page locked, in semantics that lock pages.
            if exc.errno == errno.EAGAIN:
                self._mmu.counters.retries += 1
                return False
            if not fault.touched:
                raise exc
            self._mmu.counters.exits += 1
        number = exc.errno or errno.EFAULT
        raise memory_fault(
            self._mmu.rules, fault.gfn, private=private, number=number
        ) from exc


def _install(
    mmu: Mmu,
    table: PageTable,
    slot: MemorySlot,
    frames: Frames,
    shift: int,
    gfn: int,
    end: int,
) -> None:
    """Map *frames*; a page's gfn is its pgoff plus *shift*."""
    pgoff, pfn, pages, order, _ = frames
    first = pgoff + shift
    # On a hugetlbfs the frames may cover more than was asked for.
    start, stop = max(first, gfn), min(first + pages, end)
    mmu.install_locked(table, slot, start, pfn + start - first, stop - start, order)


def _check_notifier(slot: MemorySlot) -> None:
    """Fail if the slot has lost its notifier, which KVM's own cannot."""
    if slot.notifier_lost:
        raise ConnectionLostError(
            f"slot {slot.id}: the daemon has disconnected its notifier, and its pages "
            "may go without an invalidation: delete the slot, or make the VM anew"
        )


def memory_fault(
    rules: ShimSemantics, gfn: int, *, private: bool, number: int | None = None
) -> MemoryFaultExit:
    """The exit for an access to *gfn*; by the rules if there is no errno *number*."""
    if number is None:
        number = 0 if rules.kvm_exit_returns == "0" else errno.EFAULT
    flags = EXIT_FLAGS[rules.kvm_exit_flag] if private else 0
    return MemoryFaultExit(flags, gfn << PAGE_SHIFT, PAGE_SIZE, number)
