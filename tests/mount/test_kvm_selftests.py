"""The assertions of the kernel's selftests about private memory, on the simulated KVM.

Their assertions about the file itself are in test_selftests.py, and the longest of them
in test_kvm_conversions.py. The sources, below tools/testing/selftests/kvm:

- E: x86/private_mem_kvm_exits_test.c, torvalds/linux @5171573ce7cb
- C: guest_memfd_conversions_test.c, linux-kselftest archive @b923c18e32 to @eff68d47a9
- K: additions for memfd_restricted, linux-api archive @0a9b7c676, @caae2f5f7,
  @8e674e64e
- R: set_memory_region_test.c of Linux 6.8 and later, its private slots

In C a page has one memory and two states. In v8 it has two memories, so C's assertions
about data that survives a conversion have another meaning: each half keeps its own
data, unless the VMM discards it. These tests assert that instead. The following have no
meaning for v8, or another meaning:

=  ======================================  =============================================
C  elevated_refcount: conversion of a      v8 does not check; that the conversion
   page in use is EAGAIN, and says where   succeeds, and the daemon has the reference
C  forked_accesses: one state for all      the state is the VM's; that another process
   processes that have it mapped           sees the shared half only, and may punch
C  flags PRESERVE and ZERO of a conversion v8 has none
C  INIT_SHARED, a flag of the file         an argument of the VM here
K  a second VM or slot on the same range   v8 has no bindings; that all get events
   is refused
R  another VM's guest_memfd is refused     a file belongs to no VM
=  ======================================  =============================================
"""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from inaccfs.kvm import (
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    VM,
    MemoryFaultExit,
)
from tests.mount import support
from tests.mount.guests import SIZE, Guest, add_slot, guest, punch
from tests.mount.support import MIB, PAGE, PATIENCE, allocated

if TYPE_CHECKING:
    from inaccfs.client import Client
    from inaccfs.kvm import Vcpu

pytestmark = pytest.mark.fuse


# --- E: private_mem_kvm_exits_test ----------------------------------------------------

EXITS_GPA: Final = 0xC0000000


def assert_private_exit(exited: MemoryFaultExit, gpa: int) -> None:
    values = (exited.flags, exited.gpa, exited.size, exited.errno)
    assert values == (KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa, PAGE, 0)


def test_a_private_access_after_its_slot_was_deleted(shim: Client, fd: int) -> None:
    """E test_private_access_memslot_deleted: in the middle of accesses."""
    begun = threading.Event()
    with VM(shim) as vm, ThreadPoolExecutor(1) as pool:
        add_slot(vm, fd, guest_phys_addr=EXITS_GPA, memory_size=PAGE)
        vm.set_memory_attributes(EXITS_GPA, PAGE, private=True)

        def read_repeatedly(vcpu: Vcpu) -> None:
            while True:
                vcpu.read(EXITS_GPA, 8)
                begun.set()

        run = pool.submit(read_repeatedly, vm.create_vcpu())
        assert begun.wait(PATIENCE)
        vm.set_user_memory_region(0, 0, 0)
        exited = run.exception(PATIENCE)
    assert isinstance(exited, MemoryFaultExit)
    assert_private_exit(exited, EXITS_GPA)


def test_a_private_access_to_a_slot_without_private_memory(shim: Client) -> None:
    """E test_private_access_memslot_not_private."""
    with VM(shim, default_private=False) as vm:
        vm.set_user_memory_region(0, EXITS_GPA, PAGE, shared=mmap.mmap(-1, PAGE))
        vm.set_memory_attributes(EXITS_GPA, PAGE, private=True)
        with pytest.raises(MemoryFaultExit) as caught:
            vm.create_vcpu().read(EXITS_GPA, 8)
    assert_private_exit(caught.value, EXITS_GPA)


# --- C: guest_memfd_conversions_test --------------------------------------------------

# Neither the slot nor the file begins with the tested page.
GPA: Final = 16 * MIB
OFFSET: Final = 3


