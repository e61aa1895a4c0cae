"""A VM that answers in words what a KVM does under a version's rules."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inaccfs.inprocess import Mount
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, MemoryFaultExit, MmioExit
from inaccfs.semantics import V8, checking
from tests.unit.kvm_guests import MIB, PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.semantics import Semantics


def mine(base: type[Semantics] = V8, **rules: object) -> Semantics:
    """A version with some of its rules replaced."""
    return checking.checked(type("Mine", (base,), rules), "mine.py")


def outcome(call: Callable[..., object], *arguments: object, **options: object) -> str:
    """ "ok", the value that the guest has read, an errno or an exit."""
    try:
        found = call(*arguments, **options)
    except MemoryFaultExit as exc:
        text = f"exit {exc.flags} {exc.gpa:#x}"
        return f"{text} {errno.errorcode[exc.errno]}" if exc.errno else text
    except MmioExit as exc:
        return f"MMIO {exc.gpa:#x}"
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return found.decode() if isinstance(found, bytes) else "ok"


@dataclass
class Guest:
    """A VM whose slot 1 begins at 1 MiB; the shared half is full of s."""

    mount: Mount
    vm: VM
    fd: int
    shared: mmap.mmap

    def slot(
        self, number: int = 1, gpa: int = MIB, size: int = MIB, **more: Any
    ) -> str:
        region = {"private_fd": self.fd, "flags": KVM_MEM_PRIVATE} | more
        return outcome(self.vm.set_user_memory_region, number, gpa, size, **region)

    def private(self, page: int = 0, pages: int = 1, *, private: bool = True) -> str:
        return outcome(
            self.vm.set_memory_attributes,
            MIB + page * PAGE,
            pages * PAGE,
            private=private,
        )

    def read(self, gpa: int = MIB, *, private: bool | None = None) -> str:
        return outcome(self.vm.create_vcpu().read, gpa, 1, private=private)

    def write(self, text: bytes, gpa: int = MIB, *, private: bool | None = None) -> str:
        return outcome(self.vm.create_vcpu().write, gpa, text, private=private)


@contextmanager
def guest(
    semantics: Semantics, *, slot: bool = True, **options: Any
) -> Iterator[Guest]:
    with Mount(semantics) as mount, mmap.mmap(-1, MIB) as shared:
        shared[:] = b"s" * MIB
        fd = mount.memfd_create("guest", 2 * MIB)
        with VM(mount.connect(), **options) as vm:
            made = Guest(mount, vm, fd, shared)
            if slot:
                assert made.slot(shared=shared) == "ok"
            yield made
        os.close(fd)
