"""KVM_SET_USER_MEMORY_REGION2: every check, and which comes first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import END, LOW, PAGES, T
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.kvmcalls import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from inaccfs.kvm.probe.asking import Steps
    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("region")

_FILE: Final = KVM_MEM_GUEST_MEMFD

# The differences from a correct call, which makes slot 1 of 16 pages at 1 MiB with all
# of a file. `at` is added to the correct userspace_addr.
_ONE_MISTAKE: Final[dict[str, tuple[str, Mapping[str, int]]]] = {
    "right": ("A slot of all of a file.", {}),
    "gpa-off-by-1": ("guest_phys_addr plus 1.", {"gpa": T + 1}),
    "gpa-off-by-2k": ("guest_phys_addr plus 2 KiB.", {"gpa": T + 0x800}),
    "size-1": ("memory_size 1.", {"size": 1}),
    "size-4095": ("memory_size 4095.", {"size": PAGE_SIZE - 1}),
    "size-off-by-2k": (
        "memory_size 2 KiB less than the file.",
        {"size": PAGES * PAGE_SIZE - 0x800},
    ),
    "address-off-by-1": ("userspace_addr plus 1.", {"at": 1}),
    "address-0": ("userspace_addr 0.", {"address": 0}),
    "address-unmapped": (
        "userspace_addr where nothing is mapped.",
        {"address": 0x10000},
    ),
    "address-kernel": (
        "userspace_addr in the kernel's half.",
        {"address": END - (1 << 30)},
    ),
    "offset-1": ("guest_memfd_offset 1.", {"offset": 1}),
    "offset-2k": ("guest_memfd_offset 2 KiB.", {"offset": 0x800}),
    "offset-wraps": (
        "guest_memfd_offset a page below 2^64, so that it wraps.",
        {"offset": END - PAGE_SIZE},
    ),
    "offset-2-63": (
        "guest_memfd_offset 2^63: a negative loff_t.",
        {"offset": 1 << 63},
    ),
    "offset-at-end": (
        "guest_memfd_offset at the end of the file.",
        {"offset": PAGES * PAGE_SIZE},
    ),
    "past-end": (
        "A slot that ends a page after the file.",
        {"size": (PAGES + 1) * PAGE_SIZE},
    ),
    "offset-and-past-end": (
        "A slot of the file's size, from its second page on.",
        {"offset": PAGE_SIZE},
    ),
    "last-page": (
        "A slot of the file's last page.",
        {"offset": (PAGES - 1) * PAGE_SIZE, "size": PAGE_SIZE},
    ),
    "part": (
        "A slot of the file's pages 4 to 7.",
        {"offset": 4 * PAGE_SIZE, "size": 4 * PAGE_SIZE},
    ),
    "gpa-wraps": (
        "guest_phys_addr and memory_size add up to more than 2^64.",
        {"gpa": END - PAGE_SIZE, "size": 2 * PAGE_SIZE},
    ),
    "gpa-ends-at-2-64": (
        "guest_phys_addr and memory_size add up to 2^64.",
        {"gpa": END - PAGE_SIZE, "size": PAGE_SIZE},
    ),
    "gpa-2-52": ("guest_phys_addr 2^52, more than a CPU has.", {"gpa": 1 << 52}),
    "size-too-large": (
        "memory_size of 2^31 pages, one more than a slot may have.",
        {"size": 1 << 43},
    ),
    "slot-32763": ("Slot 32763, the last.", {"slot": 32763}),
    "slot-32764": ("Slot 32764, the first that KVM keeps.", {"slot": 32764}),
    "slot-32767": ("Slot 32767.", {"slot": 32767}),
    "slot-65535": ("Slot 65535.", {"slot": 65535}),
    "slot-second-address-space": (
        "Slot 65536: number 0 of the second address space.",
        {"slot": 1 << 16},
    ),
    "slot-third-address-space": (
        "Slot 131072: number 0 of a third address space.",
        {"slot": 2 << 16},
    ),
    "readonly": (
        "KVM_MEM_GUEST_MEMFD with KVM_MEM_READONLY.",
        {"flags": _FILE | KVM_MEM_READONLY},
    ),
    "log-dirty": (
        "KVM_MEM_GUEST_MEMFD with KVM_MEM_LOG_DIRTY_PAGES.",
        {"flags": _FILE | KVM_MEM_LOG_DIRTY_PAGES},
    ),
    "flag-8": ("KVM_MEM_GUEST_MEMFD with a flag nobody knows.", {"flags": _FILE | 8}),
    "flag-31": ("Flag 1<<31.", {"flags": 1 << 31}),
    "plain": ("A slot without a file.", {"flags": 0, "fd": 0}),
    "plain-readonly": (
        "A slot without a file, KVM_MEM_READONLY.",
        {"flags": KVM_MEM_READONLY, "fd": 0},
    ),
    "plain-log-dirty": (
        "A slot without a file, KVM_MEM_LOG_DIRTY_PAGES.",
        {"flags": KVM_MEM_LOG_DIRTY_PAGES, "fd": 0},
    ),
    "plain-fd-ignored": (
        "Without KVM_MEM_GUEST_MEMFD: guest_memfd -1 and an offset of 1.",
        {"flags": 0, "fd": -1, "offset": 1},
    ),
    "padding": ("All reserved words set.", {"padding": (1 << 32) - 1}),
    "fd-minus-1": ("guest_memfd -1.", {"fd": -1}),
    "fd-none": ("guest_memfd 0x7fffffff, which is not open.", {"fd": 0x7FFFFFFF}),
    "over-slot-0": ("The gfns of slot 0, too.", {"gpa": LOW - PAGE_SIZE}),
    "delete-nothing": ("memory_size 0, and there is no such slot.", {"size": 0}),
}

# Two mistakes in one call: which one is reported.
_TWO_MISTAKES: Final[dict[str, tuple[str, Mapping[str, int]]]] = {
    "bad-fd-over-slot-0": (
        "The gfns of slot 0, and no descriptor.",
        {"fd": -1, "gpa": 0},
    ),
    "bad-fd-offset-1": (
        "No descriptor, and guest_memfd_offset 1.",
        {"fd": -1, "offset": 1},
    ),
    "bad-fd-gpa-off-by-1": (
        "No descriptor, and guest_phys_addr plus 1.",
        {"fd": -1, "gpa": T + 1},
    ),
    "bad-fd-flag-8": (
        "No descriptor, and an unknown flag.",
        {"fd": -1, "flags": _FILE | 8},
    ),
    "bad-fd-slot-0": ("No descriptor, and a slot that exists.", {"fd": -1, "slot": 0}),
    "bad-fd-past-end": (
        "No descriptor, and more than any file.",
        # Low, so that the end is an address of userspace on any CPU.
        {"fd": -1, "size": 1 << 40, "address": 0x10000},
    ),
    "past-end-over-slot-0": (
        "The gfns of slot 0, and past the end of the file.",
        {"gpa": 0, "offset": PAGES * PAGE_SIZE},
    ),
    "readonly-over-slot-0": (
        "The gfns of slot 0, and KVM_MEM_READONLY.",
        {"gpa": 0, "flags": _FILE | KVM_MEM_READONLY},
    ),
    "slot-32764-over-slot-0": (
        "The gfns of slot 0, and a slot number too large.",
        {"gpa": 0, "slot": 32764},
    ),
    "delete-nothing-flag-8": (
        "memory_size 0, no such slot, and an unknown flag.",
        {"size": 0, "flags": _FILE | 8},
    ),
    "delete-bad-fd": (
        "memory_size 0 of slot 0, and no descriptor.",
        {"size": 0, "slot": 0, "fd": -1},
    ),
    "delete-gpa-off-by-1": (
        "memory_size 0 of slot 0, and guest_phys_addr plus 1.",
        {"size": 0, "slot": 0, "gpa": T + 1},
    ),
    "delete-address-off-by-1": (
        "memory_size 0 of slot 0, and userspace_addr plus 1.",
        {"size": 0, "slot": 0, "at": 1},
    ),
    "delete-offset-1": (
        "memory_size 0 of slot 0, and guest_memfd_offset 1.",
        {"size": 0, "slot": 0, "offset": 1},
    ),
    "delete-readonly": (
        "memory_size 0 of slot 0, and KVM_MEM_GUEST_MEMFD with KVM_MEM_READONLY.",
        {"size": 0, "slot": 0, "flags": _FILE | KVM_MEM_READONLY},
    ),
}


def _call(given: Mapping[str, int]) -> Steps:
    def steps(machine: Machine) -> Iterator[object]:
        fd = machine.create()
        address = machine.host_half(fd).address
        arguments: dict[str, Any] = {"fd": fd, **given}
        arguments["at"] = arguments.pop("address", address) + given.get("at", 0)
        yield machine.region(**arguments)

    return steps


for _name, (_sentence, _given) in _ONE_MISTAKE.items():
    ROWS.add(_name, _sentence, _call(_given))
for _name, (_sentence, _given) in _TWO_MISTAKES.items():
    ROWS.add(f"order-{_name}", _sentence, _call(_given))


# --- what is no guest_memfd of this VM ------------------------------------------------


def _with(machine: Machine, fd: int) -> str:
    return machine.region(fd=fd, at=machine.anonymous().address)


@ROWS.row("guest_memfd is a descriptor that was closed.")
def fd_closed(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    os.close(fd)
    yield _with(machine, fd)


@ROWS.row("guest_memfd is a memfd.")
def fd_memfd(machine: Machine) -> Iterator[object]:
    fd = os.memfd_create("plain")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    yield _with(machine, fd)


@ROWS.row("guest_memfd is a memfd, and the slot ends after its end.")
def fd_memfd_past_end(machine: Machine) -> Iterator[object]:
    yield _with(machine, os.memfd_create("empty"))


@ROWS.row("guest_memfd is /dev/null.")
def fd_null(machine: Machine) -> Iterator[object]:
    yield _with(machine, os.open(os.devnull, os.O_RDWR))


@ROWS.row("guest_memfd is the VM's own descriptor, or an eventfd where it has none.")
def fd_vm(machine: Machine) -> Iterator[object]:
    fd = machine.vm.fd
    yield _with(machine, os.eventfd(0) if fd < 0 else fd)


@ROWS.row("guest_memfd is an O_PATH descriptor of the right file.")
def fd_o_path(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    yield _with(machine, os.open(f"/proc/self/fd/{fd}", os.O_PATH))


@ROWS.row("guest_memfd is a duplicate of the right descriptor.")
def fd_dup(machine: Machine) -> Iterator[object]:
    yield _with(machine, os.dup(machine.create()))


@ROWS.row("guest_memfd is another VM's.")
def fd_of_another_vm(machine: Machine) -> Iterator[object]:
    yield _with(machine, machine.another(low=False).create())


@ROWS.row("guest_memfd is that of a VM that is closed.")
def fd_of_a_closed_vm(machine: Machine) -> Iterator[object]:
    other = machine.another(low=False)
    fd = other.create()
    other.vm.close()
    yield _with(machine, fd)


# --- the old ioctl, and other VMs -----------------------------------------------------


@ROWS.row(
    "KVM_SET_USER_MEMORY_REGION with KVM_MEM_GUEST_MEMFD; then a plain slot with it; "
    "then it deletes one that has a file."
)
def old_ioctl(machine: Machine) -> Iterator[object]:
    address = machine.anonymous().address
    yield machine.old_region(1, _FILE, T, PAGES * PAGE_SIZE, address)
    yield machine.old_region(2, 0, 2 * T, PAGES * PAGE_SIZE, address)
    machine.memory()
    yield machine.old_region(1, 0, T, 0, 0)


@ROWS.row("A slot with a file on a VM of the default type.")
def default_vm(machine: Machine) -> Iterator[object]:
    other = machine.another(0)
    fd = other.create()
    yield other.region(fd=fd, at=other.host_half(fd).address)
