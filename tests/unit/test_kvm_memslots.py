"""Memslots: the errno of each change that is refused, and the gfns of file pages."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs import mmcalls
from inaccfs.kvm import KVM_LPAGE_PRIVATE_SHARED_MIXED, KVM_MEM_PRIVATE, VM
from inaccfs.kvm.attributes import MemoryAttributes
from inaccfs.kvm.memory import address_of
from inaccfs.kvm.memslots import MemorySlot
from inaccfs.kvm.uapi import PG_LEVEL_1G, PG_LEVEL_2M
from tests.unit.fakes import refused
from tests.unit.kvm_guests import (
    GIB,
    MIB,
    PAGE,
    FaultyShim,
    add_slot,
    guest,
    shim,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

U64 = 1 << 64


def a_slot(base_gfn: int, npages: int, pgoff: int = 0) -> MemorySlot:
    return MemorySlot(0, KVM_MEM_PRIVATE, base_gfn, npages, pgoff * PAGE, None)


# --- what is refused ------------------------------------------------------------------


@pytest.fixture
def made() -> Iterator[FaultyShim]:
    with shim() as each:
        yield each


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"slot": -1}, id="slot"),
        pytest.param({"slot": 32767}, id="one slot too many"),
        pytest.param({"flags": KVM_MEM_PRIVATE | 1 << 7}, id="flags"),
        pytest.param({"guest_phys_addr": 100}, id="gpa"),
        pytest.param({"memory_size": PAGE + 1}, id="size"),
        pytest.param(
            {"guest_phys_addr": U64 - PAGE, "memory_size": 2 * PAGE}, id="wrap"
        ),
        pytest.param({"guest_phys_addr": U64 - MIB}, id="wrap to 0"),
        pytest.param({"memory_size": 1 << 43, "shared": None}, id="too much"),
        pytest.param({"private_offset": 100}, id="offset"),
        pytest.param({"private_offset": -PAGE}, id="negative offset"),
        pytest.param({"private_offset": U64 - PAGE * 2}, id="offset wraps"),
        pytest.param({"private_offset": U64 - MIB}, id="offset wraps to 0"),
        pytest.param({"private_fd": -1}, id="no fd"),
        pytest.param({"private_fd": 1 << 20}, id="bad fd"),
        pytest.param({"private_fd": 0, "flags": 0}, id="fd without the flag"),
        pytest.param({"shared": bytearray(PAGE)}, id="short"),
        pytest.param({"shared": memoryview(bytes(MIB))}, id="read only"),
        pytest.param({"memory_size": 0}, id="nothing to delete"),
    ],
)
def test_einval(made: FaultyShim, change: dict[str, Any]) -> None:
    """__kvm_set_memory_region(), and the checks of patches 2/8 and 8/8."""
    region: dict[str, Any] = {
        "slot": 0,
        "guest_phys_addr": 0,
        "memory_size": MIB,
        "private_fd": made.memfd(MIB).fd,
        "shared": bytearray(MIB),
        "flags": KVM_MEM_PRIVATE,
    }
    with VM(made) as vm:
        with refused(errno.EINVAL):
            vm.set_user_memory_region(**region | change)
        assert vm.slots == ()


def test_a_file_that_is_none_of_the_mount_is_refused(made: FaultyShim) -> None:
    """Fuad Tabba: v8 oopses on a plain memfd."""
    plain = os.memfd_create("plain")
    with (
        VM(made) as vm,
        pytest.raises(OSError, match="no file of this mount") as caught,
    ):
        vm.set_user_memory_region(0, 0, PAGE, private_fd=plain, flags=KVM_MEM_PRIVATE)
    os.close(plain)
    assert caught.value.errno == errno.EINVAL


def test_a_file_that_cannot_be_asked_is_closed(made: FaultyShim) -> None:
    file = made.memfd()
    with VM(made) as vm:
        file.query_fails = OSError(errno.EIO, "a bug")
        with pytest.raises(OSError, match="a bug"):
            add_slot(vm, file)
        file.query_fails = None
        assert (file.handles, vm.slots) == (0, ())
        add_slot(vm, file)


def test_shared_memory_begins_at_a_page(made: FaultyShim) -> None:
    with mmap.mmap(-1, MIB) as buffer, VM(made) as vm, memoryview(buffer) as view:
        with pytest.raises(OSError, match="begin at a page"):
            vm.set_user_memory_region(0, 0, PAGE, shared=view[100:])
        vm.set_user_memory_region(0, 0, PAGE, shared=view[PAGE:])
        vm.set_user_memory_region(0, 0, 0)


@pytest.mark.parametrize(
    ("gpa", "size", "fits"),
    [
        (0, MIB, True),
        (0, MIB + PAGE, False),
        (MIB, MIB, False),
        (MIB + PAGE, PAGE, False),
        (2 * MIB - PAGE, PAGE, False),
        (2 * MIB, PAGE, True),
        (0, 4 * MIB, False),
    ],
)
def test_slots_do_not_overlap(
    made: FaultyShim, gpa: int, size: int, *, fits: bool
) -> None:
    """EEXIST, as from kvm_check_memslot_overlap()."""
    file = made.memfd(4 * MIB)
    with VM(made) as vm:
        add_slot(vm, file, gpa=MIB, size=MIB)
        if fits:
            add_slot(vm, file, slot=1, gpa=gpa, size=size)
        else:
            with pytest.raises(FileExistsError):
                add_slot(vm, file, slot=1, gpa=gpa, size=size)


def test_a_slot_is_created_and_deleted_and_nothing_else() -> None:
    """Patch 2/8: a private slot can neither move nor change its flags."""
    with guest() as made:
        for gpa in (0, 8 * MIB):
            with refused(errno.EINVAL, "delete it first"):
                add_slot(made.vm, made.file, gpa=gpa)
        made.vm.set_user_memory_region(0, 0, 0)
        assert list(made.vm.slots) == []
        add_slot(made.vm, made.file, gpa=8 * MIB)
        (slot,) = made.vm.slots
        assert slot.base_gfn == 8 * MIB // PAGE


def test_a_closed_vm_takes_no_slots() -> None:
    with guest() as made:
        made.vm.close()
        made.vm.close()
        with refused(errno.EBADF, "closed"):
            add_slot(made.vm, made.file)


def test_one_notifier_a_slot_and_one_file_for_all(made: FaultyShim) -> None:
    file = made.memfd()
    with VM(made) as vm:
        add_slot(vm, file)
        add_slot(vm, file, slot=1, gpa=MIB)
        assert (file.notifiers, file.handles) == (2, 1)
        vm.set_user_memory_region(0, 0, 0)
        assert (file.notifiers, file.handles) == (1, 1)
    assert (file.notifiers, file.handles) == (0, 0)


def test_the_callers_fd_may_be_closed(made: FaultyShim) -> None:
    file = made.memfd()
    own = os.dup(file.fd)
    with VM(made) as vm:
        vm.set_user_memory_region(0, 0, MIB, private_fd=own, flags=KVM_MEM_PRIVATE)
        os.close(own)
        vm.create_vcpu().write(0, b"still there")
    assert os.pread(file.fd, 11, 0) == b"still there"


# --- file pages to gfns ---------------------------------------------------------------


@given(
    st.integers(0, 60),
    st.integers(1, 30),
    st.integers(0, 60),
    st.integers(0, 120),
    st.integers(0, 120),
)
def test_pages_are_gfns_or_none_of_the_slots(
    base_gfn: int, npages: int, pgoff: int, start: int, end: int
) -> None:
    """Patch 8/8, kvm_memfile_invalidate(), with the fix for Vishal Annapurve's bug."""
    slot = a_slot(base_gfn, npages, pgoff)
    meant = [
        gfn
        for gfn in range(base_gfn, base_gfn + npages)
        if start <= slot.pgoff(gfn) < end
    ]
    found = slot.gfns(start, end)
    assert list(range(*found)) == meant if found else not meant


