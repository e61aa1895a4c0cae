"""A guest's reads, writes and exits, and what a VMM does after an exit."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from inaccfs.kvm import KVM_MEMORY_EXIT_FLAG_PRIVATE, VM, MemoryFaultExit, MmioExit, Vmm
from inaccfs.kvm import vmm as kvm_vmm
from inaccfs.kvm.pagemap_view import states
from tests.unit.fakes import refused
from tests.unit.kvm_guests import MIB, PAGE, PATIENCE, add_slot, guest, shim

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

    from inaccfs.kvm import MemorySlot

# --- accesses -------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 9])
@pytest.mark.parametrize("private", [True, False])
def test_an_access_may_cross_pages(order: int, *, private: bool) -> None:
    with guest(4 * MIB, order, default_private=private) as made:
        data = os.urandom(3 * PAGE + 17)
        vcpu = made.vm.create_vcpu()
        gpa = 2 * MIB - PAGE - 5
        vcpu.write(gpa, data, private=private)
        assert vcpu.read(gpa, len(data), private=private) == data
        assert vcpu.read(gpa - 1, 1, private=private) == b"\0"
        memory = os.pread(made.file.fd, len(data), gpa)
        other = bytes(made.shared[gpa : gpa + len(data)])
        assert (memory == data, other == data) == (private, not private)


def test_an_access_may_cross_slots() -> None:
    with shim() as made, VM(made) as vm:
        first, second = made.memfd(), made.memfd()
        add_slot(vm, first, gpa=MIB)
        add_slot(vm, second, slot=1)
        vm.create_vcpu().write(MIB - 3, b"across")
        assert os.pread(second.fd, 3, MIB - 3) == b"acr"
        assert os.pread(first.fd, 3, 0) == b"oss"


def test_a_file_may_get_its_size_after_it_has_a_slot() -> None:
    """v8: the size is set by one truncate, whenever that is."""
    with shim() as made, VM(made) as vm:
        file = made.memfd(0)
        add_slot(vm, file, size=MIB)
        vcpu = vm.create_vcpu()
        with pytest.raises(MemoryFaultExit):
            vcpu.read(0, 1)
        file.truncate(PAGE)
        for size in (PAGE, MIB):
            # Before the second fault it has grown by fallocate(2).
            file.allocate(0, size)
            vcpu.write(size - 1, b"x")
            assert os.pread(file.fd, 1, size - 1) == b"x"


@pytest.mark.parametrize("size", [100, PAGE - 1, PAGE + 3])
def test_the_last_page_of_a_file_is_a_whole_one(size: int) -> None:
    """fallocate(2) may leave a file whose size is not a multiple of the page size."""
    faults: list[str] = []

    def hook(point: str, start: int, end: int) -> None:
        faults.append(point)
        assert faults.count("fault:begin") < 10, "it faults for ever"

    with shim() as made, VM(made, hooks=hook) as vm:
        file = made.memfd(0)
        file.allocate(0, size)
        add_slot(vm, file)
        vcpu = vm.create_vcpu()
        vcpu.write(size - 3, b"acro")
        assert vcpu.read(size - 3, 4) == b"acro"
        assert os.pread(file.fd, 10, size - 3) == b"acr"
        assert vcpu.read(PAGE - 1, 1) == (b"o" if size == PAGE - 1 else b"\0")


def test_two_vms_do_not_see_each_others_memory() -> None:
    with shim() as made, VM(made) as one, VM(made) as other:
        add_slot(one, made.memfd())
        add_slot(other, made.memfd())
        one.create_vcpu().write(0, b"secret")
        assert other.create_vcpu().read(0, 6) == bytes(6)


def test_without_get_memory_pages_are_mapped_but_not_accessed() -> None:
    with shim(refuses_memory=True) as made, VM(made) as vm:
        add_slot(vm, made.memfd(), shared=bytearray(MIB))
        vm.pre_fault_memory(0, MIB)
        with pytest.raises(PermissionError):
            vm.create_vcpu().read(0, 1)
        assert vm.stats.double_allocated is None
        assert vm.stats.mapped == (256, 0, 0)


def test_nonsense_is_a_bug_of_the_caller() -> None:
    with guest() as made, pytest.raises(ValueError, match="gpa -1"):
        made.vm.create_vcpu().read(-1, 1)


# --- exits ----------------------------------------------------------------------------


@pytest.mark.parametrize("private", [True, False])
def test_a_mismatch_is_an_exit(*, private: bool) -> None:
    """Patches 3/8 and 7/8; the exit names the whole page, for any part of it."""
    with guest(default_private=not private) as made:
        with pytest.raises(MemoryFaultExit) as caught:
            made.vm.create_vcpu().read(5 * PAGE + 7, 100, private=private)
        found = caught.value
        assert found.flags == (KVM_MEMORY_EXIT_FLAG_PRIVATE if private else 0)
        assert (found.gpa, found.size, found.errno) == (5 * PAGE, PAGE, 0)
        assert made.vm.stats.exits == 1
        assert made.file.frames == {}


def test_a_shared_access_stops_at_the_first_private_page() -> None:
    with guest(default_private=False) as made:
        made.vm.set_memory_attributes(2 * PAGE, PAGE, private=True)
        with pytest.raises(MemoryFaultExit) as caught:
            made.vm.create_vcpu().write(0, b"x" * MIB, private=False)
        assert caught.value.gpa == 2 * PAGE
        assert made.shared.count(b"x") == 2 * PAGE


def test_a_slot_without_private_memory() -> None:
    """private_mem_kvm_exits_test.c, test_private_access_memslot_not_private."""
    with shim() as made, VM(made) as vm:
        vm.set_user_memory_region(0, 0, MIB, shared=bytearray(MIB))
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"shared", private=False)
        assert vcpu.read(0, 6, private=False) == b"shared"
        with pytest.raises(MemoryFaultExit) as caught:
            vcpu.read(PAGE, 1)
        found = caught.value
        assert (found.flags, found.gpa, found.size) == (1, PAGE, PAGE)
        with pytest.raises(FileNotFoundError):
            vm.pre_fault_memory(0, PAGE)


def test_no_slot() -> None:
    with guest() as made:
        vcpu = made.vm.create_vcpu()
        with pytest.raises(MmioExit, match="0x100000") as caught:
            vcpu.read(MIB, 2, private=False)
        assert caught.value.gpa == MIB
        with pytest.raises(MemoryFaultExit):
            vcpu.read(MIB, 2)


def test_a_slot_without_shared_memory() -> None:
    with shim() as made, VM(made, default_private=False) as vm:
        add_slot(vm, made.memfd())
        with refused(errno.EFAULT, "no shared memory"):
            vm.create_vcpu().read(0, 1, private=False)


# --- guest mode -----------------------------------------------------------------------


class Held:
    """A hook that keeps the first access to some page in guest mode."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()

    def __call__(self, point: str, start: int, end: int) -> None:
        if point == "access" and not self.inside.is_set():
            self.inside.set()
            assert self.go.wait(PATIENCE)


