"""The objects of one execution of a scenario: files, VMs, IOMMUs, and the judge."""

from __future__ import annotations

import os
import string
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

from inaccfs.explore.attributes import watch_attributes
from inaccfs.explore.changes import Changes
from inaccfs.explore.client import ExploredClient
from inaccfs.explore.dma import DeviceBytes, ExploredIommu
from inaccfs.explore.files import Files, check_size
from inaccfs.explore.guard import GuardError
from inaccfs.explore.judge import Judge
from inaccfs.explore.memory import Frames, GuestBytes
from inaccfs.explore.names import frame
from inaccfs.explore.sequence import Cells
from inaccfs.explore.sync import Loop, Sync
from inaccfs.explore.tracked_file import watch_file
from inaccfs.explore.tracked_guest import Places, watch_guest
from inaccfs.explore.tracked_vm import Tracker, watch_vm
from inaccfs.explore.values import Values
from inaccfs.explore.vm import ExploredVM
from inaccfs.inprocess import Mount
from inaccfs.kvm import KVM_MEM_PRIVATE, Vmm
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.shim.frameoptions import SimulatedMemory

if TYPE_CHECKING:
    from inaccfs.explore.buggy import Kvm
    from inaccfs.explore.schedule import Schedule
    from inaccfs.iommu import Learns
    from inaccfs.semantics import Semantics
    from inaccfs.shim.notifiers import Notifier

_MEMORY: Final = SimulatedMemory(size=4 << 20, order=0)

# The numbers of clients that are IOMMUs begin here.
_IOMMUS: Final = 100


