"""The simulated KVM where a file keeps attributes, and has only private pages."""

from __future__ import annotations

import errno
import mmap
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from inaccfs.explore.scenario import Scenario
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case, Limits, explore
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, MemoryFaultExit, Vmm
from inaccfs.semantics import HugetlbRfc, InPlaceNext, InPlaceV8
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
ALL = Limits(seconds=None)


class NoMmap(InPlaceV8):
    """in-place-v8, and the file is made without GUEST_MEMFD_FLAG_MMAP."""

    mmap = "refused"


class NextNoMmap(InPlaceNext):
    """The later tree, and the file is made without GUEST_MEMFD_FLAG_MMAP."""

    mmap = "refused"


class Mixture(NextNoMmap):
    """The later tree, but such a file has no shared pages."""

    kvm_shared_source = "file if mappable"


class PrivateOnly(NoMmap):
    """Pre-faults map private pages only."""

    kvm_pre_fault = "private"


class Race(NoMmap):
    """The race of hugetlb-rfc, in pages of 4 KiB."""

    stored = "after the end"


class HugeNoMmap(HugetlbRfc):
    """As `Race`, in huge pages."""

    mmap = "refused"


@dataclass
class Guest(OneFile):
    half: mmap.mmap
    vm: VM
    vmm: Vmm
    vcpu: Vcpu


@contextmanager
def guest(
    semantics: Semantics, *, discard: bool = True, **options: Any
) -> Iterator[Guest]:
    """A VM with a slot that has a file and shared memory."""
    with (
        one_file(semantics, PAGES) as it,
        mmap.mmap(-1, PAGES * PAGE) as half,
        VM(it.client, **options) as vm,
    ):
        vm.set_user_memory_region(
            0,
            0,
            PAGES * PAGE,
            private_fd=it.fd,
            shared=half,
            flags=KVM_MEM_PRIVATE,
        )
        vmm = Vmm(vm, discard=discard, fallocate=it.mount.fallocate)
        yield Guest(**vars(it), half=half, vm=vm, vmm=vmm, vcpu=vm.create_vcpu())


SOURCES = pytest.mark.parametrize(
    "semantics", [NoMmap(), Mixture()], ids=lambda one: type(one).__name__
)


@SOURCES
def test_a_conversion_does_not_carry_content_over(semantics: Semantics) -> None:
    with guest(semantics) as it:
        it.vcpu.write(0, b"secret")
        with pytest.raises(MemoryFaultExit) as caught:
            it.vcpu.read(0, 6, private=False)
        assert (caught.value.asks, caught.value.private) == (True, False)
        it.vmm.handle(caught.value)
        assert it.vcpu.read(0, 6, private=False) == bytes(6)
        it.vcpu.write(0, b"shared")
        assert it.half[:6] == b"shared"
        it.half[:6] = b"answer"
        assert it.vcpu.read(0, 6) == b"answer"
        it.vmm.convert(0, PAGE, private=True)
        # The VMM has discarded the private page, and now the shared one.
        assert it.vcpu.read(0, 6) == bytes(6)
        assert it.half[:6] == bytes(6)


def test_without_a_discard_both_halves_keep_their_content() -> None:
    with guest(NoMmap(), discard=False) as it:
        it.vcpu.write(0, b"secret")
        it.vmm.convert(0, PAGE, private=False)
        it.vcpu.write(0, b"shared")
        assert it.vm.double_allocated() == 1
        it.vmm.convert(0, PAGE, private=True)
        assert it.vcpu.read(0, 6) == b"secret"
        it.vmm.convert(0, PAGE, private=False)
        assert it.vcpu.read(0, 6) == b"shared"


@pytest.mark.parametrize(
    "semantics", [InPlaceV8(), NextNoMmap()], ids=lambda one: type(one).__name__
)
def test_other_files_have_the_shared_pages_too(semantics: Semantics) -> None:
    """A file that is mappable, and any file of the later tree."""
    with guest(semantics) as it:
        it.vcpu.write(0, b"secret")
        it.vmm.convert(0, PAGE, private=False)
        assert it.vcpu.read(0, 6) == b"secret"
        assert not any(it.half[:6])
        it.half[:6] = b"unused"
        it.vmm.convert(0, PAGE, private=True)
        assert (it.vcpu.read(0, 6), it.half[:6]) == (b"secret", b"unused")