@pytest.mark.parametrize("what", ["punch", "convert", "delete"])
def test_removing_a_page_waits_for_an_access(
    pool: ThreadPoolExecutor, what: str
) -> None:
    """A TLB flush waits for the other CPUs: after it no CPU uses the zapped page."""
    hook = Held()
    with guest(hooks=hook) as made:
        zaps: dict[str, Callable[[], object]] = {
            "punch": lambda: made.file.punch(0, 1),
            "convert": lambda: made.vm.set_memory_attributes(0, PAGE, private=False),
            "delete": lambda: made.vm.set_user_memory_region(0, 0, 0),
        }
        access = pool.submit(made.vm.create_vcpu().write, 0, b"last")
        assert hook.inside.wait(PATIENCE)
        zap = pool.submit(zaps[what])
        # It has removed the entry, and then waits.
        while made.vm.spte(0) is not None:
            os.sched_yield()
        assert not zap.done()
        hook.go.set()
        zap.result(PATIENCE)
        access.result(PATIENCE)
        assert os.pread(made.file.fd, 4, 0) == b"last"


# --- the VMM --------------------------------------------------------------------------


def test_the_vmm_converts_as_the_guest_asks() -> None:
    """QEMU's kvm_convert_memory()."""
    with mmap.mmap(-1, MIB) as shared, shim() as made, VM(made) as vm:
        file = made.memfd()
        add_slot(vm, file, shared=shared)
        vmm, vcpu = Vmm(vm, fallocate=made.fallocate), vm.create_vcpu()
        vcpu.write(0, b"private")
        vmm.write(vcpu, 0, b"shared", private=False)
        assert shared[:6] == b"shared"
        assert os.pread(file.fd, 7, 0) == bytes(7)
        assert vm.double_allocated() == 0
        vmm.write(vcpu, 0, b"again")
        assert shared[:6] == bytes(6)
        assert vmm.conversions == 2


