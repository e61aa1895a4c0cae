"""A VM: its slots, attributes and vCPUs, and its state for observers."""

from __future__ import annotations

import errno
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.kvm import audit, population, regions
from inaccfs.kvm.backing import BackingFiles
from inaccfs.kvm.encryption import EncryptedMemory
from inaccfs.kvm.faults import Faults
from inaccfs.kvm.memory import PlainMemory
from inaccfs.kvm.memslots import Region
from inaccfs.kvm.mmu import Mmu
from inaccfs.kvm.pagetable import ByLevel, PageTable, merged
from inaccfs.kvm.slotchanges import SlotChanges
from inaccfs.kvm.stats import Stats
from inaccfs.kvm.sync import THREADS
from inaccfs.kvm.uapi import PAGE_SHIFT, Spte, no_hook, pages_of_level
from inaccfs.kvm.vcpu import Vcpu

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from typing import Literal, Self, TypeAlias

    from inaccfs.kvm.arch import Arch
    from inaccfs.kvm.audit import StaleSpte
    from inaccfs.kvm.invalidation import Invalidation
    from inaccfs.kvm.memory import GuestMemory, WritableBuffer
    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.pagetable import Run
    from inaccfs.kvm.shim import Shim, ShimFile
    from inaccfs.kvm.sync import Sync
    from inaccfs.kvm.uapi import Hook

    Zap: TypeAlias = Literal["keeps", "destroys"]