def test_an_access_may_have_pages_of_both_kinds() -> None:
    with guest(NoMmap()) as it:
        it.vmm.convert(PAGE, 2 * PAGE, private=False)
        it.vcpu.write(PAGE - 2, b"ab" + bytes(PAGE) + b"cd")
        assert it.half[2 * PAGE : 2 * PAGE + 2] == b"cd"
        it.vcpu.write(3 * PAGE - 2, b"efgh")
        assert it.half[3 * PAGE - 2 : 3 * PAGE + 2] == b"ef\0\0"
        assert it.vcpu.read(3 * PAGE - 2, 4) == b"efgh"
        assert it.vcpu.read(PAGE - 2, 3) == b"ab\0"


def test_a_fault_on_a_shared_page_needs_no_get_pfn() -> None:
    with guest(NoMmap()) as it:
        it.vmm.convert(0, 4 * PAGE, private=False)
        it.vcpu.write(0, b"shared")
        assert it.vm.pre_fault_memory(0, 4 * PAGE) == (4 * PAGE, 0)
        stats = it.vm.stats
        assert (stats.faults, stats.prefaulted, stats.mapped_shared) == (1, 4, 4)
        # Nor has a private access to one.
        with pytest.raises(MemoryFaultExit) as caught:
            it.vcpu.read(0, 6, private=True)
        assert caught.value.private
        assert it.blocks == 0
        # Their frames are unknown, so no mapping can be shown, or be stale.
        assert it.vm.spte(0) is None
        assert it.vm.runs() == it.vm.runs(0, PAGES) == []
        assert not it.vm.stale_sptes()


def test_a_pre_fault_maps_both_kinds() -> None:
    with guest(NoMmap()) as it:
        it.vmm.convert(PAGE, PAGE, private=False)
        assert it.vm.pre_fault_memory(0, PAGES * PAGE) == (PAGES * PAGE, 0)
        stats = it.vm.stats
        assert (sum(stats.mapped), stats.mapped_shared) == (PAGES, 1)
        assert len(list(it.vm.sptes())) == PAGES - 1
        faults = stats.faults
        assert it.vcpu.read(0, PAGES * PAGE) == bytes(PAGES * PAGE)
        assert it.vm.stats.faults == faults


def test_a_pre_fault_of_private_pages_leaves_out_shared_ones() -> None:
    with guest(PrivateOnly()) as it:
        it.vmm.convert(PAGE, PAGE, private=False)
        assert it.vm.pre_fault_memory(0, 3 * PAGE) == (3 * PAGE, 0)
        assert (sum(it.vm.stats.mapped), it.vm.stats.mapped_shared) == (2, 0)


def test_a_pre_fault_ends_where_the_vmm_has_no_memory() -> None:
    with guest(NoMmap()) as it:
        it.vm.set_user_memory_region(
            1,
            PAGES * PAGE,
            PAGE,
            private_fd=it.mount.memfd_create("other", PAGE),
            flags=KVM_MEM_PRIVATE,
        )
        it.vmm.convert((PAGES - 1) * PAGE, 2 * PAGE, private=False)
        rest = it.vm.pre_fault_memory((PAGES - 1) * PAGE, 2 * PAGE)
        assert rest == (PAGES * PAGE, PAGE)
        with refused(errno.EFAULT, "slot 1 has no shared memory"):
            it.vm.pre_fault_memory(PAGES * PAGE, PAGE)
        with refused(errno.EFAULT, "slot 1 has no shared memory"):
            it.vcpu.read(PAGES * PAGE, 1)


def _mapped(it: Guest) -> tuple[bool, int]:
    """Whether page 0, which is private, is mapped; how many shared pages are."""
    return it.vm.spte(0) is not None, it.vm.stats.mapped_shared


