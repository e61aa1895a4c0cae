"""The simulated KVM on real mounts: data, frames, and the race of v8.

test_kvm_selftests.py has the assertions of the kernel's selftests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs import syscalls
from inaccfs.client import ConnectionLostError
from inaccfs.kvm import VM, Vmm
from tests.mount.guests import add_slot, memfd, punch
from tests.mount.support import (
    ENVIRONMENT,
    MIB,
    PAGE,
    PATIENCE,
    ask_until,
    mounted,
    opened,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.client import Client


# --- data ---------------------------------------------------------------------------


def test_a_punched_page_is_zero_and_its_neighbours_survive(vm: VM, fd: int) -> None:
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


def test_the_frame_is_the_one_that_the_daemon_returns(
    shim: Client, vm: VM, fd: int
) -> None:
    vm.create_vcpu().write(3 * PAGE, b"x")
    spte = vm.spte(3)
    assert spte is not None
    with shim.file(fd) as memory:
        pfn, order = memory.get_pfn(3)
        memory.put_pfn(pfn)
    assert (spte.pfn, spte.level, order) == (pfn, 1, 0)
    # KVM keeps no reference to pages that it maps.
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


# --- conversions --------------------------------------------------------------------


@pytest.mark.parametrize("pages", [(0, 1), (3, 5), (0, 512), (511, 3)], ids=str)
def test_conversions_keep_the_neighbours(
    vm: VM, fd: int, pages: tuple[int, int]
) -> None:
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
    """Vishal Annapurve on v7: after a conversion both halves have memory."""
    vcpu = vm.create_vcpu()
    vcpu.write(0, b"private")
    Vmm(vm, discard=False).run(lambda: vcpu.write(0, b"shared", private=False))
    assert vm.double_allocated() == 1


# --- what a mount may do to a VM ----------------------------------------------------


def test_the_last_page_of_a_file_is_a_whole_one(shim: Client) -> None:
    """fallocate(2) may leave a file whose size is not a multiple of the page size."""
    fd = shim.memfd_create("odd")
    syscalls.fallocate(fd, 0, 0, 100)
    assert os.fstat(fd).st_size == 100
    with VM(shim) as vm:
        add_slot(vm, fd, memory_size=PAGE)
        vcpu = vm.create_vcpu()
        vcpu.write(98, b"across")
        assert vcpu.read(97, 8) == b"\0across\0"
    os.close(fd)


def test_a_vm_that_was_disconnected_uses_no_private_memory_any_more() -> None:
    """It was too slow, so a punch did not wait, and it gets no more events."""
    inside, go = threading.Event(), threading.Event()

    def hook(point: str, start: int, end: int) -> None:
        if point == "invalidate:begin":
            inside.set()
            assert go.wait(PATIENCE)

    with (
        inaccfs.mounted(ack_timeout=0.1) as mount,
        inaccfs.connect(mount.path) as shim,
    ):
        fd = memfd(shim)
        vm = VM(shim, hooks=hook)
        add_slot(vm, fd)
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"x")
        punch(fd, 1)
        assert inside.wait(PATIENCE)
        go.set()
        [slot] = vm.slots
        ask_until(lambda: slot.notifier_lost)
        with pytest.raises(ConnectionLostError, match="slot 0"):
            vcpu.read(0, 1)
        with pytest.raises(ConnectionLostError, match="hung up"):
            vm.close()
        os.close(fd)


def test_no_huge_page_reaches_into_a_range_being_punched() -> None:
    """There are two VMs on one file; one keeps a punch waiting, the other faults."""
    go = threading.Event()

    def hook(point: str, start: int, end: int) -> None:
        if point == "invalidate:begin":
            assert go.wait(PATIENCE)

    with (
        mounted(size="64m", huge="always", semantics="v10") as mount,
        inaccfs.connect(mount.path) as one,
        inaccfs.connect(mount.path) as other,
        ThreadPoolExecutor(1) as pool,
        VM(one) as vm,
        VM(other, hooks=hook) as slow,
    ):
        fd = memfd(one)
        for each in (vm, slow):
            add_slot(each, fd)
        vcpu = vm.create_vcpu()
        vcpu.write(100 * PAGE, b"x")
        assert vm.stats.mapped == (0, 1, 0)
        punching = pool.submit(punch, fd, 100)
        ask_until(lambda: vm.stats.in_progress == 1)
        vcpu.read(10 * PAGE, 1)
        go.set()
        punching.result(PATIENCE)
        assert vm.spte(10) is not None
        assert vm.spte(100) is None
        assert vcpu.read(100 * PAGE, 1) == b"\0"
        assert vm.stale_sptes() == []
        os.close(fd)


# --- the race of v8 ------------------------------------------------------------------


def test_in_v8_a_guest_uses_a_removed_page(shim: Client, fd: int) -> None:
    """The removal comes before the callback; a hook waits between the two."""
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
        # The mapping was of a removed page, and no fault stopped the guest.
        assert seen == [5, 0]
        assert vm.stale_sptes() == []
        assert vcpu.read(5 * PAGE, 6) == bytes(6)


STALE = """
import os, sys, inaccfs
from inaccfs.kvm import VM, KVM_MEM_PRIVATE
from inaccfs.syscalls import fallocate

path, page, fills = sys.argv[1], *map(int, sys.argv[2:])

def hook(point, start, end):
    if point == "invalidate:begin":
        print("stale:", len(vm.stale_sptes()), flush=True)
        if fills:
            fallocate(other, 0, 0, page)
        vcpu.write(0, b"stale")
        print("goes on", flush=True)

with inaccfs.connect(path) as shim:
    fd, other = os.open(f"{path}/guest", os.O_RDWR), shim.memfd_create("other")
    with VM(shim, hooks=hook) as vm:
        vm.set_user_memory_region(0, 0, page, private_fd=fd, flags=KVM_MEM_PRIVATE)
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"x")
        print("mapped", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("fills", [False, True])
def test_a_stale_mapping_needs_a_new_page(*, fills: bool) -> None:
    """If the mount is full, SIGBUS kills the process, as the docs say."""
    with mounted(size="1m") as mount:
        with opened(mount.path / "guest", os.O_RDWR | os.O_CREAT) as fd:
            os.posix_fallocate(fd, 0, MIB)
            guest = subprocess.Popen(
                [sys.executable, "-c", STALE, mount.path, str(PAGE), str(int(fills))],
                env=ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert guest.stdout is not None
            assert guest.stdout.readline() == "mapped\n"
            punch(fd, 0)
        output, _ = guest.communicate(timeout=PATIENCE)
    if fills:
        assert (guest.returncode, output) == (-signal.SIGBUS, "stale: 1\n")
    else:
        assert (guest.returncode, output) == (0, "stale: 1\ngoes on\n")