def check_private(made: Guest, page: int, expected: bytes, new: bytes) -> None:
    """C test_private: the guest can access it, and no other process can."""
    gpa = made.gpa + page * PAGE
    before = made.host[page * PAGE : (page + 1) * PAGE]
    assert made.vm.is_private(gpa // PAGE)
    assert made.vcpu.read(gpa, 1) == expected
    made.vcpu.write(gpa, new)
    assert made.vcpu.read(gpa, 1) == new
    assert made.host[page * PAGE : (page + 1) * PAGE] == before
    with pytest.raises(MemoryFaultExit) as caught:
        made.vcpu.read(gpa, 1, private=False)
    exited = caught.value
    assert (exited.flags, exited.gpa, exited.size, exited.errno) == (0, gpa, PAGE, 0)


def check_shared(
    made: Guest, page: int, expected: bytes, hosts: bytes, guests: bytes
) -> None:
    """C test_shared: host and guest see what the other writes."""
    gpa, at = made.gpa + page * PAGE, page * PAGE
    assert not made.vm.is_private(gpa // PAGE)
    assert made.host[at : at + 1] == expected
    made.host[at : at + 1] = hosts
    assert made.vcpu.read(gpa, 1, private=False) == hosts
    made.vcpu.write(gpa, guests, private=False)
    assert made.host[at : at + 1] == guests
    with pytest.raises(MemoryFaultExit) as caught:
        made.vcpu.read(gpa, 1)
    assert_private_exit(caught.value, gpa)


def convert(made: Guest, page: int, count: int = 1, *, private: bool) -> None:
    """Change the state, and keep the content of both halves."""
    gpa, size = made.gpa + page * PAGE, count * PAGE
    made.vm.set_memory_attributes(gpa, size, private=private)


def test_basic_from_private(shim: Client) -> None:
    """C basic, which begins private."""
    with guest(shim, 1) as made:
        check_private(made, 0, b"\0", b"A")
        convert(made, 0, private=False)
        check_shared(made, 0, b"\0", b"B", b"C")
        convert(made, 0, private=True)
        check_private(made, 0, b"A", b"D")
        convert(made, 0, private=False)
        check_shared(made, 0, b"C", b"E", b"F")


def test_basic_from_shared(shim: Client) -> None:
    """C init_shared."""
    with guest(shim, 1, default_private=False) as made:
        check_shared(made, 0, b"\0", b"A", b"B")
        convert(made, 0, private=True)
        check_private(made, 0, b"\0", b"C")
        convert(made, 0, private=False)
        check_shared(made, 0, b"B", b"D", b"E")


def test_basic_with_a_vmm_that_discards(shim: Client) -> None:
    """C basic, as QEMU converts: the half that is no longer used loses its data."""
    with guest(shim, 1) as made:
        for _ in range(2):
            check_private(made, 0, b"\0", b"A")
            made.vmm.convert(0, PAGE, private=False)
            assert allocated(made.fd) == 0
            check_shared(made, 0, b"\0", b"B", b"C")
            made.vmm.convert(0, PAGE, private=True)


@pytest.mark.parametrize("page", range(4))
def test_indexing_and_precision(shim: Client, page: int) -> None:
    """C indexing: one page is converted, and no other."""
    state = [b"%d" % each for each in range(4)]
    with guest(shim, 4, gpa=GPA, offset=OFFSET, default_private=False) as made:
        for each in range(4):
            check_shared(made, each, b"\0", b"x", state[each])
        convert(made, page, private=True)
        check_private(made, page, b"\0", b"p")
        assert made.vm.spte(GPA // PAGE + page) is not None
        for each in set(range(4)) - {page}:
            check_shared(made, each, state[each], b"y", state[each])
        check_private(made, page, b"p", b"q")
        assert allocated(made.fd) == PAGE
        convert(made, page, private=False)
        for each in range(4):
            check_shared(made, each, state[each], b"z", state[each])


def test_before_allocation(shim: Client) -> None:
    """C before_allocation_shared and _private: the request is kept until a fault."""
    with guest(shim, 2, default_private=False) as made:
        convert(made, 0, private=True)
        assert allocated(made.fd) == 0
        check_private(made, 0, b"\0", b"A")
    with guest(shim, 2) as made:
        convert(made, 0, private=False)
        check_shared(made, 0, b"\0", b"A", b"B")
        assert allocated(made.fd) == 0


@pytest.mark.parametrize("page", range(8))
def test_layouts_of_allocated_pages(shim: Client, page: int) -> None:
    """C unallocated_folios: some pages are allocated, and all are converted at once."""
    there = {page, 4}
    with guest(shim, 8, gpa=GPA, offset=OFFSET) as made:
        for each in there:
            check_private(made, each, b"\0", b"A")
        convert(made, 0, 8, private=False)
        assert made.vm.runs() == []
        assert allocated(made.fd) == len(there) * PAGE
        convert(made, 0, 8, private=True)
        for each in range(8):
            check_private(made, each, b"A" if each in there else b"\0", b"B")
        for each in range(8):
            convert(made, each, private=False)
            check_shared(made, each, b"\0", b"C", b"D")


def test_a_punch_keeps_the_state(shim: Client) -> None:
    """C truncate."""
    with guest(shim, 1, default_private=False) as made:
        check_shared(made, 0, b"\0", b"A", b"B")
        punch(made.fd, 0)
        # The punch was in the private half.
        check_shared(made, 0, b"B", b"C", b"D")
        convert(made, 0, private=True)
        check_private(made, 0, b"\0", b"E")
        punch(made.fd, 0)
        check_private(made, 0, b"\0", b"F")


OTHER_PROCESS: Final = """
import mmap, os, sys
from inaccfs.syscalls import fallocate

private, shared, page = map(int, sys.argv[1:])
with mmap.mmap(shared, 2 * page) as memory:
    print(memory[:6], memory[page : page + 6])
    memory[:5] = b"child"
try:
    os.pread(private, page, page)
except OSError as exc:
    print(exc.errno)
fallocate(private, 3, page, page)
"""


def test_another_process(shim: Client, fd: int) -> None:
    """C forked_accesses: the other process has the same fds, and nothing else."""
    with VM(shim) as vm, ExitStack() as stack:
        shared = os.memfd_create("shared")
        stack.callback(os.close, shared)
        os.ftruncate(shared, SIZE)
        add_slot(vm, fd, mmap.mmap(shared, SIZE))
        vm.set_memory_attributes(0, PAGE, private=False)
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"parent", private=False)
        vcpu.write(PAGE, b"secret")
        done = subprocess.run(
            [sys.executable, "-c", OTHER_PROCESS, *map(str, (fd, shared, PAGE))],
            pass_fds=(fd, shared),
            env=support.ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        expected = [repr(b"parent"), repr(bytes(6)), str(errno.EINVAL)]
        assert (done.stdout.split(), done.stderr) == (expected, "")
        assert vcpu.read(0, 6, private=False) == b"childt"
        assert vm.spte(1) is None
        assert vcpu.read(PAGE, 6) == bytes(6)


@pytest.mark.parametrize("page", range(4))
def test_pages_in_use_are_converted(shim: Client, page: int) -> None:
    """C elevated_refcount; in v8 a reference prevents nothing."""
    with guest(shim, 4, gpa=GPA, offset=OFFSET) as made, shim.file(made.fd) as file:
        for each in range(4):
            check_private(made, each, b"\0", b"A")
        pfn, _ = file.get_pfn(OFFSET + page)
        made.vmm.convert(GPA, 4 * PAGE, private=False)
        assert allocated(made.fd) == 0
        for each in range(4):
            check_shared(made, each, b"\0", b"B", b"C")
        [reference] = shim.query_pins().references
        assert (reference.pfn, reference.count, reference.references) == (pfn, 1, 1)
        made.vmm.convert(GPA, 4 * PAGE, private=True)
        check_private(made, page, b"\0", b"D")
        file.put_pfn(pfn)
        assert shim.query_pins().references == []


# --- K and R: files and slots ---------------------------------------------------------


def test_a_file_outlives_its_vm(shim: Client, fd: int) -> None:
    """K: fallocate and punch after the VM was freed."""
    with VM(shim) as vm:
        add_slot(vm, fd)
        vm.create_vcpu().write(0, b"x")
    os.posix_fallocate(fd, 0, 4 * PAGE)
    punch(fd, 0, 4)
    assert allocated(fd) == 0
    assert shim.query_notifiers() == []


@pytest.mark.parametrize("offset", [0, MIB], ids=["the same pages", "others"])
def test_one_file_in_two_slots(vm: VM, fd: int, offset: int) -> None:
    """K: one fd in two slots of one VM."""
    add_slot(
        vm,
        fd,
        slot=1,
        guest_phys_addr=GPA,
        memory_size=MIB,
        private_offset=offset,
    )
    vcpu = vm.create_vcpu()
    vcpu.write(offset, b"both")
    assert vcpu.read(GPA, 4) == b"both"
    punch(fd, offset // PAGE)
    assert (vm.spte(offset // PAGE), vm.spte(GPA // PAGE)) == (None, None)
    assert vcpu.read(GPA, 4) == bytes(4)


def test_one_file_in_two_vms(shim: Client, vm: VM, fd: int) -> None:
    """K: the same range from a second VM."""
    with VM(shim) as other:
        add_slot(other, fd, guest_phys_addr=GPA)
        vm.create_vcpu().write(0, b"both")
        assert other.create_vcpu().read(GPA, 4) == b"both"
        punch(fd, 0)
        assert (vm.spte(0), other.spte(GPA // PAGE)) == (None, None)


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        pytest.param({"slot": 0}, errno.EINVAL, id="the same"),
        pytest.param({}, errno.EEXIST, id="the same range"),
        pytest.param({"guest_phys_addr": SIZE - PAGE}, errno.EEXIST, id="overlapping"),
        pytest.param({"guest_phys_addr": GPA + 1}, errno.EINVAL, id="gpa"),
        pytest.param(
            {"guest_phys_addr": GPA, "memory_size": PAGE + 1}, errno.EINVAL, id="size"
        ),
        pytest.param(
            {"guest_phys_addr": GPA, "private_offset": 1}, errno.EINVAL, id="offset"
        ),
    ],
)
def test_a_wrong_slot_is_refused(
    vm: VM, fd: int, changed: dict[str, int], number: int
) -> None:
    """R test_add_overlapping_private_memory_regions, and the checks of patch 2/8."""
    with pytest.raises(OSError, match=r".") as caught:
        add_slot(vm, fd, **{"slot": 1, **changed})
    assert caught.value.errno == number
    assert len(vm.slots) == 1


def test_a_file_that_is_not_inaccessible_is_refused(shim: Client) -> None:
    """R test_add_private_memory_region; Fuad Tabba on v8: it oopsed."""
    plain = os.memfd_create("plain")
    os.ftruncate(plain, SIZE)
    with VM(shim) as vm, pytest.raises(OSError, match=r".") as caught:
        add_slot(vm, plain)
    os.close(plain)
    assert caught.value.errno == errno.EINVAL
