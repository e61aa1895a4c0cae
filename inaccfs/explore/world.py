"""The objects of one execution of a scenario: files, VMs, IOMMUs, and the judge."""

from __future__ import annotations

import os
import string
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from inaccfs.explore import kinds, seen
from inaccfs.explore.client import ExploredClient
from inaccfs.explore.dma import DeviceBytes, ExploredIommu
from inaccfs.explore.judge import Judge
from inaccfs.explore.memory import Frames, GuestBytes
from inaccfs.explore.names import frame
from inaccfs.explore.seenfile import watch_file
from inaccfs.explore.seenguest import Places, watch_guest
from inaccfs.explore.sequence import Cells
from inaccfs.explore.sync import LOT, Loop, Sync
from inaccfs.explore.unseen import UnseenError
from inaccfs.explore.values import Values
from inaccfs.explore.vm import ExploredVM
from inaccfs.inprocess import Mount
from inaccfs.kvm import KVM_MEM_PRIVATE, Vmm
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.syscalls import PUNCH

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.weaker import Kvm
    from inaccfs.iommu import Learns
    from inaccfs.semantics import Semantics
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.notifiers import Notifier

MOST_PAGES: Final = 512
"""The most pages of a file. Each page is tracked by itself."""

_MEMORY: Final = SimulatedMemory(size=4 << 20, order=0)

# The numbers of clients that are IOMMUs begin here.
_IOMMUS: Final = 100

# The pages that are watched of a file that has no size yet.
_UNSIZED: Final = 4


