"""The simulated KVM where files keep attributes, and pages are converted in place."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from inaccfs.errnos import EHWPOISON
from inaccfs.inprocess import Mount
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, MemoryFaultExit, MmioExit, Vmm
from inaccfs.kvm.arch import Arch
from inaccfs.semantics import V8, V10, HugetlbRfc, InPlaceNext, InPlaceV8
from inaccfs.syscalls import PUNCH
from tests.unit.fakes import refused
from tests.unit.one_file import OneFile, one_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from inaccfs.kvm import Vcpu
    from inaccfs.semantics import Semantics

PAGE = 4096
PAGES = 16


class BeginsShared(InPlaceV8):
    """GUEST_MEMFD_FLAG_INIT_SHARED."""

    initial = "shared"


class AsksFirst(InPlaceV8):
    """A KVM that reads the attribute before it gets the page."""

    kvm_attribute_read = "before get-pfn"


@dataclass
class Guest(OneFile):
    vm: VM
    vmm: Vmm
    vcpu: Vcpu

    def convert(self, page: int, count: int = 1, *, private: bool) -> None:
        self.file.set_memory_attributes(page, count, private)


@contextmanager
def guest(
    semantics: Semantics, pages: int = PAGES, free: int = 0, **options: Any
) -> Iterator[Guest]:
    """A VM with a slot of *pages* pages of a file, without the last *free* ones."""
    with one_file(semantics, pages) as it, VM(it.client, **options) as vm:
        vm.set_user_memory_region(
            *(0, 0, (pages - free) * PAGE), private_fd=it.fd, flags=KVM_MEM_PRIVATE
        )
        vmm = Vmm(vm, fallocate=it.mount.fallocate)
        yield Guest(**vars(it), vm=vm, vmm=vmm, vcpu=vm.create_vcpu())


IN_PLACE = pytest.mark.parametrize(
    "semantics", [InPlaceV8(), InPlaceNext(), AsksFirst()], ids=lambda one: one.name
)


@IN_PLACE
def test_a_conversion_keeps_what_the_guest_has_written(semantics: Semantics) -> None:
    """guest_memfd_conversions_test, init_private."""
    with guest(semantics) as it:
        it.vcpu.write(0, b"secret")
        with pytest.raises(MemoryFaultExit) as caught:
            it.vcpu.read(0, 6, private=False)
        assert caught.value.asks
        assert not caught.value.private
        it.vmm.handle(caught.value)
        assert it.vcpu.read(0, 6, private=False) == b"secret"
        assert it.file.shared_window().read(0, 6) == b"secret"
        it.file.shared_window().write(0, b"answer")
        it.vmm.convert(0, PAGE, private=True)
        assert it.vcpu.read(0, 6) == b"answer"
        # If the guest does not say what an access is, the attribute decides.
        assert it.vm.stats.exits == 1


@IN_PLACE
def test_an_attribute_is_the_files(semantics: Semantics) -> None:
    """guest_memfd_conversions_test, indexing: one page is converted, and no other."""
    with guest(semantics) as it:
        it.convert(3, private=False)
        assert [it.vm.is_private(gfn) for gfn in range(2, 5)] == [True, False, True]
        with refused(errno.EINVAL, "keep attributes in the file"):
            it.vm.set_memory_attributes(0, PAGE, private=True)
        it.vm.set_memory_attributes(0, PAGE, private=False)
        assert it.vm.is_private(0)


@IN_PLACE
def test_both_kinds_are_mapped_and_counted(semantics: Semantics) -> None:
    with guest(semantics) as it:
        it.convert(1, private=False)
        assert it.vm.pre_fault_memory(0, PAGES * PAGE) == (PAGES * PAGE, 0)
        stats = it.vm.stats
        assert sum(stats.mapped) == PAGES
        assert stats.mapped_shared == 1
        assert not it.vm.stale_sptes()
        assert len(list(it.vm.sptes())) == PAGES


def test_the_bracket_of_a_conversion_zaps_what_is_there() -> None:
    """v8: kinds present, so that a conversion to private zaps private pages, too."""
    with guest(InPlaceV8()) as it:
        it.convert(1, private=False)
        it.vm.pre_fault_memory(0, 2 * PAGE)
        it.convert(0, 2, private=True)
        assert [it.vm.spte(gfn) for gfn in range(2)] == [None, None]


def test_the_tree_after_v8_zaps_only_the_opposite_kind() -> None:
    with guest(InPlaceNext()) as it:
        it.convert(1, private=False)
        it.vm.pre_fault_memory(0, 2 * PAGE)
        it.convert(0, 2, private=True)
        assert it.vm.spte(0) is not None
        assert it.vm.spte(1) is None


def test_a_whole_range_that_is_as_wanted_zaps_nothing() -> None:
    with guest(InPlaceV8(), zap="destroys") as it:
        it.vcpu.write(0, b"secret")
        it.convert(0, PAGES, private=True)
        assert it.vm.spte(0) is not None
        assert it.vm.stats.destroyed == 0


@pytest.mark.parametrize(
    ("semantics", "destroyed", "found"),
    [(InPlaceV8(), 4, bytes(6)), (InPlaceNext(), 0, b"secret")],
    ids=lambda one: getattr(one, "name", ""),
)
def test_a_populated_page_that_a_conversion_destroys(
    semantics: Semantics, destroyed: int, found: bytes
) -> None:
    """Suzuki Poulose: all RAM is made private before boot, and a part was populated."""
    with guest(semantics, zap="destroys") as it:
        it.convert(4, PAGES - 4, private=False)
        for page in range(4):
            it.vcpu.write(page * PAGE, b"secret")
        it.convert(0, PAGES, private=True)
        assert it.vm.stats.destroyed == destroyed
        assert it.vcpu.read(0, 6) == found


def test_a_zap_that_keeps_content_does() -> None:
    with guest(InPlaceV8()) as it:
        it.convert(1, private=False)
        it.vcpu.write(0, b"secret")
        it.convert(0, PAGES, private=True)
        assert it.vcpu.read(0, 6) == b"secret"
        assert it.vm.stats.destroyed == 0


def test_a_slot_that_goes_destroys_too() -> None:
    with guest(InPlaceV8(), zap="destroys") as it:
        it.vcpu.write(0, b"secret")
        it.vm.set_user_memory_region(0, 0, 0)
        assert it.vm.stats.destroyed == 1
        it.convert(0, private=False)
        assert it.file.shared_window().read(0, 6) == bytes(6)


def test_a_zap_is_one_of_two() -> None:
    with Mount(InPlaceV8()) as mount, pytest.raises(ValueError, match="keeps or"):
        VM(mount.connect(), zap="loses")  # type: ignore[arg-type]


@IN_PLACE
def test_with_its_slot_a_gfn_loses_what_it_was(semantics: Semantics) -> None:
    """guest_memfd_conversions_test, private_mem_kvm_exits: MMIO, no memory fault."""
    with guest(semantics) as it:
        it.vcpu.read(PAGE, 8)
        it.vm.set_user_memory_region(0, 0, 0)
        with pytest.raises(MmioExit) as mmio:
            it.vcpu.read(PAGE, 8)
        assert mmio.value.gpa == PAGE
        with pytest.raises(MemoryFaultExit) as fault:
            it.vcpu.read(PAGE, 8, private=True)
        assert (fault.value.flags, fault.value.gpa) == (8, PAGE)


@IN_PLACE
def test_a_conversion_by_another_concerns_every_vm(semantics: Semantics) -> None:
    with guest(semantics, free=1) as it:
        it.vcpu.write(0, b"secret")
        with VM(it.mount.connect()) as other:
            other.set_user_memory_region(
                *(0, 0, PAGE),
                private_fd=it.fd,
                private_offset=(PAGES - 1) * PAGE,
                flags=KVM_MEM_PRIVATE,
            )
            other.create_vcpu().write(0, b"other")
            it.convert(0, PAGES, private=False)
            assert it.vm.spte(0) is None
            assert other.spte(0) is None
            assert other.create_vcpu().read(0, 5) == b"other"


@IN_PLACE
def test_the_exit_of_a_page_that_cannot_be_had_says_what_it_is(
    semantics: Semantics,
) -> None:
    """kvm_mmu_prepare_memory_fault_exit(): flags of the fault, errno of get-pfn."""
    with guest(semantics) as it:
        it.convert(1, private=False)
        for page, flags in ((0, 8), (1, 0)):
            it.vcpu.write(page * PAGE, b"x")
            it.file.memory_failure(page)
            with pytest.raises(MemoryFaultExit) as caught:
                it.vcpu.read(page * PAGE, 1)
            assert (caught.value.flags, caught.value.errno) == (flags, EHWPOISON)
            assert not caught.value.asks
        # An access that differs from the attribute does not come so far.
        with pytest.raises(MemoryFaultExit) as caught:
            it.vcpu.read(PAGE, 1, private=True)
        assert (caught.value.flags, caught.value.errno) == (8, errno.EFAULT)
        assert caught.value.asks


def test_a_file_that_begins_as_shared() -> None:
    """guest_memfd_conversions_test, init_shared."""
    with guest(BeginsShared()) as it:
        it.vcpu.write(0, b"public")
        assert it.file.shared_window().read(0, 6) == b"public"
        with pytest.raises(MemoryFaultExit) as caught:
            it.vcpu.read(0, 6, private=True)
        it.vmm.handle(caught.value)
        assert it.vcpu.read(0, 6, private=True) == b"public"


def test_a_vm_without_private_memory_maps_what_there_is() -> None:
    with guest(BeginsShared(), protected=False) as it:
        it.vcpu.write(0, b"public")
        it.convert(0, private=True)
        assert it.vm.spte(0) is None


def test_a_pinned_page_is_not_converted_and_the_vmm_says_so() -> None:
    """guest_memfd_conversions_test, elevated_refcount: EAGAIN, and which page."""
    with guest(BeginsShared()) as it:
        pins = it.file.pin_pages(2)
        with pytest.raises(BlockingIOError) as caught:
            it.vmm.convert(0, PAGES * PAGE, private=True)
        assert getattr(caught.value, "offset", None) == 2
        it.file.unpin_pages(pins)
        it.vmm.convert(0, PAGES * PAGE, private=True)
        assert it.vm.is_private(2)


def test_a_huge_page_is_mapped_whole_while_it_is_private() -> None:
    with guest(HugetlbRfc(), pages=1024) as it:
        it.vcpu.write(0, b"secret")
        spte = it.vm.spte(0)
        assert spte is not None
        assert spte.level == 2
        frame = spte.pfn
        it.convert(5, private=False)
        # The mapping is split, and only what is converted is unmapped.
        assert it.vm.spte(5) is None
        assert [it.vm.spte(gfn) for gfn in (0, 4, 6, 511)] == [
            (frame + gfn, 1) for gfn in (0, 4, 6, 511)
        ]
        assert it.vm.spte(512) is None
        faults = it.vm.stats.faults
        assert it.vcpu.read(0, 6) == b"secret"
        stats = it.vm.stats
        assert stats.faults == faults
        assert [
            made - gone
            for made, gone in zip(stats.installed, stats.zapped, strict=True)
        ] == list(stats.mapped)
        it.convert(5, private=True)
        it.vcpu.read(PAGE, 1)
        assert it.vcpu.read(0, 6) == b"secret"


@pytest.mark.parametrize("order", ["bracket", "before"])
def test_of_a_split_huge_page_only_what_is_converted_is_destroyed(order: str) -> None:
    """TDX: what is zapped is lost. The prototype zaps the exact range."""
    rules = type("Mine", (HugetlbRfc,), {"order": order})()
    with guest(rules, pages=1024, zap="destroys") as it:
        for page in (4, 5, 512):
            it.vcpu.write(page * PAGE, b"secret")
        it.convert(5, 2, private=False)
        assert it.vm.stats.destroyed == 2
        assert it.vcpu.read(4 * PAGE, 6) == b"secret"
        assert it.vcpu.read(512 * PAGE, 6) == b"secret"
        assert it.vcpu.read(5 * PAGE, 6) == bytes(6)
        assert not it.vm.stale_sptes()


def test_a_slot_of_other_pages_of_the_huge_page_keeps_them() -> None:
    with guest(HugetlbRfc(), pages=512, free=256, zap="destroys") as it:
        it.vcpu.write(0, b"secret")
        it.convert(300, private=False)
        assert it.vm.stats.invalidations == 1
        assert it.vm.stats.destroyed == 0
        assert it.vm.spte(0) is not None


# --- population -----------------------------------------------------------------------


def test_populated_pages_are_mapped_where_a_zap_destroys() -> None:
    """kvm_gmem_populate() of TDX: content can be given with the mapping only."""
    with guest(InPlaceV8(), zap="destroys") as it:
        it.convert(0, private=False)
        it.file.shared_window().write(0, b"kernel")
        it.convert(0, private=True)
        assert it.vm.populate(0, PAGE) == 1
        assert it.vm.spte(0) is not None
        assert it.vcpu.read(0, 6) == b"kernel"


def test_population_from_a_source_ends_with_the_slot() -> None:
    with guest(InPlaceV8(), free=PAGES - 2) as it:
        it.convert(8, 4, private=False)
        it.file.shared_window().write(8 * PAGE, b"kernel")
        assert it.vm.populate(0, 4 * PAGE, it.file, 8) == 2
        assert it.vm.spte(0) is None
        assert it.vcpu.read(0, 6) == b"kernel"


@pytest.mark.parametrize("page", [3, 20])
def test_what_cannot_be_populated(page: int) -> None:
    """A shared page, and a gfn without a slot."""
    with guest(InPlaceV8()) as it:
        it.convert(3, private=False)
        with refused(errno.EINVAL, r"page|slot"):
            it.vm.populate(page * PAGE, PAGE)


# --- hooks ----------------------------------------------------------------------------


class Recorded(Arch):
    """Records the calls of hooks, with frames as page numbers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def make_private(self, gfn: int, pfn: int, pages: int) -> None:
        self.calls.append(("make_private", gfn, pages))

    def make_shared(self, pfn: int, pages: int) -> None:
        self.calls.append(("make_shared", pfn, pages))

    def reclaim(self, pfn: int, pages: int) -> None:
        self.calls.append(("reclaim", pfn, pages))

    def invalidate_range(self, start: int, end: int) -> None:
        self.calls.append(("invalidate_range", start, end))


