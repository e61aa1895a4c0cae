"""What the simulated KVM does under each value of each of its rules."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING, Any

import pytest

from inaccfs.inprocess import Mount
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, MemoryFaultExit, Vmm
from inaccfs.kvm.memory import address_of
from inaccfs.kvmcalls import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from inaccfs.semantics import (
    V8,
    VERSIONS,
    Bind,
    GuestMemfd,
    GuestMemfd68,
    GuestMemfd612,
    GuestMemfdShared,
    checking,
)
from inaccfs.semantics.kvm import KvmRules, MainlineKvm, V8Kvm
from inaccfs.syscalls import PUNCH
from tests.unit.kvm_guests import MIB, PAGE
from tests.unit.kvm_outcomes import Guest, guest, mine, outcome

if TYPE_CHECKING:
    from inaccfs.semantics import Semantics

HOLE = 8 * MIB


# --- attributes and accesses ----------------------------------------------------------


def test_the_default_attribute() -> None:
    """half-default-attribute: shared in mainline, so the file stays empty."""
    with guest(V8()) as made:
        assert (made.vm.is_private(256), made.read()) == (True, "\0")
    with guest(GuestMemfd612()) as made:
        assert (made.vm.is_private(256), made.read()) == (False, "s")
        assert made.vm.stats.mapped.pages_4k == 0
        assert made.private() == "ok"
        assert made.read() == "\0"


def test_a_vm_may_have_another_default() -> None:
    for semantics, default in ((V8(), False), (GuestMemfd612(), True)):
        with guest(semantics, default_private=default) as made:
            assert made.vm.is_private(256) is default


def test_what_classifies_an_access() -> None:
    """SW_PROTECTED_VM: the attribute. SNP and TDX: the guest, whose mistakes exit."""
    with guest(GuestMemfd612()) as made:
        made.private()
        assert made.write(b"p") == "ok"
        assert (made.read(), made.read(MIB + PAGE)) == ("p", "s")
        # A guest that says what it wants, as on TDX.
        assert made.read(private=False) == "exit 0 0x100000 EFAULT"
        assert made.read(MIB + PAGE, private=True) == "exit 8 0x101000 EFAULT"
    with guest(V8()) as made:
        made.private(private=False)
        assert made.read() == "exit 1 0x100000"
        assert made.read(private=False) == "s"
        assert made.read(MIB + PAGE, private=False) == "exit 0 0x101000"


def test_an_access_of_many_pages_is_classified_page_by_page() -> None:
    with guest(GuestMemfd612()) as made:
        made.private(1)
        assert made.vm.create_vcpu().read(MIB + PAGE - 1, PAGE + 2) == (
            b"s" + bytes(PAGE) + b"s"
        )


def test_where_a_mismatch_exits() -> None:
    plain = b"x" * PAGE
    for rules, expected in (
        (V8(), "x"),
        (mine(kvm_mismatch="every gfn"), "exit 0 0x800000"),
    ):
        with guest(rules) as made:
            made.slot(2, HOLE, PAGE, private_fd=-1, flags=0, shared=bytearray(plain))
            made.vm.set_memory_attributes(HOLE, PAGE, private=True)
            assert made.read(HOLE, private=False) == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (V8(), "exit 1 0x800000"),
        (GuestMemfd612(), "exit 8 0x800000 EFAULT"),
        (mine(kvm_no_slot="MMIO"), "MMIO 0x800000"),
        (mine(GuestMemfd612, kvm_no_slot="MMIO"), "MMIO 0x800000"),
    ],
    ids=["v8", "6.12", "v8 MMIO", "6.12 MMIO"],
)
def test_a_private_access_without_a_slot(rules: Semantics, expected: str) -> None:
    with guest(rules) as made:
        made.vm.set_memory_attributes(HOLE, PAGE, private=True)
        assert made.read(HOLE) == expected
        # The same is true of a slot that was deleted.
        assert made.slot(2, HOLE, PAGE, private_fd=-1, flags=0, shared=0) == "ok"
        assert made.slot(2, 0, 0, private_fd=-1, flags=0) == "ok"
        assert made.read(HOLE) == expected


def test_a_device_stays_one_when_it_is_made_private() -> None:
    """exit-mmio-before, exit-mmio-then-slot: of one generation of slots."""
    with guest(GuestMemfd612()) as made:
        assert made.read(HOLE) == "MMIO 0x800000"
        made.vm.set_memory_attributes(HOLE, 2 * PAGE, private=True)
        assert made.read(HOLE) == made.write(b"x", HOLE) == "MMIO 0x800000"
        assert made.read(HOLE + PAGE) == "exit 8 0x801000 EFAULT"
        # Then KVM takes it for a shared access, again and again.
        fd = made.mount.memfd_create("other", PAGE)
        half = bytearray(b"h" * PAGE)
        assert made.slot(2, HOLE, PAGE, private_fd=fd, shared=half) == "ok"
        assert made.read(HOLE) == made.read(HOLE) == "exit 0 0x800000 EFAULT"
        made.vm.set_memory_attributes(HOLE, PAGE, private=False)
        assert made.read(HOLE) == "h"
        made.vm.set_memory_attributes(HOLE, PAGE, private=True)
        assert made.read(HOLE) == "\0"
        os.close(fd)
    with guest(mine(GuestMemfd612, kvm_keeps_mmio=False)) as made:
        assert made.read(HOLE) == "MMIO 0x800000"
        made.vm.set_memory_attributes(HOLE, PAGE, private=True)
        assert made.read(HOLE) == "exit 8 0x800000 EFAULT"


def test_huge_mappings() -> None:
    for rules, found in ((V8(), 1), (mine(kvm_huge=False), 0)):
        with Mount(rules) as mount:
            fd = mount.memfd_create("guest", 4 * MIB)
            with VM(mount.connect()) as vm:
                vm.set_user_memory_region(
                    0, 0, 4 * MIB, private_fd=fd, flags=KVM_MEM_PRIVATE
                )
                vm.create_vcpu().read(0, 1)
                assert vm.stats.mapped.pages_2m == found
            os.close(fd)


# --- the exit and the VMM -------------------------------------------------------------


@pytest.mark.parametrize(
    "version",
    # Where a file has huge pages only, a single page of 4 KiB cannot be converted.
    [each for each in VERSIONS if each.granule == "page"],
    ids=lambda each: each.name,
)
def test_a_vmm_converts_what_an_exit_asks_for(version: type[Semantics]) -> None:
    """Whatever flag and errno the exit has."""
    with guest(version()) as made:
        vmm = Vmm(made.vm, fallocate=made.mount.fallocate)
        vcpu = made.vm.create_vcpu()
        for private in (True, False, True):
            vmm.write(vcpu, MIB, b"x", private=private)
            assert made.vm.is_private(256) is private
        assert vmm.read(vcpu, MIB, 1, private=True) == b"x"


def test_what_no_conversion_helps_is_raised() -> None:
    with guest(GuestMemfd612()) as made:
        made.vm.set_memory_attributes(HOLE, PAGE, private=True)
        vcpu = made.vm.create_vcpu()
        with pytest.raises(MemoryFaultExit):
            Vmm(made.vm).read(vcpu, HOLE, 1)


# --- slots ----------------------------------------------------------------------------


def test_a_number_that_is_no_descriptor() -> None:
    for rules, expected in ((V8(), "EINVAL"), (GuestMemfd68(), "EBADF")):
        with guest(rules, slot=False) as made:
            for fd in (-1, 1 << 20, 1 << 40):
                assert made.slot(private_fd=fd) == expected
            # The check for overlapping gfns comes first.
            made.slot()
            assert made.slot(2, private_fd=-1) == "EEXIST"
            memfd = os.memfd_create("plain")
            assert made.slot(3, HOLE, private_fd=memfd) == "EINVAL"
            os.close(memfd)


def test_a_file_without_the_flag() -> None:
    for rules, expected in ((V8(), "EINVAL"), (GuestMemfd68(), "ok")):
        with guest(rules, slot=False) as made:
            assert made.slot(flags=0, shared=0) == expected


@pytest.mark.parametrize("rules", [Bind(), GuestMemfd612()], ids=["bind", "6.12"])
def test_pages_of_a_file_in_two_slots(rules: Semantics) -> None:
    """The rule `exclusive`, in one VM and in two."""
    with guest(rules, slot=False) as made:
        half = MIB // 2
        assert made.slot(1, MIB, half) == "ok"
        assert made.slot(2, HOLE, half) == "EINVAL"
        assert made.slot(2, HOLE, half, private_offset=half - PAGE) == "EINVAL"
        assert made.slot(2, HOLE, half, private_offset=half) == "ok"
        assert made.slot(1, 0, 0) == "ok"
        assert made.slot(3, 2 * HOLE, half) == "ok"


def test_a_file_is_of_the_vm_that_has_made_it() -> None:
    for rules, expected in ((GuestMemfd612(), "EINVAL"), (V8(), "ok")):
        with guest(rules, slot=False) as made, VM(made.mount.connect()) as other:
            other.own(made.fd)
            assert made.slot() == expected
            region: dict[str, Any] = {"private_fd": made.fd, "flags": KVM_MEM_PRIVATE}
            if expected == "EINVAL":
                other.set_user_memory_region(1, MIB, MIB, **region)
                # Nor when its VM has gone.
                other.close()
                assert made.slot() == "EINVAL"


def test_a_slot_without_a_file_can_change() -> None:
    """slot-plain-changes; the content of its memory moves with it."""
    with guest(V8(), slot=False) as made:
        half = bytearray(b"h" * PAGE)
        plain = {"private_fd": -1, "shared": half}

        def change(
            gpa: int = MIB, size: int = PAGE, flags: int = 0, **more: Any
        ) -> str:
            return made.slot(1, gpa, size, **plain | {"flags": flags} | more)

        assert change() == "ok"
        assert change() == "ok"
        assert change(flags=KVM_MEM_LOG_DIRTY_PAGES) == "ok"
        assert change(flags=KVM_MEM_READONLY) == "EINVAL"
        assert change(size=2 * PAGE, shared=bytearray(2 * PAGE)) == "EINVAL"
        assert change(shared=bytearray(PAGE)) == "EINVAL"
        assert change(flags=KVM_MEM_PRIVATE, private_fd=made.fd) == "EINVAL"
        assert change(HOLE) == "ok"
        assert made.read(HOLE, private=False) == "h"
        assert made.read(MIB, private=False) == "MMIO 0x100000"
        assert made.slot(2, MIB, PAGE, flags=0, private_fd=-1, shared=0) == "ok"
        assert change(MIB) == "EEXIST"


def test_a_read_only_slot() -> None:
    with guest(GuestMemfd612(), slot=False) as made:
        half = bytearray(b"h" * PAGE)
        options = {"private_fd": -1, "shared": half}
        assert made.slot(1, MIB, PAGE, flags=KVM_MEM_READONLY, **options) == "ok"
        assert (made.read(), made.write(b"x")) == ("h", "MMIO 0x100000")
        assert half[0] == ord("h")
        flags = KVM_MEM_PRIVATE | KVM_MEM_READONLY
        assert made.slot(2, HOLE, PAGE, flags=flags) == "EINVAL"


def test_memory_at_an_address() -> None:
    """userspace_addr, which is checked when it is used."""
    with guest(GuestMemfd612(), slot=False) as made, mmap.mmap(-1, 2 * PAGE) as half:
        half[:PAGE] = b"h" * PAGE
        address = address_of(half)
        assert made.slot(1, MIB, 2 * PAGE, shared=address + 1) == "EINVAL"
        assert made.slot(1, MIB, 2 * PAGE, shared=1 << 63) == "EINVAL"
        assert made.slot(1, MIB, 2 * PAGE, shared=address) == "ok"
        assert (made.read(), made.write(b"x")) == ("h", "ok")
        assert half[:2] == b"xh"
        assert made.vm.double_allocated() == 0
        made.private()
        assert made.write(b"p") == "ok"
        assert made.vm.double_allocated() == 1
        Vmm(made.vm, fallocate=made.mount.fallocate).convert(MIB, PAGE, private=True)
        assert (made.vm.double_allocated(), half[0]) == (0, 0)
        # Nothing is mapped at this address.
        assert made.slot(2, HOLE, PAGE, private_offset=HOLE // 16, shared=0) == "ok"
        assert made.read(HOLE) == made.write(b"x", HOLE) == "EFAULT"
        made.vm.set_memory_attributes(HOLE, PAGE, private=True)
        assert made.read(HOLE) == "\0"


def test_a_gpa_that_no_cpu_has() -> None:
    """region-gpa-2-52; this gpa can have an attribute."""
    with guest(GuestMemfd612(), slot=False) as made:
        gpa = 1 << 52
        assert made.slot(1, gpa, PAGE) == "EINVAL"
        assert made.slot(1, gpa - PAGE, PAGE) == "ok"
        assert outcome(made.vm.set_memory_attributes, gpa, PAGE, private=True) == "ok"


@pytest.mark.parametrize(
    ("rules", "slot", "read"),
    [
        (V8(), "EINVAL", ""),
        (GuestMemfd612(), "EINVAL", ""),
        (GuestMemfd(), "ok", "s"),
        (GuestMemfdShared(), "ok", "\0"),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_a_vm_without_private_memory(rules: Semantics, slot: str, read: str) -> None:
    """KVM_X86_DEFAULT_VM: no gfn is private; a rule says what the file is for."""
    with guest(rules, slot=False, protected=False) as made:
        assert not made.vm.is_private(256)
        assert made.private() == "EINVAL"
        assert made.private(private=False) == "ok"
        assert made.slot(shared=made.shared) == slot
        if slot == "ok":
            assert made.read() == made.read(private=True) == read
            assert made.write(b"x") == "ok"
            assert (made.shared[0] == ord("x")) is (read == "s")


def test_a_punch_under_a_file_that_serves_all() -> None:
    with guest(GuestMemfdShared(), protected=False) as made:
        made.write(b"x")
        assert (made.read(), made.vm.stats.mapped.pages_4k) == ("x", 1)
        made.mount.fallocate(made.fd, PUNCH, 0, PAGE)
        assert (made.vm.spte(256), made.read()) == (None, "\0")


# --- pre-faults -----------------------------------------------------------------------


def pre_fault(made: Guest, first: int, pages: int) -> object:
    """The rest that is left, in pages from 1 MiB on, or the errno."""
    try:
        gpa, size = made.vm.pre_fault_memory(MIB + first * PAGE, pages * PAGE)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return (gpa - MIB) // PAGE, size // PAGE


def test_pre_fault_maps_private_pages_in_ours() -> None:
    with guest(V8()) as made:
        made.private(2, 2, private=False)
        assert pre_fault(made, 0, 6) == (6, 0)
        assert (made.vm.stats.prefaulted, made.vm.stats.mapped_shared) == (4, 0)
        # The pages before that are mapped, but it fails.
        assert pre_fault(made, 250, 10) == "ENOENT"
        assert made.vm.spte(256 + 255) is not None


def test_pre_fault_maps_all_pages_in_mainline() -> None:
    with guest(GuestMemfd612()) as made:
        made.private(2, 2)
        assert pre_fault(made, 0, 6) == (6, 0)
        stats = made.vm.stats
        assert (stats.prefaulted, stats.mapped_shared) == (2, 4)
        assert stats.mapped.pages_4k == 2
        # Beyond the slot it succeeds with a rest; then the rest is tried by itself.
        assert pre_fault(made, 250, 10) == (256, 4)
        assert pre_fault(made, 256, 4) == "ENOENT"
        made.private(256, 4)
        assert pre_fault(made, 256, 4) == "EFAULT"
        assert pre_fault(made, -1, 2) == "ENOENT"


def test_pre_fault_where_no_memory_is_mapped() -> None:
    with guest(GuestMemfd612(), slot=False) as made:
        assert made.slot(shared=0) == "ok"
        assert pre_fault(made, 0, 2) == "EFAULT"
        made.private()
        assert pre_fault(made, 0, 2) == (1, 1)


def test_conversions_and_slots_unmap_shared_pages() -> None:
    with guest(GuestMemfd612()) as made:
        assert made.read(MIB) == made.read(MIB + PAGE) == made.read(MIB + PAGE) == "s"
        assert made.vm.stats.mapped_shared == 2
        made.private(0)
        assert made.vm.stats.mapped_shared == 1
        made.slot(1, 0, 0)
        assert made.vm.stats.mapped_shared == 0


# --- a user's class -------------------------------------------------------------------


def test_each_side_has_each_rule() -> None:
    rules = [name for name in checking.rules() if name.startswith("kvm_")]
    assert rules == [*KvmRules.__annotations__]
    for name in rules:
        assert hasattr(V8Kvm, name)
        assert hasattr(MainlineKvm, name)


def test_mainline_with_one_rule_of_v8() -> None:
    rules = mine(GuestMemfd612, kvm_default_attribute="private", kvm_exit_flag="1 << 0")
    with guest(rules) as made:
        assert made.read() == "\0"
        assert made.read(private=False) == "exit 0 0x100000 EFAULT"
        made.private(private=False)
        assert made.read(private=True) == "exit 1 0x100000 EFAULT"
