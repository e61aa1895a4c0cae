"""The simulated KVM on real mounts: data, and the assertions of the kernel's selftests.

Sources: tools/testing/selftests of the kernel, kvm/ and vm/ (history as told by each
test). What they assert of system calls on the file is in test_rules.py and
test_refusals.py.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.kvm import (
    KVM_MEM_PRIVATE,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    VM,
    MemoryFaultExit,
    Vmm,
)
from tests.mount.support import MIB, PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.client import Client

SIZE = 4 * MIB
PUNCH = 3

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(fd: int, page: int, count: int = 1) -> None:
    """Punch pages; returns when KVM has let go of them."""
    assert libc.fallocate(fd, PUNCH, page * PAGE, count * PAGE) == 0


def memfd(shim: Client, size: int = SIZE) -> int:
    fd = shim.memfd_create("guest", inaccfs.MFD_CLOEXEC | inaccfs.MFD_INACCESSIBLE)
    os.ftruncate(fd, size)
    return fd


def add_slot(vm: VM, fd: int, **changed: int) -> None:
    region = {
        "slot": 0,
        "guest_phys_addr": 0,
        "memory_size": SIZE,
        "private_offset": 0,
        **changed,
    }
    vm.set_user_memory_region(
        private_fd=fd,
        shared=mmap.mmap(-1, region["memory_size"]),
        flags=KVM_MEM_PRIVATE,
        **region,
    )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def shim(mount: inaccfs.Mount, stack: ExitStack) -> Client:
    return stack.enter_context(inaccfs.connect(mount.path))


@pytest.fixture
def fd(shim: Client, stack: ExitStack) -> int:
    made = memfd(shim)
    stack.callback(os.close, made)
    return made


@pytest.fixture
def vm(shim: Client, fd: int, stack: ExitStack) -> VM:
    made = stack.enter_context(VM(shim))
    add_slot(made, fd)
    return made


# --- data ---------------------------------------------------------------------------


def test_a_punched_page_is_zero_and_its_neighbours_survive(vm: VM, fd: int) -> None:
    """private_mem_conversions_test.c, with PUNCH_HOLE."""
    vcpu = vm.create_vcpu()
    for page in range(4):
        vcpu.write(page * PAGE, b"page %d" % page)
    punch(fd, 1, 2)
    assert [vm.spte(gfn) is None for gfn in range(4)] == [False, True, True, False]
    found = [vcpu.read(page * PAGE, 6) for page in range(4)]
    assert found == [b"page 0", bytes(6), bytes(6), b"page 3"]


def test_two_vms_do_not_see_each_other(shim: Client, vm: VM) -> None:
    other_fd = memfd(shim)
    with VM(shim) as other:
        add_slot(other, other_fd)
        vm.create_vcpu().write(0, b"mine")
        other.create_vcpu().write(0, b"yours")
        assert vm.create_vcpu().read(0, 4) == b"mine"
        mine, yours = vm.spte(0), other.spte(0)
        assert mine is not None
        assert yours is not None
        assert mine.pfn != yours.pfn
    os.close(other_fd)


def test_the_frame_is_the_one_that_the_daemon_tells(
    shim: Client, vm: VM, fd: int
) -> None:
    vm.create_vcpu().write(3 * PAGE, b"x")
    spte = vm.spte(3)
    assert spte is not None
    with shim.file(fd) as memory:
        pfn, order = memory.get_pfn(3)
        memory.put_pfn(pfn)
    assert (spte.pfn, spte.level, order) == (pfn, 1, 0)
    # KVM keeps no reference to what it maps.
    assert shim.query_stats().references == 0


def test_encrypted_memory_is_ciphertext_to_the_host(shim: Client, fd: int) -> None:
    with VM(shim, encryption=True) as vm, shim.file(fd) as memory:
        add_slot(vm, fd)
        vcpu = vm.create_vcpu()
        vcpu.write(PAGE + 5, b"a guest's secret")
        assert vcpu.read(PAGE + 5, 16) == b"a guest's secret"
        host = memory.get_memory()
        seen = os.pread(host, PAGE, PAGE)
        os.close(host)
    assert b"secret" not in seen
    assert any(seen)


# --- exits and conversions ----------------------------------------------------------


def test_a_mismatch_exits_with_what_the_guest_wanted(vm: VM) -> None:
    """private_mem_kvm_exits_test.c: flags, gpa and size of the exit."""
    vcpu = vm.create_vcpu()
    vm.set_memory_attributes(8 * PAGE, PAGE, private=False)
    with pytest.raises(MemoryFaultExit) as caught:
        vcpu.read(8 * PAGE, 1)
    told = caught.value
    assert (told.flags, told.gpa, told.size) == (
        KVM_MEMORY_EXIT_FLAG_PRIVATE,
        8 * PAGE,
        PAGE,
    )
    with pytest.raises(MemoryFaultExit) as caught:
        vcpu.read(9 * PAGE, 1, private=False)
    assert (caught.value.flags, caught.value.gpa) == (0, 9 * PAGE)


@pytest.mark.parametrize("pages", [(0, 1), (3, 5), (0, 512), (511, 3)], ids=str)
def test_conversions_keep_the_neighbours(
    vm: VM, fd: int, pages: tuple[int, int]
) -> None:
    """private_mem_conversions_test.c: ranges, odd pages, both directions."""
    first, count = pages
    vcpu, vmm = vm.create_vcpu(), Vmm(vm)
    outside = [page for page in (first - 1, first + count) if page >= 0]
    for page in outside:
        vcpu.write(page * PAGE, b"kept")
    vcpu.write(first * PAGE, b"private")
    for page in range(first, first + count):
        at = page * PAGE
        vmm.run(partial(vcpu.write, at, b"shared", private=False))
        assert not vm.is_private(page)
        assert vcpu.read(at, 6, private=False) == b"shared"
    assert os.fstat(fd).st_blocks * 512 == len(outside) * PAGE
    vmm.run(lambda: vcpu.read(first * PAGE, 1))
    assert vcpu.read(first * PAGE, 7) == bytes(7)
    assert [vcpu.read(page * PAGE, 4) for page in outside] == [b"kept"] * len(outside)
    assert vm.double_allocated() == 0


def test_without_a_discard_memory_is_allocated_twice(vm: VM) -> None:
    """Vishal Annapurve on v7: both halves are there after a conversion."""
    vcpu = vm.create_vcpu()
    vcpu.write(0, b"private")
    Vmm(vm, discard=False).run(lambda: vcpu.write(0, b"shared", private=False))
    assert vm.double_allocated() == 1


# --- files and slots ----------------------------------------------------------------


def test_a_file_outlives_its_vm(shim: Client, fd: int) -> None:
    """KVM selftests of restrictedmem: fallocate and punch after the VM was freed."""
    with VM(shim) as vm:
        add_slot(vm, fd)
        vm.create_vcpu().write(0, b"x")
    os.posix_fallocate(fd, 0, 4 * PAGE)
    punch(fd, 0, 4)
    assert os.fstat(fd).st_blocks == 0
    assert shim.query_notifiers() == []


def test_one_file_in_two_slots(vm: VM, fd: int) -> None:
    """The same: one fd in two slots of one VM."""
    add_slot(vm, fd, slot=1, guest_phys_addr=16 * MIB, memory_size=MIB)
    vcpu = vm.create_vcpu()
    vcpu.write(0, b"both")
    assert vcpu.read(16 * MIB, 4) == b"both"
    punch(fd, 0)
    assert (vm.spte(0), vm.spte(16 * MIB // PAGE)) == (None, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"slot": 1},
        {"slot": 1, "guest_phys_addr": SIZE - PAGE},
        {"slot": 1, "guest_phys_addr": 8 * MIB + 1},
        {"slot": 1, "guest_phys_addr": 8 * MIB, "memory_size": PAGE + 1},
        {"slot": 1, "guest_phys_addr": 8 * MIB, "private_offset": 1},
    ],
    ids=["the same", "overlapping", "gpa", "size", "offset"],
)
def test_a_wrong_slot_is_refused(vm: VM, fd: int, changed: dict[str, int]) -> None:
    """set_memory_region_test.c, and the checks of patch 2/8."""
    with pytest.raises(OSError, match=r".") as caught:
        add_slot(vm, fd, **changed)
    assert caught.value.errno in (errno.EINVAL, errno.EEXIST)
    assert len(vm.slots) == 1


def test_a_file_that_is_not_inaccessible_is_refused(shim: Client) -> None:
    """set_memory_region_test.c of guest_memfd; Fuad Tabba on v8: it oopsed."""
    plain = os.memfd_create("plain")
    os.ftruncate(plain, SIZE)
    with VM(shim) as vm, pytest.raises(OSError, match=r".") as caught:
        add_slot(vm, plain)
    os.close(plain)
    assert caught.value.errno == errno.EINVAL


# --- the race of the seed -----------------------------------------------------------


def test_v8_lets_a_guest_use_a_page_that_is_gone(shim: Client, fd: int) -> None:
    """The removal comes first, the callback after it: a hook holds the window open."""
    seen: list[object] = []
    act: list[Callable[[], None]] = []

    def hook(point: str, start: int, end: int) -> None:
        if point == "invalidate:begin" and act:
            act.pop()()

    with VM(shim, hooks=hook) as vm:
        add_slot(vm, fd)
        vcpu = vm.create_vcpu()
        vcpu.write(5 * PAGE, b"secret")

        def in_the_window() -> None:
            seen.extend(stale.gfn for stale in vm.stale_sptes())
            faults = vm.stats.faults
            vcpu.read(5 * PAGE, 6)
            seen.append(vm.stats.faults - faults)

        act.append(in_the_window)
        punch(fd, 5)
        # It was mapped to what the file had no more, and no fault stopped the guest.
        assert seen == [5, 0]
        assert vm.stale_sptes() == []
        assert vcpu.read(5 * PAGE, 6) == bytes(6)
