"""Capabilities, types of VMs, and KVM_CREATE_GUEST_MEMFD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe import words
from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.kvmcalls import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.probe.asking import Steps
    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("create")

_TYPES: Final = range(7)

_SIZES: Final = {
    "0": 0,
    "1": 1,
    "4095": PAGE_SIZE - 1,
    "4096": PAGE_SIZE,
    "4097": PAGE_SIZE + 1,
    "2m": 2 << 20,
    "1t": 1 << 40,
    "2-62": 1 << 62,
    "2-63-less-a-page": (1 << 63) - PAGE_SIZE,
    "2-63-less-a-byte": (1 << 63) - 1,
    "2-63": 1 << 63,
    "2-64-less-a-page": (1 << 64) - PAGE_SIZE,
}

_FLAGS: Final = (1, 2, 3, 4, 8, 1 << 31, 1 << 63)


def _capability(number: int) -> Steps:
    def steps(machine: Machine) -> Iterator[object]:
        yield machine.kvm.check_extension(number)
        yield machine.vm.check_extension(number)

    return steps


for _name, _number in CAPABILITIES.items():
    ROWS.add(
        _name.removeprefix("KVM_CAP_").lower().replace("_", "-"),
        f"KVM_CHECK_EXTENSION of {_name}, of /dev/kvm and of a VM.",
        _capability(_number),
        low=False,
    )


@ROWS.row("KVM_CREATE_VM of the types 0 to 6.", low=False)
def types_of_vms(machine: Machine) -> Iterator[object]:
    for kind in _TYPES:
        yield words.of(lambda kind=kind: machine.kvm.create_vm(kind) and None)


def _size(size: int) -> Steps:
    def steps(machine: Machine) -> Iterator[object]:
        flags = machine.kvm.file_flags
        yield words.of_fd(machine.vm.create_guest_memfd, size, flags)

    return steps


for _name, _size_given in _SIZES.items():
    ROWS.add(
        f"size-{_name}",
        f"KVM_CREATE_GUEST_MEMFD of {_size_given:#x} bytes.",
        _size(_size_given),
        low=False,
    )


def _flag(flags: int) -> Steps:
    def steps(machine: Machine) -> Iterator[object]:
        yield words.of_fd(machine.vm.create_guest_memfd, PAGE_SIZE, flags)

    return steps


for _flags in (0, *_FLAGS):
    ROWS.add(
        f"flags-{_flags:x}",
        f"KVM_CREATE_GUEST_MEMFD with flags {_flags:#x}.",
        _flag(_flags),
        low=False,
    )


@ROWS.row("KVM_CREATE_GUEST_MEMFD with a wrong size and a wrong flag.", low=False)
def two_mistakes(machine: Machine) -> Iterator[object]:
    yield words.of_fd(machine.vm.create_guest_memfd, 0, 1 << 5)


@ROWS.row("KVM_CREATE_GUEST_MEMFD with all reserved words set.", low=False)
def reserved(machine: Machine) -> Iterator[object]:
    flags = machine.kvm.file_flags
    yield words.of_fd(machine.vm.create_guest_memfd, PAGE_SIZE, flags, 1)


@ROWS.row("64 files of 1 TiB each: nothing is charged at creation.", low=False)
def many(machine: Machine) -> Iterator[object]:
    flags = machine.kvm.file_flags
    made = [machine.vm.create_guest_memfd(1 << 40, flags) for _ in range(64)]
    yield len(set(made))


@ROWS.row("KVM_CREATE_GUEST_MEMFD on a VM of the default type.", low=False)
def default_vm(machine: Machine) -> Iterator[object]:
    other = machine.another(0, low=False)
    yield words.of_fd(other.vm.create_guest_memfd, PAGE_SIZE, 0)