def test_a_range_before_the_slot_zaps_nothing() -> None:
    """As posted: end - base is -90 there, and as an unsigned number the whole guest."""
    assert a_slot(base_gfn=0, npages=50, pgoff=100).gfns(0, 10) is None


# --- lpage_info -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slot", "gfn", "level", "allowed"),
    [
        (a_slot(0, 1024), 700, PG_LEVEL_2M, True),
        (a_slot(0, 1023), 700, PG_LEVEL_2M, False),
        (a_slot(1, 2048), 3, PG_LEVEL_2M, False),
        (a_slot(512, 1024, pgoff=1024), 600, PG_LEVEL_2M, True),
        (a_slot(512, 1024, pgoff=1025), 600, PG_LEVEL_2M, False),
        (a_slot(1 << 18, 1 << 18, pgoff=512), 1 << 18, PG_LEVEL_2M, True),
        (a_slot(1 << 18, 1 << 18, pgoff=512), 1 << 18, PG_LEVEL_1G, False),
        (a_slot(1 << 18, 1 << 18), 1 << 18, PG_LEVEL_1G, True),
    ],
)
def test_where_a_huge_page_may_be(
    slot: MemorySlot, gfn: int, level: int, *, allowed: bool
) -> None:
    """Inside the slot, and congruent to the file (patches 7/8 and 8/8)."""
    assert (slot.disallow_lpage(gfn, level, MemoryAttributes()) == 0) is allowed