def test_without_discard_pages_are_there_twice() -> None:
    """Vishal Annapurve on v7: nothing keeps both halves from being populated."""
    with mmap.mmap(-1, MIB) as shared, shim() as made, VM(made) as vm:
        add_slot(vm, made.memfd(), shared=shared)
        vmm, vcpu = Vmm(vm, discard=False), vm.create_vcpu()
        vcpu.write(0, bytes(3 * PAGE))
        vmm.write(vcpu, PAGE, bytes(3 * PAGE), private=False)
        assert vm.stats.double_allocated == 2


@pytest.mark.parametrize("private", [True, False])
def test_a_slot_is_deleted_while_it_is_converted(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, *, private: bool
) -> None:
    """The deletion waits: otherwise the VMM would discard pages of a closed file."""
    inside, go = threading.Event(), threading.Event()

    def discard_later(
        discard: Callable[..., None], slot: MemorySlot, *rest: int
    ) -> None:
        inside.set()
        assert go.wait(PATIENCE)
        discard(slot, *rest)

    for name in ("discard_private", "discard_shared"):
        real = getattr(kvm_vmm, name)
        monkeypatch.setattr(kvm_vmm, name, partial(discard_later, real))
    with guest(default_private=not private) as made:
        vmm = Vmm(made.vm, fallocate=made.shim.fallocate)
        conversion = pool.submit(vmm.convert, 0, PAGE, private=private)
        assert inside.wait(PATIENCE)
        deletion = pool.submit(made.vm.set_user_memory_region, 0, 0, 0)
        # When the slot can no longer be found, the deletion waits.
        with made.vm._mmu.lock:
            made.vm._mmu.changed.wait_for(lambda: not made.vm.slots, PATIENCE)
        assert not deletion.done()
        assert made.file.handles == 1
        go.set()
        conversion.result(PATIENCE)
        deletion.result(PATIENCE)
        assert made.file.handles == 0


def test_a_slot_that_was_deleted_is_not_converted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The deletion comes after the list of slots was made, before this slot's turn."""
    with guest() as made:
        slots = made.vm.slots
        made.vm.set_user_memory_region(0, 0, 0)
        with monkeypatch.context() as patch:
            patch.setattr(VM, "slots", slots)
            Vmm(made.vm).convert(0, PAGE, private=False)
            assert states(made.vm, 0, 2) == "__"


def test_memory_that_cannot_be_discarded_is_cleared() -> None:
    with guest(default_private=False) as made:
        vcpu = made.vm.create_vcpu()
        vcpu.write(PAGE - 1, b"ab", private=False)
        Vmm(made.vm).write(vcpu, PAGE, b"private")
        assert bytes(made.shared[PAGE - 1 : PAGE + 1]) == b"a\0"


def test_private_mappings_are_discarded_too() -> None:
    with (
        mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE) as shared,
        shim() as made,
        VM(made, default_private=False) as vm,
    ):
        add_slot(vm, made.memfd(), shared=shared)
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"x", private=False)
        Vmm(vm).read(vcpu, 0, 1)
        assert shared[:1] == b"\0"


def test_an_exit_that_no_conversion_helps_is_raised() -> None:
    with guest(MIB) as made:
        vmm = Vmm(made.vm, fallocate=made.shim.fallocate)
        vcpu = made.vm.create_vcpu()
        with pytest.raises(MemoryFaultExit):
            vmm.read(vcpu, MIB, 1)
        made.file.fails.append(OSError(errno.ENOMEM, "full"))
        with pytest.raises(MemoryFaultExit) as caught:
            vmm.read(vcpu, 0, 1)
        assert caught.value.errno == errno.ENOMEM
        assert vmm.conversions == 0