class SaysFrames(InPlaceNext):
    tells_frames = True


def test_each_reason_has_its_hook() -> None:
    """In the tree after v8 a conversion keeps the content, and a free scrubs it."""
    arch = Recorded()
    with guest(SaysFrames(), arch=arch) as it:
        it.vcpu.write(0, b"secret")
        spte = it.vm.spte(0)
        assert spte is not None
        assert arch.calls == [("make_private", 0, 1)]
        it.convert(0, private=False)
        assert arch.calls[1:] == [
            ("invalidate_range", 0, 1),
            ("make_shared", spte.pfn, 1),
        ]
        arch.calls.clear()
        it.vcpu.read(0, 1)
        it.mount.fallocate(it.fd, PUNCH, 0, PAGE)
        assert arch.calls == [("invalidate_range", 0, 1), ("reclaim", spte.pfn, 1)]
        arch.calls.clear()
        it.vm.set_user_memory_region(0, 0, 0)
        assert arch.calls[0] == ("invalidate_range", 0, PAGES)


def test_a_conversion_to_private_makes_nothing_shared() -> None:
    arch = Recorded()
    with guest(SaysFrames(), arch=arch) as it:
        it.convert(0, private=False)
        it.vcpu.write(0, b"public")
        it.convert(0, private=True)
        assert {name for name, *_ in arch.calls} == {"invalidate_range"}


