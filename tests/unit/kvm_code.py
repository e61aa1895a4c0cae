"""VMs that run machine code, and what came of it."""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from inaccfs.inprocess import Mount
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, Cpu
from inaccfs.kvm.probe.protocol import (
    Exit,
    Halt,
    Hypercall,
    MemoryFault,
    MmioRead,
    OtherExit,
    PortIn,
    PortOut,
)
from inaccfs.semantics import GuestMemfd612
from inaccfs.syscalls import PUNCH
from tests.unit.kvm_guests import MIB, PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.cpubase import CpuBase, CpuMode
    from inaccfs.semantics import Semantics

GPA: Final = MIB
CODE: Final = 0x1000
HOLE: Final = 8 * MIB
ANSWER: Final = b"\x5a" * 8

# In long mode, with an address in rdi.
STORE: Final = "c707 2a000000"  # mov dword [rdi], 42
LOAD: Final = "8b07 e710"  # mov eax, [rdi]; out 0x10, eax
HLT: Final = "f4"


@dataclass
class Machine:
    """A VM with a plain slot for code, and one with a file."""

    mount: Mount
    vm: VM
    fd: int
    low: mmap.mmap
    shared: mmap.mmap

    def cpu(self, code: str, *, mode: CpuMode = "long", **registers: int) -> Cpu:
        cpu = Cpu(self.vm.create_vcpu(), mode=mode)
        data = bytes.fromhex(code)
        self.low[CODE : CODE + len(data)] = data
        for name, value in registers.items():
            cpu[name] = value
        cpu.start(CODE)
        return cpu

    def run(self, code: str, *, mode: CpuMode = "long", **registers: int) -> list[Exit]:
        return to_the_end(self.cpu(code, mode=mode, **registers))

    def private(self, first: int, pages: int = 1, *, private: bool = True) -> None:
        self.vm.set_memory_attributes(GPA + first * PAGE, pages * PAGE, private=private)

    def punch(self, page: int) -> None:
        self.mount.fallocate(self.fd, PUNCH, page * PAGE, PAGE)


def to_the_end(cpu: CpuBase) -> list[Exit]:
    """Run, and answer what waits for an answer; returns all exits."""
    seen: list[Exit] = []
    while not seen or not isinstance(seen[-1], Halt | MemoryFault | OtherExit):
        assert len(seen) < 20
        seen.append(cpu.run(instructions=10_000))
        if isinstance(seen[-1], PortIn | MmioRead | Hypercall):
            cpu.answer(ANSWER)
    return seen


def said(*values: int) -> list[Exit]:
    """The exits of a guest that puts out these values and halts."""
    return [*(PortOut(0x10, value.to_bytes(4, "little")) for value in values), Halt()]


@contextmanager
def machine(
    semantics: Semantics | None = None,
    pages: int = MIB // PAGE,
    private: int = MIB // PAGE,
    **options: Any,
) -> Iterator[Machine]:
    """A machine whose slot of *pages* has *private* ones, from its first on."""
    with Mount(semantics or GuestMemfd612()) as mount, mmap.mmap(-1, MIB) as shared:
        fd = mount.memfd_create("guest", MIB)
        with mmap.mmap(-1, 1 << 16) as low, VM(mount.connect(), **options) as vm:
            vm.set_user_memory_region(0, 0, 1 << 16, shared=low)
            vm.set_user_memory_region(
                1,
                GPA,
                pages * PAGE,
                private_fd=fd,
                shared=shared,
                flags=KVM_MEM_PRIVATE,
            )
            made = Machine(mount, vm, fd, low, shared)
            if vm.protected:
                made.private(0, private)
            yield made
            # The buffers cannot be closed while slots have them.
            vm.close()