class Punch(NamedTuple):
    """A punch in progress, of pages of a file."""

    file: int
    pages: range


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
            on_change=self._on_change,
            on_frames=self.frames.watch,
            loop=self.loop,
        )
        self.vms: Final[list[ExploredVM]] = []
        self.iommus: Final[list[ExploredIommu]] = []
        self.cells: Final = Cells(schedule)
        self.judge: Final = Judge(schedule, self.mount, self.frames, self.vms)
        # The number of each file, by st_ino; by number its fd, and its size in pages.
        self._numbers: Final[dict[int, int]] = {}
        self._fds: Final[list[int]] = []
        # The inode of each file, by number; and every notifier that ever existed.
        self.inodes: Final[list[InaccessibleFile]] = []
        self.notifiers: Final[list[Notifier]] = []
        self._pages: Final[list[int]] = []
        # The punches in progress, by actor.
        self.punches: Final[dict[int, Punch]] = {}
        # For each punch, the pages whose removal has begun.
        self._changed: Final[dict[Hashable, range]] = {}
        Values(self, schedule.state)

    # --- things -----------------------------------------------------------------------

    def _check_setup(self, name: str) -> None:
        """Gives things numbers, in the order in which they are made."""
        if self.schedule.runs:
            raise UnseenError(f"an actor calls {name}(), which is for setup()")

    def file(self, pages: int) -> int:
        """Make a file, and return its fd. With 0 *pages* it has no size yet."""
        self._check_setup("file")
        granule = self.mount.superblock.granule_pages
        pages = -(-pages // granule) * granule
        _check_size(pages)
        fd = self.mount.memfd_create("explored", pages * PAGE_SIZE)
        number = len(self._fds)
        self._numbers[os.fstat(fd).st_ino] = number
        self._fds.append(fd)
        self.inodes.append(self.mount.inode(fd))
        self._pages.append(pages or _UNSIZED)
        self.judge.sizes.append(pages)
        sight = self._sight(number)
        watch_file(self.mount.inode(fd), sight)
        if self.mount.superblock.converts:
            kinds.watch_kinds(self.mount.inode(fd), sight, pages or _UNSIZED)
        return fd

    def check_file(self, fd: int) -> int:
        """The number of a file. ValueError if it is not one of the scenario's."""
        try:
            return self.inodes.index(self.mount.inode(fd))
        except OSError:
            # The scenario is wrong: no rules refuse this.
            raise ValueError(f"fd {fd} is no file of the scenario") from None

    def _sight(self, number: int) -> seen.Sight:
        return seen.Sight(
            *(self.schedule, number, frame, self._numbers, self.notifiers)
        )

    def vm(self, name: str, kvm: Kvm, *, puts_late: bool) -> ExploredVM:
        """Make a VM, and an actor that runs its callbacks."""
        self._check_setup("vm")
        schedule = self.schedule
        same = sum(vm.name.rstrip(string.digits) == name for vm in self.vms)
        name += str(same + 1) if same else ""
        client = ExploredClient(
            *(schedule, self.mount, self.loop, name, self._numbers),
            len(self.vms) + 1,
            self.frames.held[name],
            puts_late=puts_late,
        )
        sight = self._sight(len(self.vms))
        places = Places(sight)
        made = ExploredVM(
            client,
            # Under all rules: scenarios are about the memory of files.
            default_private=True,
            hooks=self._hook,
            invalidation=kvm.invalidation(sight, name),
            memory=GuestBytes(schedule, sight, self.frames, self.cells, places),
            sync=Sync(schedule),
        )
        made.name, made.client, made.places = name, client, places
        made.vmm = Vmm(made, fallocate=self.fallocate)
        seen.watch_vm(made, sight)
        watch_guest(made, sight)
        schedule.state.beside.append(made.balance)
        client.listen = kvm.listen
        if kvm.spoil is not None:
            kvm.spoil(made, client)
        self.vms.append(made)
        return made

    def iommu(self, name: str, learns: Learns, fd: int) -> ExploredIommu:
        """Make an IOMMU for a file, and an actor that runs its callbacks.

        An iova is a page's offset in the file.
        """
        self._check_setup("iommu")
        schedule, number = self.schedule, len(self.iommus)
        client = ExploredClient(
            *(schedule, self.mount, self.loop, name, self._numbers),
            *(_IOMMUS + number, self.frames.held[name]),
        )
        file = self.check_file(fd)
        places = {page: (file, page) for page in range(self._pages[file])}
        sight = self._sight(_IOMMUS + number)
        memory = DeviceBytes(schedule, sight, self.frames, self.cells, places)
        made = ExploredIommu(
            client, learns=learns, hooks=self._hook, memory=memory, sync=Sync(schedule)
        )
        memory.file, memory.iommu, made.client = self.inodes[file], made, client
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
        file = self.check_file(fd)
        vm.places.add({gfn + each: (file, page + each) for each in range(pages)})
        # Shared pages of the VMM are not judged by what they contain.
        shared = vm.in_place and not vm.shared_in_file
        vm.set_user_memory_region(
            *(number, gfn * PAGE_SIZE, pages * PAGE_SIZE),
            private_fd=fd,
            private_offset=page * PAGE_SIZE,
            shared=bytearray(pages * PAGE_SIZE) if shared else None,
            flags=KVM_MEM_PRIVATE,
        )

    # --- calls ------------------------------------------------------------------------

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2), in bytes."""
        schedule = self.schedule
        first, end = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        punches = mode == PUNCH
        schedule.point(
            f"fallocate {'punches' if punches else 'allocates'} [{first}, {end})"
        )
        number = self.check_file(fd)
        if schedule.runs:
            schedule.touch(seen.frozen_key(number), False)
        end = min(end, MOST_PAGES)
        self._look(fd, number, max(end, self._pages[number]))
        me = self.loop.me()
        if not punches or not schedule.runs:
            self.mount.fallocate(fd, mode, offset, length)
            return
        assert isinstance(me, int)
        self.punches[me] = Punch(number, range(first, end))
        try:
            self.mount.fallocate(fd, mode, offset, length)
        except OSError:
            for page in self._changed.get(me, ()):
                schedule.touch(seen.cell_key(number, page))
                self.cells.punch_fails(number, page)
            raise
        finally:
            del self.punches[me]
            self._changed.pop(me, None)
        for page in range(first, end):
            schedule.touch(seen.page_key(number, page), False)
            schedule.touch(seen.cell_key(number, page))
            self.cells.punch_ends(number, page)
        schedule.note("fallocate returns")
        schedule.touch(("punching", number))
        # Those of another punch are looked at when that returns.
        others = [one for one in self.punches.values() if one.file == number]
        pages = set(range(first, end)).difference(*(one.pages for one in others))
        self.judge.mappings(fd, pages, "the punch has returned")

    @contextmanager
    def converting(
        self, vm: ExploredVM, first: int, end: int, *, private: bool
    ) -> Iterator[None]:
        """In a with block, gfns become shared, so that private pages lose content.

        Under rules that keep attributes in files, the pages stay, and become shared.
        """
        lost = [
            vm.places[gfn]
            for gfn in range(first, end)
            if not (private or vm.shared_in_file) and gfn in vm.places
        ]
        for place in lost:
            self._lose(place, self.cells.punch_begins)
        end_one = self.cells.punch_fails
        try:
            yield
            end_one = self.cells.punch_ends
        finally:
            for place in lost:
                self._lose(place, end_one)

    def _lose(self, place: tuple[int, int], change: Callable[[int, int], None]) -> None:
        if self.schedule.tracks:
            self.schedule.touch(seen.cell_key(*place))
        change(*place)

    def _look(self, fd: int, number: int, pages: int) -> None:
        """A call reads whether it must send events or remove pages."""
        schedule = self.schedule
        notifiers = len(self.mount.inode(fd).notifiers)
        if schedule.tracks:
            schedule.touch(("punching", number))
            for page in range(0 if notifiers else pages):
                schedule.touch(seen.page_key(number, page), False)
            if self.semantics.locks_pages:
                schedule.touch(LOT)

    def ftruncate(self, fd: int, pages: int) -> None:
        """ftruncate(2), in pages."""
        _check_size(pages)
        self.schedule.point(f"ftruncate to {pages} pages")
        number = self.check_file(fd)
        if self.schedule.tracks:
            for page in range(max(pages, self._pages[number])):
                self.schedule.touch(seen.page_key(number, page))
        self.mount.ftruncate(fd, pages * PAGE_SIZE)

    def memory_failure(self, vm: ExploredVM, fd: int, page: int) -> None:
        """Call memory-failure; note an error in the schedule."""
        schedule, what = self.schedule, "memory-failure of page {}"
        schedule.point(what.format(page))
        number = self.check_file(fd)
        for each in range(self._pages[number]):
            schedule.touch(seen.page_key(number, each))
        memory = self.mount.inode(fd).pages.memory
        known = memory and memory.frames.known(page, page + 1)
        failing = {known[0].pfn} if known else set()
        self.judge.failed.update(failing)
        try:
            vm.client.client.file(fd).memory_failure(page)
        except OSError as exc:
            schedule.refuse(str(exc.strerror), what, page)
            self.judge.failed.difference_update(failing)
            return
        schedule.grant(what, page)
        if self.semantics.memory_failure == "invalidate":
            self.judge.failures("memory-failure has returned")

    def _on_change(self, fd: int, offset: int, length: int) -> None:
        """A call is about to remove or to add pages."""
        schedule = self.schedule
        if not schedule.runs:
            return
        removes = self.loop.me() in self.punches
        schedule.point("removes the pages" if removes else "allocates the pages")
        number = self.check_file(fd)
        schedule.touch(seen.frozen_key(number), False)
        first, end = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        end = min(end, MOST_PAGES)
        memory = self.mount.inode(fd).pages.memory
        if removes:
            self._changed[self.loop.me()] = range(first, end)
        for page in range(first, end):
            schedule.touch(seen.page_key(number, page))
            if removes:
                schedule.touch(seen.cell_key(number, page))
                self.cells.punch_begins(number, page)
        if removes and memory is not None:
            for extent in memory.extents_in(first, end):
                for at in range(extent.count):
                    pfn = extent.pfn + at
                    schedule.touch(seen.references_key(pfn))
                    schedule.note(f"page {extent.offset + at} goes, frame {frame(pfn)}")

    # --- the end ----------------------------------------------------------------------

    def finish(self) -> None:
        """Check the invariants of the end, and close the mount."""
        kinds.check_kinds(self.schedule, self.vms, self.inodes, "all is over")
        for iommu in self.iommus:
            with suppress(ConnectionError):
                iommu.close()
        self.judge.end(self._fds)
        self.mount.close()

    def discard(self) -> None:
        """Close all that is open, also after errors."""
        with ExitStack() as stack:
            for fd in self._fds:
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
            vars(vm._mmu)["_sight"].slots.clear()
            for each in (vm._mmu, vm.client.client, vm.client, vm.vmm, vm):
                vars(each).clear()
        for iommu in self.iommus:
            vars(iommu).clear()
        for file in self.inodes:
            vars(file.notifiers).clear()
        vars(self.mount.superblock).clear()
        vars(self.mount).clear()
        self.schedule.discard()
        vars(self).clear()


def _check_size(pages: int) -> None:
    if not 0 <= pages <= MOST_PAGES:
        raise ValueError(f"a file of {pages} pages: give 0 to {MOST_PAGES}")


def _close(backing: object) -> None:
    with suppress(OSError, BufferError):
        backing.close()  # type: ignore[attr-defined]
