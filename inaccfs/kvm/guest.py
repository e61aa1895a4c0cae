"""A guest with memory, ready to run: a few bytes of machine code, or a function.

    guest = Guest(shim)
    guest.run(bytes.fromhex("c7072a000000 f4"), rdi=guest.gpa)   # mov [rdi], 42; hlt
    guest.run(lambda vcpu: vcpu.read(guest.gpa, 4))

Both touch memory through a vCPU of one VM, and the VMM converts what their exits ask it
to convert.
"""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, overload

from inaccfs.kvm.cpu import Cpu
from inaccfs.kvm.cpubase import INSTRUCTIONS, SECONDS
from inaccfs.kvm.probe.protocol import (
    Hypercall,
    MemoryFault,
    MmioRead,
    MmioWrite,
    PortIn,
    PortOut,
)
from inaccfs.kvm.uapi import KVM_MEM_PRIVATE, MemoryFaultExit
from inaccfs.kvm.vm import VM
from inaccfs.kvm.vmm import Vmm

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from inaccfs.client import Client
    from inaccfs.kvm.cpubase import CpuMode
    from inaccfs.kvm.probe.protocol import Exit
    from inaccfs.kvm.vcpu import Vcpu

    Device: TypeAlias = Callable[[Exit], bytes]

_T = TypeVar("_T")

# The plain slot: a guest's code and stack are there.
_LOW_SIZE: Final = 1 << 16
_CODE: Final = 0x1000
_STACK: Final = 0x10000 - 16

_GPA: Final = 1 << 20
# Whole pages in every version: hugetlb-rfc has pages of 2 MiB.
_SIZE: Final = 2 << 20


def zeros(found: Exit) -> bytes:
    """A device that answers zeros."""
    return bytes(8)


class Guest:
    """A VM with two slots, a vCPU and a VMM. Close it, or use it as a context manager.

    Slot 0 is plain memory of 64 KiB at gpa 0, for code and stack. Slot 1 is *size*
    bytes of private memory at `gpa`, in a file of the mount whose fd is `fd`.
    """

    def __init__(self, shim: Client, *, size: int = _SIZE) -> None:
        """Raises `OSError` where the mount has too little memory."""
        self.gpa: Final = _GPA
        self.size: Final = size
        # The shared half of each slot.
        self.low: Final = mmap.mmap(-1, _LOW_SIZE)
        self.shared: Final = mmap.mmap(-1, size)
        with ExitStack() as stack:
            self.fd: Final = shim.memfd_create("guest", size=size)
            stack.callback(os.close, self.fd)
            self.vm: Final = stack.enter_context(VM(shim))
            self.vm.set_user_memory_region(0, 0, _LOW_SIZE, shared=self.low)
            self.vm.set_user_memory_region(
                1,
                _GPA,
                size,
                private_fd=self.fd,
                shared=self.shared,
                flags=KVM_MEM_PRIVATE,
            )
            self.vm.set_memory_attributes(_GPA, size, private=True)
            self.vmm: Final = Vmm(self.vm)
            self.vcpu: Final = self.vm.create_vcpu()
            self._stack: Final = stack.pop_all()

    @overload
    def run(
        self,
        program: bytes,
        *,
        mode: CpuMode = "long",
        device: Device = zeros,
        converts: bool = True,
        instructions: int | None = INSTRUCTIONS,
        seconds: float | None = SECONDS,
        **registers: int,
    ) -> list[Exit]: ...
    @overload
    def run(self, program: Callable[[Vcpu], _T], *, converts: bool = True) -> _T: ...
    def run(
        self,
        program: bytes | Callable[[Vcpu], _T],
        *,
        mode: CpuMode = "long",
        device: Device = zeros,
        converts: bool = True,
        instructions: int | None = INSTRUCTIONS,
        seconds: float | None = SECONDS,
        **registers: int,
    ) -> list[Exit] | _T:
        """Run a program; return the exits of machine code, or what a function returns.

        Machine code begins with these *registers*, and runs until it halts or cannot go
        on. *device* answers what it reads of ports and of devices, and its hypercalls.
        A function is called with the vCPU, and again from its beginning after an exit.
        With *converts* the VMM handles memory faults that ask for a conversion; such
        exits are not returned.

        Raises:
            MemoryFaultExit, MmioExit: of a function.
            GuestLimitError: the code has run for too many *instructions* or *seconds*
                without an exit.
            GuestUnavailableError: it needs the package unicorn, which is not installed.
        """
        if not isinstance(program, bytes):
            if converts:
                return self.vmm.run(lambda: program(self.vcpu))
            return program(self.vcpu)
        cpu = self.load(program, mode=mode, **registers)
        seen: list[Exit] = []
        while True:
            found = cpu.run(instructions=instructions, seconds=seconds)
            if isinstance(found, MemoryFault) and converts and self._handled(cpu):
                continue
            seen.append(found)
            match found:
                case PortIn() | MmioRead() | Hypercall():
                    cpu.answer(device(found))
                case PortOut() | MmioWrite():
                    pass
                case _:
                    return seen

    def load(self, code: bytes, *, mode: CpuMode = "long", **registers: int) -> Cpu:
        """Return a CPU that will execute *code*, for a VMM of your own.

        Raises:
            ValueError: there is no room for it.
            KeyError: the CPU has no such register.
        """
        if len(code) > _LOW_SIZE - 2 * _CODE:
            raise ValueError(f"{len(code)} bytes of code do not fit into slot 0")
        cpu = Cpu(self.vcpu, mode=mode)
        self.low[_CODE : _CODE + len(code)] = code
        cpu["esp" if mode == "real" else "rsp"] = _STACK
        for name, value in registers.items():
            cpu[name] = value
        cpu.start(_CODE)
        return cpu

    def _handled(self, cpu: Cpu) -> bool:
        """Have the VMM convert what the last exit asks for; False if it cannot."""
        assert cpu.fault is not None
        try:
            self.vmm.handle(cpu.fault)
        except MemoryFaultExit:
            return False
        return True

    def close(self) -> None:
        """Close the VM and the file."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
