"""Guests of the simulated KVM on real mounts."""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import inaccfs
from inaccfs import syscalls
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, Vmm
from inaccfs.syscalls import PUNCH
from tests.mount.support import MIB, PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.client import Client
    from inaccfs.kvm import Vcpu
    from inaccfs.kvm.memory import WritableBuffer

SIZE: Final = 4 * MIB


def punch(fd: int, page: int, count: int = 1) -> None:
    """Punch pages; return when KVM has unmapped them."""
    syscalls.fallocate(fd, PUNCH, page * PAGE, count * PAGE)


def allocate(fd: int, page: int, count: int) -> None:
    """Allocate pages, and keep the size."""
    syscalls.fallocate(fd, syscalls.FALLOC_FL_KEEP_SIZE, page * PAGE, count * PAGE)


def memfd(shim: Client, size: int = SIZE) -> int:
    """A file of the mount without a name."""
    fd = shim.memfd_create("guest", inaccfs.MFD_CLOEXEC | inaccfs.MFD_INACCESSIBLE)
    os.ftruncate(fd, size)
    return fd


def add_slot(
    vm: VM, fd: int, shared: WritableBuffer | None = None, /, **changed: int
) -> None:
    """A slot with both halves; the shared one is made if it is not given."""
    region = {
        "slot": 0,
        "guest_phys_addr": 0,
        "memory_size": SIZE,
        "private_offset": 0,
        **changed,
    }
    vm.set_user_memory_region(
        private_fd=fd,
        shared=mmap.mmap(-1, region["memory_size"]) if shared is None else shared,
        flags=KVM_MEM_PRIVATE,
        **region,
    )


@dataclass(frozen=True)
class Guest:
    """A VM with one slot, a vCPU, and the fds and mappings of its VMM."""

    shim: Client
    vm: VM
    vcpu: Vcpu
    vmm: Vmm
    fd: int
    # The shared half, as the host has it.
    host: mmap.mmap
    # Where the slot is, in bytes.
    gpa: int


@contextmanager
def guest(
    shim: Client,
    pages: int,
    *,
    gpa: int = 0,
    offset: int = 0,
    default_private: bool = True,
) -> Iterator[Guest]:
    """A guest whose slot has *pages* from page *offset* of a file on."""
    size = pages * PAGE
    fd = memfd(shim, offset * PAGE + size)
    try:
        with (
            mmap.mmap(-1, size) as host,
            VM(shim, default_private=default_private) as vm,
        ):
            add_slot(
                vm,
                fd,
                host,
                guest_phys_addr=gpa,
                memory_size=size,
                private_offset=offset * PAGE,
            )
            yield Guest(shim, vm, vm.create_vcpu(), Vmm(vm), fd, host, gpa)
    finally:
        os.close(fd)