class VM:
    """A virtual machine whose private memory comes from the shim.

    Use it as a context manager, or close it, before its client is closed. Threads may
    share it; each vCPU is for one thread at a time.

    *encryption* keeps private memory encrypted with a key of this VM (needs the package
    cryptography). *default_private* is the attribute of gfns that nobody has converted;
    None takes that of the rule kvm_default_attribute. Without *protected* the VM has no
    private memory, as one of the type KVM_X86_DEFAULT_VM, and the rule kvm_default_vm
    says what becomes of files. *invalidation* replaces KVM's retry protocol, to show
    what happens without it. *memory* replaces plain access to the file's memory; *sync*
    makes the locks. With *zap* "destroys" a private page loses its content when it is
    zapped, as on TDX and CCA; with "keeps" it does not, as on SEV-SNP. *arch* holds the
    hooks of the CPU's vendor. *hooks* is called as `hooks(point, start, end)`, with
    gfns, at

    - `invalidate:begin`: the callback has been called; nothing is zapped yet;
    - `invalidate:end`: the range is zapped; the reply to the daemon comes next;
    - `fault:begin`: seq is read; get-pfn comes next;
    - `fault:before_install`: the frame is known; mmu_lock comes next;
    - `looks_up`: a vCPU is in guest mode, and for a private access has walked the page
      table; it reads the slots next, without a lock;
    - `access`: a vCPU is in guest mode, and copies next.

    Zapping waits for vCPUs in guest mode, so hooks must not block at the last two
    points. At the others no lock is held, and they may block. But deleting a slot
    waits, with slots_lock held, for the faults on the slot and for its notifier.
    """

    def __init__(
        self,
        shim: Shim,
        *,
        encryption: bool = False,
        default_private: bool | None = None,
        protected: bool = True,
        hooks: Hook | None = None,
        invalidation: Invalidation | None = None,
        memory: GuestMemory | None = None,
        sync: Sync = THREADS,
        zap: Zap = "keeps",
        arch: Arch | None = None,
    ) -> None:
        """Asks the daemon for its semantics.

        Raises:
            TypeError: both *encryption* and *memory* are given.
            EncryptionUnavailableError: the package cryptography is not installed.
            ControlError: the daemon has ended.
        """
        self._shim: Final = shim
        self._hook: Final[Hook] = hooks or no_hook
        if encryption and memory is not None:
            raise TypeError("give encryption or memory, not both")
        self._memory: Final[GuestMemory] = (
            EncryptedMemory() if encryption else memory or PlainMemory()
        )
        self.rules: Final = shim.query_semantics()
        self.protected: Final = protected
        self._mmu: Final = Mmu(
            self.rules,
            default_private=default_private,
            protected=protected,
            invalidation=invalidation,
            sync=sync,
            arch=arch,
        )
        if zap == "destroys":
            self._mmu.destroy = partial(population.destroy, self._mmu, self._memory)
        elif zap != "keeps":
            raise ValueError(f"zap {zap!r}: it keeps or destroys content")
        self.sync: Final = sync
        self._faults: Final = Faults(self._mmu, self._hook, sync)
        # Guards the next four, and is held while attributes change.
        self._slots_lock: Final = sync.lock("slots_lock")
        self._files: Final = BackingFiles(shim, self.rules, sync)
        self._changes: Final = SlotChanges(
            self._mmu, self._files, self.rules, self._hook, protected=protected
        )
        self._vcpus = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<VM of {len(self.slots)} slots, {self._vcpus} vCPUs>"

    # --- ioctls -----------------------------------------------------------------------

    def set_user_memory_region(
        self,
        slot: int,
        guest_phys_addr: int,
        memory_size: int,
        *,
        private_fd: int = -1,
        private_offset: int = 0,
        shared: WritableBuffer | int | None = None,
        flags: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: create a slot, or delete it with *memory_size* 0.

        *guest_phys_addr*, *memory_size* and *private_offset* are bytes, of whole pages.
        *shared* is the shared half: any writable buffer of that size, exported until
        the slot is deleted; or an address of this process, the ioctl's userspace_addr.
        *private_fd* stays the caller's. Several slots may use one file, and even the
        same pages of it where the rules have no exclusive ranges.

        Patches 2/8 and 8/8; a slot with a file cannot be changed, only deleted. Others
        can be moved, and can gain or lose KVM_MEM_LOG_DIRTY_PAGES.

        Raises:
            OSError: EINVAL; EEXIST where it overlaps another; EBADF on a closed VM, and
                by the rule kvm_bad_fd for a bad *private_fd*.
        """
        region = Region(
            slot,
            flags,
            guest_phys_addr,
            memory_size,
            shared,
            private_fd,
            private_offset,
        )
        with self._slots_lock:
            if self._closed:
                raise OSError(errno.EBADF, "the VM is closed")
            self._changes.apply(region)

    def own(self, fd: int) -> None:
        """Make this VM the owner of a file, as KVM_CREATE_GUEST_MEMFD does.

        By the rule kvm_file_of_one_vm no other VM of this process can then use it in a
        slot. A file that no VM has made has no owner.

        Raises:
            OSError: EBADF.
        """
        self._files.own(fd)

    def set_memory_attributes(self, gpa: int, size: int, *, private: bool) -> None:
        """KVM_MEMORY_ENCRYPT_REG_REGION, or UNREG_REGION for shared. Patch 5/8.

        When it returns, no access by the former attributes is in progress any more.
        *gpa* and *size* are bytes. There need not be a slot.

        Raises:
            OSError: EINVAL if the range is empty, not aligned, or wraps around; if the
                VM has no private memory; or where attributes are kept in files.
        """
        start, end = _gfns(gpa, size)
        if private and not self.protected:
            raise OSError(errno.EINVAL, "this VM has no private memory")
        if self._mmu.in_place:
            if not private:
                # A VM without private memory has no attribute to clear.
                return
            raise OSError(
                errno.EINVAL,
                "these semantics keep attributes in the file: use Vmm.convert(), or "
                "set_memory_attributes() of the file",
            )
        with self._slots_lock:
            self._mmu.convert(start, end, private=private)

    def pre_fault_memory(self, gpa: int, size: int) -> tuple[int, int]:
        """KVM_PRE_FAULT_MEMORY: map pages, as if they had been touched.

        The rule kvm_pre_fault says which ones. There is one get-pfn for each 256 MiB.
        *gpa* and *size* are bytes; returns those of the rest that is not mapped, as the
        ioctl leaves them in its struct.

        Raises:
            OSError: EINVAL as for attributes; ENOENT where there is no slot; the errno
                of the rule kvm_pre_fault_error where there is no private memory; EFAULT
                where there is no shared memory; the error of get-pfn. By the rule
                kvm_pre_fault_partial it raises only if no page was mapped; otherwise
                the pages before the error are mapped.
        """
        start, end = _gfns(gpa, size)
        stop = self._faults.pre_fault(start, end)
        return stop << PAGE_SHIFT, (end - stop) << PAGE_SHIFT

    def populate(
        self,
        gpa: int,
        size: int,
        source: ShimFile | None = None,
        source_offset: int = 0,
    ) -> int:
        """kvm_gmem_populate(): give private pages their content before the guest runs.

        It comes from *source*, a file of the mount, from page *source_offset* on;
        without a source the content is there already. *gpa* and *size* are bytes; the
        range ends with the slot at the latest. Returns how many pages were done. Where
        zaps destroy content the pages are mapped, because content can only be given
        with the mapping, as by TDH.MEM.PAGE.ADD.

        EINVAL where no slot has a file, or the first page is not private.
        """
        start, end = _gfns(gpa, size)
        with self._slots_lock:
            return population.populate(
                self._mmu, self._faults, start, end, source, source_offset
            )

    def notice_closed_files(self) -> None:
        """Zap at once the mappings of files that nobody has open any more.

        By the rule kvm_slot_holds_file a slot does not keep its file open. The daemon
        sends the invalidation some time after the last close(2) has returned, because
        FUSE reports a close late; in the kernel close(2) waits for it.

        Raises:
            ControlError: the daemon has ended.
        """
        with self._slots_lock:
            for slot in self.slots:
                if slot.backing is not None and slot.backing.released:
                    self._mmu.zap(slot.base_gfn, slot.end_gfn)

    def create_vcpu(self) -> Vcpu:
        """KVM_CREATE_VCPU."""
        with self._slots_lock:
            mode = self.sync.lock("guest_mode")
            vcpu = Vcpu(self._vcpus, self._mmu, self._faults, self._memory, mode)
            vcpu.hook = self._hook
            self._vcpus += 1
            with self._mmu.lock:
                self._mmu.guest_modes.append(mode)
        return vcpu

    def hold(self, slot: MemorySlot) -> AbstractContextManager[bool]:
        """Keep a slot of `slots` from being freed during a with block; see `Mmu.hold`.

        Deleting the slot waits for the end of the block, as for a fault.
        """
        return self._mmu.hold(slot)

    # --- looking ----------------------------------------------------------------------

    @property
    def slots(self) -> tuple[MemorySlot, ...]:
        """The slots, in the order of gfns."""
        return self._mmu.slots.slots

    @property
    def stats(self) -> Stats:
        """The counters, and the present state."""
        double = None
        with suppress(OSError):
            double = self.double_allocated()
        now = self._mmu.snapshot()
        counted = asdict(now.counters)
        for name in ("installed", "zapped"):
            counted[name] = ByLevel(*counted[name])
        return Stats(
            **counted,
            mapped=now.mapped,
            mapped_shared=now.mapped_shared,
            in_progress=now.in_progress,
            double_allocated=double,
        )

    def double_allocated(self) -> int:
        """Count the 4 KiB pages that both a slot's file and its shared half have.

        Raises:
            OSError: EPERM where the mount refuses get-memory; `ControlError`.
        """
        with self._slots_lock:
            return audit.double_allocated(self.slots)

    def is_private(self, gfn: int) -> bool:
        """Whether *gfn* has the private attribute. May ask the daemon.

        Where attributes are kept in files, a gfn in no slot with one is shared.
        """
        slot = self._mmu.slots.find(gfn) if self.in_place else None
        if slot is None or slot.backing is None:
            return self._mmu.attributes.is_private(gfn)
        return slot.backing.attribute(slot.pgoff(gfn))[0]

    @property
    def in_place(self) -> bool:
        """Whether attributes are kept in files, whose pages are converted in place."""
        return self._mmu.in_place

    @property
    def shared_in_file(self) -> bool:
        """Whether a slot's shared pages are those of its file: kvm_shared_source."""
        return self._mmu.shared_in_file

    def spte(self, gfn: int) -> Spte | None:
        """The frame that *gfn* is mapped to, and at what level; None if not mapped.

        The frames of memory that the VMM gave are unknown: see `Stats.mapped_shared`.
        """
        return self._mmu.walk(gfn)

    def sptes(self) -> Iterator[tuple[int, Spte]]:
        """All mappings of one moment: the first gfn of each, its frame and level."""
        for run in self.runs():
            for index in range(0, run.pages, pages_of_level(run.level)):
                yield run.gfn + index, Spte(run.pfn + index, run.level)

    def runs(self, start: int = 0, end: int | None = None) -> list[Run]:
        """As `sptes`, but neighbours of one level in contiguous frames are one run.

        With *end* it walks only the gfns from *start* to *end*: cheap for few.
        """
        mmu = self._mmu
        shared_table = mmu.shared_table if mmu.shared_in_file else PageTable()
        if end is not None:
            return merged(mmu.table.walked(start, end), shared_table.walked(start, end))
        with mmu.lock:
            private, shared = mmu.table.copy(), shared_table.copy()
        return merged(private.runs(), shared.runs())

    def stale_sptes(self, start: int = 0, end: int | None = None) -> list[StaleSpte]:
        """Mappings of frames that their pages do not have, or no longer have.

        There should be none, except while a punch or an allocation waits for a
        callback: in v8 the page is removed by then. The mappings are compared with the
        daemon's list of fetched pages; of a huge mapping that lists only the pages that
        a get-pfn asked for. *start* and *end* are as in `runs`.
        """
        with self._slots_lock:
            stale = audit.stale_sptes(self._shim, self.slots, self.runs(start, end))
        # Skip pages that were punched and zapped between the two queries.
        return [each for each in stale if self.spte(each.gfn) == (each.pfn, each.level)]

    # --- the end ----------------------------------------------------------------------

    def close(self) -> None:
        """Delete all slots: unregister their notifiers, close their files.

        Raises:
            BaseException: what a hook raised in a callback.
        """
        with self._slots_lock, ExitStack() as stack:
            self._closed = True
            for slot in self.slots:
                stack.callback(self._changes.delete, slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _gfns(gpa: int, size: int) -> tuple[int, int]:
    regions.check_range(gpa, size)
    if not size:
        raise OSError(errno.EINVAL, "no bytes")
    return gpa >> PAGE_SHIFT, (gpa + size) >> PAGE_SHIFT