def test_a_mixed_huge_page_has_its_bit() -> None:
    """Patch 6/8. Only the ends of a changed range can be mixed."""
    slot = a_slot(0, 4 * 512)
    attributes = MemoryAttributes()
    attributes.set(100, 1300, private=False)
    mixed = [slot.disallow_lpage(512 * n, PG_LEVEL_2M, attributes) for n in range(4)]
    bit = KVM_LPAGE_PRIVATE_SHARED_MIXED
    assert mixed == [bit, 0, bit, 0]


def test_a_new_slot_has_the_attributes_of_its_gfns() -> None:
    """Sean Christopherson on 6/8: attributes may be older than the slot."""
    with shim(order=9) as made, VM(made) as vm:
        vm.set_memory_attributes(PAGE, PAGE, private=False)
        add_slot(vm, made.memfd(2 * MIB))
        vm.create_vcpu().write(0, b"x")
        assert vm.spte(0) is not None
        assert vm.stats.mapped == (1, 0, 0)


# --- levels of what is mapped ---------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "size", "mapped"),
    [(0, 2 * MIB, (1, 0, 0)), (8, 2 * MIB, (1, 0, 0)), (9, 2 * MIB, (0, 1, 0))],
)
def test_the_order_gives_the_level(
    order: int, size: int, mapped: tuple[int, ...]
) -> None:
    with guest(size, order) as made:
        made.vm.create_vcpu().write(5 * PAGE, b"x")
        assert made.vm.stats.mapped == mapped


def test_a_gib() -> None:
    with shim(order=9) as made, VM(made) as vm:
        file = made.memfd(GIB)
        # As on a hugetlbfs; simulated folios are not larger than 2 MiB.
        file.order = 18
        add_slot(vm, file)
        vm.create_vcpu().write(5 * PAGE, b"x")
        assert vm.spte(9) == (file.frames[5] + 4, PG_LEVEL_1G)


def test_not_congruent_is_not_huge() -> None:
    with shim(order=9) as made, VM(made) as vm:
        file = made.memfd(8 * MIB)
        add_slot(vm, file, size=4 * MIB, private_offset=PAGE)
        vm.create_vcpu().write(0, b"x")
        assert vm.spte(0) == (file.frames[1], 1)
        assert vm.stats.mapped == (1, 0, 0)


def test_a_guest_reads_and_writes_the_memory_at_an_address() -> None:
    with mmap.mmap(-1, 2 * PAGE) as half, shim() as made, VM(made) as vm:
        half[PAGE - 2 : PAGE + 2] = b"host"
        address = address_of(half)
        vm.set_user_memory_region(0, 0, 2 * PAGE, shared=address)
        vcpu = vm.create_vcpu()
        assert vcpu.read(PAGE - 2, 4, private=False) == b"host"
        vcpu.write(PAGE - 1, b"vm", private=False)
        assert half[PAGE - 2 : PAGE + 2] == b"hvmt"


def test_memory_that_is_not_mapped_is_read_and_written_as_far_as_it_is() -> None:
    with mmap.mmap(-1, 2 * PAGE) as memory:
        memory[:] = b"x" * (2 * PAGE)
        address = address_of(memory)
        mmcalls.munmap(address + PAGE, PAGE)
        try:
            assert mmcalls.read_memory(address + PAGE - 3, 3) == b"xxx"
            assert mmcalls.read_memory(address, 2 * PAGE) == b"x" * PAGE
            assert mmcalls.write_memory(address, b"y" * 2 * PAGE) == PAGE
            assert memory[:PAGE] == b"y" * PAGE
            with refused(errno.EFAULT):
                mmcalls.read_memory(address + PAGE, 1)
        finally:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmcalls.MAP_FIXED
            mmcalls.mmap(-1, 0, PAGE, flags=flags, at=address + PAGE)
