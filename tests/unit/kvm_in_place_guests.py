"""Guests of the simulated KVM whose pages are converted in place."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inaccfs.kvm import KVM_MEM_PRIVATE, VM, Vmm
from tests.unit.one_file import OneFile, one_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from inaccfs.kvm import Vcpu
    from inaccfs.semantics import Semantics

PAGE = 4096
PAGES = 16


@dataclass
class Guest(OneFile):
    vm: VM
    vmm: Vmm
    vcpu: Vcpu

    def convert(self, page: int, count: int = 1, *, private: bool) -> None:
        self.file.set_memory_attributes(page, count, private)


@contextmanager
def guest(
    semantics: Semantics, pages: int = PAGES, free: int = 0, **options: Any
) -> Iterator[Guest]:
    """A VM with a slot of *pages* pages of a file, without the last *free* ones."""
    with one_file(semantics, pages) as it, VM(it.client, **options) as vm:
        vm.set_user_memory_region(
            0, 0, (pages - free) * PAGE, private_fd=it.fd, flags=KVM_MEM_PRIVATE
        )
        vmm = Vmm(vm, fallocate=it.mount.fallocate)
        yield Guest(**vars(it), vm=vm, vmm=vmm, vcpu=vm.create_vcpu())
