"""The simulated KVM where files keep attributes, and pages are converted in place."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from inaccfs.errnos import EHWPOISON
from inaccfs.inprocess import Mount
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, MemoryFaultExit, MmioExit
from inaccfs.semantics import HugetlbRfc, InPlaceNext, InPlaceV8
from tests.unit.fakes import refused
from tests.unit.kvm_in_place_guests import PAGE, PAGES, guest

if TYPE_CHECKING:
    from inaccfs.semantics import Semantics


class BeginsShared(InPlaceV8):
    """GUEST_MEMFD_FLAG_INIT_SHARED."""

    initial = "shared"


class AsksFirst(InPlaceV8):
    """A KVM that reads the attribute before it gets the page."""

    kvm_attribute_read = "before get-pfn"


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
                0,
                0,
                PAGE,
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