def test_get_pfn_of_a_private_page_repeats_its_hook() -> None:
    """The hook has to be idempotent."""
    arch = Recorded()
    with guest(InPlaceV8(), arch=arch) as it:
        for _ in range(2):
            it.vcpu.read(0, 1)
            it.vm.set_user_memory_region(0, 0, 0)
            it.vm.set_user_memory_region(
                *(0, 0, PAGE), private_fd=it.fd, flags=KVM_MEM_PRIVATE
            )
        assert arch.calls.count(("make_private", 0, 1)) == 2


class Raises(Arch):
    """A hook with a bug that shows once."""

    def __init__(self) -> None:
        self.raised = False

    def invalidate_range(self, start: int, end: int) -> None:
        if not self.raised:
            self.raised = True
            raise RuntimeError("a bug in a hook")


@pytest.mark.parametrize("semantics", [V8(), V10(), InPlaceV8()])
def test_a_hook_that_raises_in_an_event_leaves_no_invalidation(
    semantics: Semantics,
) -> None:
    with guest(semantics, arch=Raises()) as it:
        it.vcpu.write(0, b"secret")
        it.mount.fallocate(it.fd, PUNCH, 0, PAGE)
        assert it.vm.spte(0) is None
        assert it.vm.stats.in_progress == 0
        assert it.vcpu.read(0, 6) == bytes(6)
        with pytest.raises(RuntimeError, match="a bug in a hook"):
            it.vm.set_user_memory_region(0, 0, 0)


def test_a_hook_that_raises_in_a_conversion_leaves_no_invalidation() -> None:
    with one_file(V10()) as it, VM(it.client, arch=Raises()) as vm:
        shared = bytearray(PAGE)
        vm.set_user_memory_region(
            *(0, 0, PAGE), private_fd=it.fd, shared=shared, flags=KVM_MEM_PRIVATE
        )
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"secret")
        with pytest.raises(RuntimeError, match="a bug in a hook"):
            vm.set_memory_attributes(0, PAGE, private=False)
        assert vm.stats.in_progress == 0
        assert vm.spte(0) is None
        assert vcpu.read(0, 6, private=False) == bytes(6)
        vm.set_memory_attributes(0, PAGE, private=True)
        assert vcpu.read(0, 6) == b"secret"
        vm.close()
