"""The base class of scenarios."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, ClassVar

from inaccfs.explore.buggy import KVMS
from inaccfs.explore.names import STAMP
from inaccfs.explore.tracked_vm import UntrackedError
from inaccfs.kvm import MemoryFaultExit, MmioExit
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from inaccfs.explore.dma import ExploredIommu
    from inaccfs.explore.file import ExploredFile
    from inaccfs.explore.vm import ExploredVM
    from inaccfs.explore.world import World
    from inaccfs.iommu import Device, Learns
    from inaccfs.kvm import Vcpu


@cache
def _actors(kinds: tuple[type, ...]) -> list[str]:
    """The names of the methods of actors, in the order of the class."""
    names = (name for kind in reversed(kinds) for name in vars(kind))
    return [name for name in dict.fromkeys(names) if name.startswith("actor_")]


class Scenario:
    """Derive from it: `setup`, a method `actor_NAME` for each actor, maybe `always`.

    The docstring says what the scenario asks. `setup` makes files, VMs and slots, and
    runs before all actors. Actors may read what it sets on self, and set nothing
    themselves. Numbers are pages.
    """

    name: ClassVar[str] = ""
    """The word of the command line; that of the class if there is none."""

    evicts: ClassVar[bool] = False
    """Whether an answer may come too late at any time."""

    _world: World
    _closed = False

    def setup(self) -> None:
        """Make what the actors use."""
        raise NotImplementedError(f"{type(self).__name__} has no setup()")

    always: ClassVar[Callable[[Self], object] | None] = None
    """Called after each step, if there is one. It asserts, and waits for nobody."""

    def __setattr__(self, name: str, value: object) -> None:
        if self._closed:
            raise UntrackedError(
                f"an actor sets self.{name}, which the explorer does not track: set it "
                "in setup()"
            )
        object.__setattr__(self, name, value)

    def actors(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """The methods whose names begin with actor_, in order of the class."""
        for each in _actors(type(self).__mro__):
            yield each.removeprefix("actor_"), getattr(self, each)

    # --- for `setup` ------------------------------------------------------------------

    def file(self, pages: int) -> int:
        """Make a file; returns its fd."""
        return self._world.file(pages)

    def vm(
        self, name: str = "vm", retries: bool | None = None, *, puts_late: bool = False
    ) -> ExploredVM:
        """Make a VM. Without *retries*, --kvm chooses its KVM.

        With *puts_late* an actor of its own puts the VM's references.
        """
        world = self._world
        kvm = world.kvm
        if retries is not None:
            kvm = KVMS["kvm" if retries else "no-retry"]
        return world.vm(name, kvm, puts_late=puts_late)

    def unmap(self, vm: ExploredVM, first: int, end: int) -> None:
        """Zap gfns; the file keeps its pages."""
        if vm.in_place:
            vm._mmu.zap(first, end)
            return
        for private in (False, True):
            vm.set_memory_attributes(
                first * PAGE_SIZE, (end - first) * PAGE_SIZE, private=private
            )

    # --- for actors, too --------------------------------------------------------------

    def slot(
        self,
        vm: ExploredVM,
        file: int,
        page: int = 0,
        pages: int = 1,
        *,
        number: int = 0,
        gfn: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: *pages* of *file* from *page* on, at *gfn*."""
        self._world.slot(vm, file, page, pages, number, gfn)

    def delete_slot(self, vm: ExploredVM, number: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION with a size of 0."""
        vm.set_user_memory_region(number, 0, 0)

    def read(self, vcpu: Vcpu, gfn: int) -> None:
        """A guest reads a page."""
        read = partial(vcpu.read, gfn * PAGE_SIZE, STAMP)
        self._access(vcpu, "read of gfn {}", gfn, read)

    def write(self, vcpu: Vcpu, gfn: int, text: str) -> None:
        """A guest writes up to 8 characters to a page."""
        data = text.encode()
        if len(data) > STAMP:
            raise ValueError(f"{text!r} is longer than {STAMP} bytes")
        write = partial(vcpu.write, gfn * PAGE_SIZE, data.ljust(STAMP, b"\0"))
        self._access(vcpu, "write of gfn {}", gfn, write)

    def _access(
        self, vcpu: Vcpu, what: str, gfn: int, call: Callable[[], object]
    ) -> None:
        world, schedule = self._world, self._world.schedule
        try:
            with schedule.access():
                call()
        except (MemoryFaultExit, MmioExit) as exc:
            schedule.refuse(f"exits: {exc}", what, gfn)
            if isinstance(exc, MemoryFaultExit):
                world.judge.exit(vcpu, exc, world.files.always_had)
        except ConnectionError:
            schedule.refuse("its daemon has disconnected it", what, gfn)
        except OSError as exc:
            # It is EFAULT, for example, if the slot has no shared half.
            schedule.refuse(str(exc.strerror), what, gfn)
        else:
            schedule.grant(what, gfn)

    def punch(self, file: int, first: int, end: int) -> None:
        """fallocate(2) with FALLOC_FL_PUNCH_HOLE; the rules may refuse it."""
        self._fallocate(file, PUNCH, "punch of pages [{}, {})", first, end)

    def allocate(self, file: int, first: int, end: int) -> None:
        """fallocate(2) that allocates, and keeps the size."""
        what = "allocation of pages [{}, {})"
        self._fallocate(file, FALLOC_FL_KEEP_SIZE, what, first, end)

    def _fallocate(self, file: int, mode: int, what: str, first: int, end: int) -> None:
        world = self._world
        if not 0 <= first < end:
            raise ValueError(f"no pages from {first} to {end}")
        world.files.number(file)
        try:
            world.changes.fallocate(
                file, mode, first * PAGE_SIZE, (end - first) * PAGE_SIZE
            )
        except OSError as exc:
            world.schedule.refuse(str(exc.strerror), what, first, end)
        else:
            world.schedule.grant(what, first, end)

    def truncate(self, file: int, pages: int) -> None:
        """ftruncate(2), which the rules may refuse."""
        schedule = self._world.schedule
        self._world.files.number(file)
        try:
            self._world.changes.ftruncate(file, pages)
        except OSError as exc:
            schedule.refuse(str(exc.strerror), "truncation to {} pages", pages)
        else:
            schedule.grant("truncation to {} pages", pages)

    def convert(self, vm: ExploredVM, first: int, end: int, *, private: bool) -> None:
        """Convert gfns as a VMM does: attributes, then a punch of the other half."""
        world, at = self._world, (first * PAGE_SIZE, (end - first) * PAGE_SIZE)
        what = (
            f"conversion of gfns [{{}}, {{}}) to {'private' if private else 'shared'}"
        )
        try:
            with world.changes.converting(vm, first, end, private=private):
                vm.vmm.convert(*at, private=private)
        except OSError as exc:
            world.schedule.refuse(str(exc.strerror), what, first, end)
        else:
            world.schedule.grant(what, first, end)

    def convert_file(
        self,
        user: ExploredVM | ExploredIommu,
        file: int,
        first: int,
        end: int,
        *,
        private: bool,
    ) -> None:
        """set-memory-attributes of pages of a file; the rules may refuse it."""
        self._world.changes.convert(user, file, (first, end), private=private)

    def freeze(self, vm: ExploredVM, file: int) -> None:
        """A VM's client freezes a file, and unfreezes it a step later."""
        self._world.changes.freeze(vm, file)

    def iommu(self, learns: Learns, file: int, pages: int) -> ExploredIommu:
        """For `setup`: make an IOMMU that has mapped the first *pages* of a file."""
        made = self._world.iommu("iommu", learns, file)
        made.map_file(file, 0, pages * PAGE_SIZE)
        return made

    def dma(self, device: Device, page: int, text: str = "") -> None:
        """A device reads a page, or writes up to 8 characters to it."""
        with self._world.schedule.access():
            if text:
                device.write(page * PAGE_SIZE, text.encode().ljust(STAMP, b"\0"))
            else:
                device.read(page * PAGE_SIZE, STAMP)

    def restore(self, iommu: ExploredIommu) -> None:
        """An IOMMU maps again what events have unmapped."""
        self._world.schedule.point("restores")
        iommu.restore()

    def kill(self, vm: ExploredVM) -> None:
        """The VM's process dies."""
        vm.client.die()

    def get_and_put(self, file: ExploredFile, page: int) -> None:
        """get-pfn and put-pfn of a page by a client that has no VM."""
        schedule, what = self._world.schedule, "get-pfn of page {}"
        try:
            found = file.get_pfn(page)
        except OSError as exc:
            schedule.calls.refuse(str(exc.strerror), schedule.current, what, page)
            return
        schedule.grant(what, page)
        if self._world.semantics.keeps_references:
            file.put_pfn(found.pfn)

    def memory_failure(self, vm: ExploredVM, file: int, page: int) -> None:
        """memory-failure of a page, by a VM's client."""
        self._world.changes.memory_failure(vm, file, page)