class World:
    """The objects of one execution of a scenario. Numbers are pages."""

    def __init__(
        self, schedule: Schedule, semantics: Semantics, kvm: Kvm, *, evicts: bool
    ) -> None:
        """VMs are made as *kvm* says. With *evicts* an answer may come too late."""
        self.schedule: Final = schedule
        self.semantics: Final = semantics
        self.kvm: Final = kvm
        self.frames: Final = Frames(schedule)
        self.loop: Final = Loop(schedule, evicts=evicts)
        self.mount: Final = Mount(
            semantics,
            memory=_MEMORY,
            on_change=lambda *change: self.changes.on_change(*change),
            on_frames=self.frames.watch,
            loop=self.loop,
        )
        self.vms: Final[list[ExploredVM]] = []
        self.iommus: Final[list[ExploredIommu]] = []
        self.cells: Final = Cells(schedule)
        self.judge: Final = Judge(schedule, self.mount, self.frames, self.vms)
        # Every notifier that ever existed.
        self.notifiers: Final[list[Notifier]] = []
        self.files: Final = Files(schedule, self.mount)
        self.changes: Final = Changes(
            schedule, self.mount, self.files, self.cells, self.judge
        )
        Values(
            schedule.state,
            vms=self.vms,
            iommus=self.iommus,
            notifiers=self.notifiers,
            files=self.files,
            punches=self.changes.punches,
            cells=self.cells,
            frames=self.frames,
            source=self.mount.superblock.frames,
            loop=self.loop,
        )

    # --- things -----------------------------------------------------------------------

    def _check_setup(self, name: str) -> None:
        """Refuse a call by an actor: *name* is for the setup."""
        if self.schedule.runs:
            raise GuardError(f"an actor calls {name}(), which is for setup()")

    def file(self, pages: int) -> int:
        """Make a file, and return its fd. With 0 *pages* it has no size yet."""
        self._check_setup("file")
        granule = self.mount.superblock.granule_pages
        pages = -(-pages // granule) * granule
        check_size(pages)
        fd = self.mount.memfd_create("explored", pages * PAGE_SIZE)
        inode = self.mount.inode(fd)
        tracker = self._tracker(self.files.add(fd, inode, pages))
        watch_file(inode, tracker)
        if self.mount.superblock.converts:
            watch_attributes(inode, tracker)
        return fd

    def _tracker(self, number: int) -> Tracker:
        return Tracker(self.schedule, number, frame, self.files.numbers, self.notifiers)

    def vm(self, name: str, kvm: Kvm, *, puts_late: bool) -> ExploredVM:
        """Make a VM, and an actor that runs its callbacks."""
        self._check_setup("vm")
        schedule = self.schedule
        same = sum(vm.name.rstrip(string.digits) == name for vm in self.vms)
        name += str(same + 1) if same else ""
        client = ExploredClient(
            schedule,
            self.mount,
            self.loop,
            name,
            self.files.numbers,
            len(self.vms) + 1,
            self.frames.held[name],
            puts_late=puts_late,
        )
        tracker = self._tracker(len(self.vms))
        places = Places(tracker)
        made = ExploredVM(
            client,
            # Under all rules: scenarios are about the memory of files.
            default_private=True,
            hooks=self._hook,
            invalidation=kvm.invalidation(tracker, name),
            memory=GuestBytes(schedule, tracker, self.frames, self.cells, places),
            sync=Sync(schedule),
        )
        made.name, made.client, made.places = name, client, places
        made.vmm = Vmm(made, fallocate=self.changes.fallocate)
        watch_vm(made, tracker)
        watch_guest(made, tracker)
        schedule.state.untracked.append(made.balance)
        client.listen = kvm.listen
        if kvm.inject is not None:
            kvm.inject(made, client)
        self.vms.append(made)
        return made

    def iommu(self, name: str, learns: Learns, fd: int) -> ExploredIommu:
        """Make an IOMMU for a file, and an actor that runs its callbacks.

        An iova is a page's offset in the file.
        """
        self._check_setup("iommu")
        schedule, number = self.schedule, len(self.iommus)
        client = ExploredClient(
            schedule,
            self.mount,
            self.loop,
            name,
            self.files.numbers,
            _IOMMUS + number,
            self.frames.held[name],
        )
        file = self.files.number(fd)
        places = {page: (file, page) for page in range(self.files.sizes[file].most)}
        tracker = self._tracker(_IOMMUS + number)
        memory = DeviceBytes(schedule, tracker, self.frames, self.cells, places)
        made = ExploredIommu(
            client, learns=learns, hooks=self._hook, memory=memory, sync=Sync(schedule)
        )
        memory.file, memory.iommu, made.client = self.files.inodes[file], made, client
        made.watch(schedule, number)
        self.iommus.append(made)
        return made

    def _hook(self, point: str, start: int, end: int) -> None:
        if point == "looks_up":
            self.schedule.point("looks its slot up")
        elif point == "access":
            self.schedule.point("copies")
        else:
            self.schedule.note(point)

    def slot(
        self, vm: ExploredVM, fd: int, page: int, pages: int, number: int, gfn: int
    ) -> None:
        """Give a VM pages of a file."""
        file = self.files.number(fd)
        places = {gfn + each: (file, page + each) for each in range(pages)}
        # Shared pages of the VMM are not judged by what they contain.
        shared = vm.in_place and not vm.shared_in_file
        with vm.places.prepared(places):
            vm.set_user_memory_region(
                number,
                gfn * PAGE_SIZE,
                pages * PAGE_SIZE,
                private_fd=fd,
                private_offset=page * PAGE_SIZE,
                shared=bytearray(pages * PAGE_SIZE) if shared else None,
                flags=KVM_MEM_PRIVATE,
            )

    # --- the end ----------------------------------------------------------------------

    def finish(self) -> None:
        """Check the invariants of the end, and close the mount."""
        self.judge.kinds(self.files.inodes, "all is over")
        for iommu in self.iommus:
            with suppress(ConnectionError):
                iommu.close()
        self.judge.end(self.files.fds)
        self.mount.close()

    def discard(self) -> None:
        """Close all that is open, also after errors."""
        with ExitStack() as stack:
            for fd in self.files.fds:
                stack.callback(os.close, fd)
            stack.callback(self.mount.close)
            users: list[Any] = [*self.vms, *self.iommus]
            for user in users:
                for backing in list(user._files._files.values()):
                    stack.callback(_close, backing)
                user._files._files.clear()
        # Break reference cycles of objects that are not used again: collecting them as
        # garbage would take a fifth of the time.
        for notifier in self.notifiers:
            vars(notifier).clear()
        for vm in self.vms:
            vars(vm._mmu)["_tracker"].slots.clear()
            for each in (vm._mmu, vm.client.client, vm.client, vm.vmm, vm):
                vars(each).clear()
        for iommu in self.iommus:
            vars(iommu).clear()
        for file in self.files.inodes:
            vars(file.notifiers).clear()
        vars(self.mount.superblock).clear()
        vars(self.mount).clear()
        self.schedule.discard()
        vars(self).clear()


def _close(backing: object) -> None:
    with suppress(OSError, BufferError):
        backing.close()  # type: ignore[attr-defined]
