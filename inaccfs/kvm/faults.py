"""Private page faults, of one touched page or of many pages at once. Patch 7/8.

In both the order is: read seq; look up; get the frames, which waits for the daemon;
take mmu_lock; check whether to retry; map; drop mmu_lock; put the references. KVM keeps
no reference to a page that it maps: it relies on invalidations.

The order is written once, as generators of steps. A step is an operation that may wait
for other threads, or lets them run: no lock is held when one is yielded. `Sync.drive`
performs the steps.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from inaccfs.client.errors import ConnectionLostError
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
    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.shim import ShimSemantics
    from inaccfs.kvm.sync import Sync
    from inaccfs.kvm.uapi import Hook

# Pages of one pre-fault. This bounds the reply, and the work that is lost when a punch
# comes meanwhile.
_CHUNK: Final = 1 << 16


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


class Touch(NamedTuple):
    """Map shared pages: KVM looks each up in the VMM's page table, as by touching it.

    The result is the gfn to go on at.

    Raises:
        OSError: EFAULT where the VMM has no memory for the first of them.
    """

    mmu: Mmu
    slot: MemorySlot
    start: int
    end: int

    def __call__(self) -> int:
        mmu, slot = self.mmu, self.slot
        if slot.shared is None:
            raise OSError(errno.EFAULT, f"slot {slot.id} has no shared memory")
        for gfn in range(self.start, self.end):
            try:
                slot.shared.read((gfn - slot.base_gfn) << PAGE_SHIFT, 1)
            except OSError:
                if gfn == self.start:
                    raise
                return gfn
            with mmu.lock:
                if not mmu.attributes.is_private(gfn):
                    mmu.shared.map(gfn, gfn + 1)
        return self.end


Step: TypeAlias = Point | Get | Put | Reach | Touch | Wait
"""Calling a step performs it, and returns the value to send to the generator."""


class Faults:
    """Handles private faults of one VM."""

    def __init__(self, mmu: Mmu, hook: Hook, sync: Sync) -> None:
        self._mmu: Final = mmu
        self._hook: Final = hook
        self._sync: Final = sync

    def resolve(self, gfn: int) -> None:
        """Handle one private fault. The guest retries its access, whatever the result.

        Raises:
            MemoryFaultExit: there is no private memory, or the gfn is shared; or, with
                an errno, the page cannot be had.
            OSError: EPERM where the mount refuses get-memory; `ControlError` when the
                daemon has gone.
        """
        self._sync.drive(self.fault(gfn))

    def pre_fault(self, gfn: int, end: int) -> int:
        """Map the gfns from *gfn* to *end*; return the first that is not mapped.

        Raises:
            OSError: as `VM.pre_fault_memory`; the gfns before that are mapped by then.
        """
        return self._sync.drive(self.populate(gfn, end))

    # --- steps ------------------------------------------------------------------------

    def fault(self, gfn: int) -> Generator[Step, Any, None]:
        """The steps of `resolve`."""
        mmu = self._mmu
        with mmu.lock:
            # Before anything is looked up.
            seq = mmu.invalidation.seq
            mmu.counters.faults += 1
            slot, backing = self._private_slot(gfn)
            slot.users += 1
        try:
            mapped = yield from self._map(
                slot, backing, gfn, gfn + 1, seq, touched=True
            )
            if mapped:
                # While the slot has a user, and out of guest mode: it asks the daemon.
                yield Reach(backing, slot.pgoff(gfn) + 1)
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
            private, end = mmu.attributes.run(gfn, end)
            backing = None if slot is None else slot.backing
            if mmu.rules.kvm_pre_fault == "private":
                # Those of a slot without a file are never private there.
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
            mapped = yield from self._map(slot, backing, gfn, end, seq, touched=False)
            if mapped:
                # So that the first access needs no fault; that reports a failure.
                with suppress(PermissionError):
                    yield Reach(backing, slot.pgoff(end))
        finally:
            mmu.leave(slot)
        return end if mapped else gfn

    def _map(
        self,
        slot: MemorySlot,
        backing: BackingFile,
        gfn: int,
        end: int,
        seq: int,
        *,
        touched: bool,
    ) -> Generator[Step, Any, bool]:
        """Map private gfns of one slot; return True if mapped, False to retry.

        If a vCPU has *touched* them, it exits where get-pfn fails.
        """
        mmu, hook = self._mmu, self._hook
        pgoff = slot.pgoff(gfn)
        if hook is not no_hook:
            yield Point(hook, "fault:begin", gfn, end)
        try:
            found: Sequence[Frames] = yield Get(backing, pgoff, end - gfn)
        except ConnectionError:
            # An error of the control socket is not about a page.
            raise
        except OSError as exc:
            return self._refused(exc, gfn, touched=touched)
        try:
            if hook is not no_hook:
                yield Point(hook, "fault:before_install", gfn, end)
            with mmu.lock:
                retry = mmu.invalidation.retry(seq, gfn, end)
                if retry:
                    mmu.counters.retries += 1
                else:
                    for frames in found:
                        _install(mmu, slot, frames, gfn - pgoff, gfn, end)
                    if not touched:
                        mmu.counters.prefaulted += end - gfn
        finally:
            yield Put(backing, found)
        return not retry

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
        """What a private access gets that no file serves."""
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

    def _refused(self, exc: OSError, gfn: int, *, touched: bool) -> bool:
        """Handle an error of get-pfn: return False to retry, or raise.

        Errors become exits, as in mainline; in v8 the vCPU faults for ever.
        """
        with self._mmu.lock:
            # Another vCPU has the page locked, in semantics that lock pages.
            if exc.errno == errno.EAGAIN:
                self._mmu.counters.retries += 1
                return False
            if not touched:
                raise exc
            self._mmu.counters.exits += 1
        number = exc.errno or errno.EFAULT
        # Without private memory no access is private.
        private = self._mmu.protected
        raise memory_fault(
            self._mmu.rules, gfn, private=private, number=number
        ) from exc


def _install(
    mmu: Mmu, slot: MemorySlot, frames: Frames, shift: int, gfn: int, end: int
) -> None:
    """Map *frames*; a page's gfn is its pgoff plus *shift*."""
    pgoff, pfn, pages, order = frames
    first = pgoff + shift
    # On a hugetlbfs the frames may cover more than was asked for.
    start, stop = max(first, gfn), min(first + pages, end)
    mmu.install_locked(slot, start, pfn + start - first, stop - start, order)


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