@pytest.mark.parametrize(
    ("semantics", "mapped"),
    [(NoMmap(), (False, 0)), (Mixture(), (True, 0))],
    ids=lambda one: type(one).__name__,
)
def test_a_conversion_zaps_mappings_by_kind(
    semantics: Semantics, mapped: tuple[bool, int]
) -> None:
    """v8 the kinds that are present, the later tree only the opposite kind."""
    with guest(semantics) as it:
        it.vmm.convert(PAGE, PAGE, private=False)
        it.vm.pre_fault_memory(0, 2 * PAGE)
        assert _mapped(it) == (True, 1)
        it.file.set_memory_attributes(0, 2, True)
        assert _mapped(it) == mapped


def test_a_conversion_to_shared_keeps_shared_mappings() -> None:
    with guest(Mixture()) as it:
        it.vmm.convert(PAGE, PAGE, private=False)
        it.vm.pre_fault_memory(0, 2 * PAGE)
        it.file.set_memory_attributes(0, 2, False)
        assert _mapped(it) == (False, 1)


def test_a_punch_zaps_mappings_by_kind_and_leaves_shared_content() -> None:
    with guest(NoMmap()) as it:
        it.vmm.convert(PAGE, PAGE, private=False)
        it.vcpu.write(PAGE, b"shared")
        it.vm.pre_fault_memory(0, 2 * PAGE)
        it.mount.fallocate(it.fd, PUNCH, 0, PAGE)
        assert _mapped(it) == (False, 1)
        it.mount.fallocate(it.fd, PUNCH, PAGE, PAGE)
        assert _mapped(it) == (False, 0)
        assert it.vcpu.read(PAGE, 6) == b"shared"


def test_a_deleted_slot_loses_its_shared_mappings() -> None:
    with guest(NoMmap()) as it:
        it.vmm.convert(0, PAGE, private=False)
        it.vcpu.write(0, b"shared")
        it.vm.set_user_memory_region(0, 0, 0)
        assert (it.vm.stats.mapped_shared, sum(it.vm.stats.mapped)) == (0, 0)


def test_a_vm_without_private_memory_uses_none_of_the_file() -> None:
    with guest(NoMmap(), protected=False) as it:
        it.vcpu.write(0, b"shared")
        assert it.half[:6] == b"shared"
        assert it.vm.pre_fault_memory(0, PAGES * PAGE) == (PAGES * PAGE, 0)
        assert it.blocks == 0


# --- all schedules --------------------------------------------------------------------


class ToPrivate(Scenario):
    """Does a fault map a page as shared after the file has made it private?"""

    def setup(self) -> None:
        self.one = self.vm()
        self.memory = self.file(pages=1)
        self.slot(self.one, self.memory)
        self.convert_file(self.one, self.memory, 0, 1, private=False)
        self.vcpu = self.one.create_vcpu()

    def actor_vcpu(self) -> None:
        self._access(
            self.vcpu, "gfn {}", 0, lambda: self.vcpu.read(0, 8, private=False)
        )

    def actor_convert(self) -> None:
        self.convert_file(self.one, self.memory, 0, 1, private=True)


SEARCHED = [ToPrivate, SCENARIOS["convert-in-place"], SCENARIOS["convert-two-vms"]]


@pytest.mark.parametrize("scenario", SEARCHED, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    ("rules", "kvm", "kinds"),
    [
        (NoMmap(), "kvm", []),
        (Mixture(), "kvm", []),
        (Race(), "kvm", ["wrong-kind"]),
        (HugeNoMmap(), "kvm", ["wrong-kind"]),
    ],
    ids=lambda one: type(one).__name__,
)
def test_conversions_race_only_if_the_end_comes_before_the_store(
    scenario: type[Scenario], rules: Semantics, kvm: str, kinds: list[str]
) -> None:
    found = explore(Case(scenario, rules, kvm), ALL)
    assert found.complete
    assert sorted(found.kinds) == kinds


def test_a_shared_fault_that_does_not_retry_maps_the_wrong_kind() -> None:
    found = explore(Case(ToPrivate, NoMmap(), "no-retry"), ALL)
    assert "wrong-kind" in found.kinds


@pytest.mark.parametrize("name", ["convert", "convert-back"])
def test_a_guest_finds_what_conversions_have_left(name: str) -> None:
    """The VMM discards the half that is not used, so content goes without a write."""
    found = explore(Case(SCENARIOS[name], NoMmap()), ALL)
    assert (found.complete, sorted(found.kinds)) == (True, [])
