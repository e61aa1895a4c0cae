"""Instructions that KVM executes, and not the CPU: port I/O, hlt, vmmcall.

arch/x86/kvm/emulate.c and x86.c. For OUTS and INS KVM reads and writes the guest's
memory itself, at userspace_addr, whatever the attribute says. So it never sees the
content of a private page. Where nothing is mapped there, the access is MMIO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from inaccfs.kvm.probe.protocol import (
    Halt,
    Hypercall,
    MmioRead,
    MmioWrite,
    PortIn,
    PortOut,
)
from inaccfs.kvm.uapi import PAGE_SHIFT, PAGE_SIZE, MmioExit
from inaccfs.kvmcalls import KVM_HC_MAP_GPA_RANGE

if TYPE_CHECKING:
    from inaccfs.kvm.probe.protocol import Exit
    from inaccfs.kvm.vcpu import Vcpu

# Legacy prefixes: operand size, address size, lock, repetition, segments.
_OPERAND: Final = 0x66
_ADDRESS: Final = 0x67
_REPEAT: Final = (0xF2, 0xF3)
_PREFIXES: Final = (
    _OPERAND,
    _ADDRESS,
    0xF0,
    *_REPEAT,
    *(0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65),
)

_IN: Final = (0xE4, 0xE5, 0xEC, 0xED)
_OUT: Final = (0xE6, 0xE7, 0xEE, 0xEF)
# The IN and OUT whose port is the next byte.
_IMMEDIATE: Final = range(0xE4, 0xE8)
_INS: Final = (0x6C, 0x6D)
_OUTS: Final = (0x6E, 0x6F)
_HLT: Final = 0xF4
# vmcall of Intel's CPUs, vmmcall of AMD's.
_HYPERCALLS: Final = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")

# EFLAGS: strings go downwards.
_DF: Final = 1 << 10

# KVM's type for gfns, u64, wraps there.
_GFNS: Final = 1 << 64
_KVM_ENOSYS: Final = 1000
_KVM_EINVAL: Final = 22


class Registers(Protocol):
    """What this module needs of a `Cpu`."""

    @property
    def vcpu(self) -> Vcpu: ...
    @property
    def mode(self) -> str: ...
    @property
    def hypercalls(self) -> set[int]: ...
    def __getitem__(self, name: str) -> int: ...
    def __setitem__(self, name: str, value: int) -> None: ...
    def take_answer(self) -> bytes | None: ...


class _Code(NamedTuple):
    """An instruction, as far as it is decoded. Sizes are bytes."""

    opcode: int
    # The length of the instruction without its immediate operand.
    length: int
    immediate: int
    # The sizes of the operand, and of an address.
    width: int
    address: int
    repeated: bool


class Emulator:
    """Executes such instructions on the registers of one CPU."""

    def __init__(self, cpu: Registers) -> None:
        self._cpu: Final = cpu
        self._long: Final = cpu.mode == "long"
        # Whether the current answer comes from a device in the place of a page.
        self._device = False

    def emulated(self, pc: int, code: bytes) -> Exit | Literal["done"] | None:
        """Execute the instruction at *pc*; None if it is the CPU's.

        If it exits and needs an answer, call this again once there is an answer.
        """
        found = self._decoded(code)
        if found is None:
            return None
        opcode, length, *_ = found
        if opcode == _HLT:
            self._go_to(pc + length)
            return Halt()
        if code.startswith(_HYPERCALLS):
            return self._hypercall(pc + 3)
        if opcode in _IN:
            return self._in(pc, found)
        if opcode in _OUT:
            return self._out(pc, found)
        if opcode in _INS:
            return self._ins(pc, found)
        if opcode in _OUTS:
            return self._outs(pc, found)
        return None

    def is_cut(self, code: bytes) -> bool:
        """Whether `emulated` needs more bytes than *code* of an instruction."""
        rest = code[self._opcode_at(code) :]
        return (len(rest) == 1 and rest[0] in _IMMEDIATE) or any(
            each.startswith(rest) and each != rest for each in _HYPERCALLS
        )

    def _opcode_at(self, code: bytes) -> int:
        at = 0
        while at < len(code) and code[at] in _PREFIXES:
            at += 1
        if self._long and at < len(code) and code[at] & 0xF0 == 0x40:
            # A REX prefix. None of these instructions has a 64-bit form.
            at += 1
        return at

    def _decoded(self, code: bytes) -> _Code | None:
        if self.is_cut(code):
            # Nobody can fetch the rest.
            return None
        at = self._opcode_at(code)
        prefixes, opcode = code[:at], code[at]
        wide = self._long != (_OPERAND in prefixes)
        width = (4 if wide else 2) if opcode & 1 else 1
        if self._long:
            address = 4 if _ADDRESS in prefixes else 8
        else:
            address = 4 if _ADDRESS in prefixes else 2
        immediate = code[at + 1] if at + 1 < len(code) else 0
        repeated = any(each in _REPEAT for each in prefixes)
        return _Code(opcode, at + 1, immediate, width, address, repeated)

    # --- registers --------------------------------------------------------------------

    def _name(self, name: str, size: int) -> str:
        """The name of a register such as si with *size* bytes."""
        return {2: "", 4: "e", 8: "r"}[size] + name

    def _full(self, name: str) -> str:
        return self._name(name, 8 if self._long else 4)

    def _go_to(self, pc: int) -> None:
        self._cpu[self._full("ip")] = pc

    def _load(self, value: bytes) -> None:
        """Load al, ax or eax; the last clears the upper half of rax."""
        number = int.from_bytes(value, "little")
        if len(value) < 4:
            self._cpu["al" if len(value) == 1 else "ax"] = number
        else:
            self._cpu[self._full("ax")] = number

    def _port(self, code: _Code) -> tuple[int, int]:
        """The port of the instruction, and the instruction's length."""
        if code.opcode & 8:
            return self._cpu["dx"], code.length
        return code.immediate, code.length + 1

    # --- ports ------------------------------------------------------------------------

    def _in(self, pc: int, code: _Code) -> Exit | Literal["done"]:
        port, length = self._port(code)
        answer = self._cpu.take_answer()
        if answer is None:
            return PortIn(port, code.width)
        self._load(answer.ljust(code.width, b"\0")[: code.width])
        self._go_to(pc + length)
        return "done"

    def _out(self, pc: int, code: _Code) -> Exit:
        port, length = self._port(code)
        value = self._cpu[self._full("ax")] & (1 << 8 * code.width) - 1
        self._go_to(pc + length)
        return PortOut(port, value.to_bytes(code.width, "little"))

    def _ins(self, pc: int, code: _Code) -> Exit | Literal["done"]:
        if self._is_over(pc, code):
            return "done"
        answer = self._cpu.take_answer()
        if answer is None:
            return PortIn(self._cpu["dx"], code.width)
        data = answer.ljust(code.width, b"\0")[: code.width]
        gpa = self._cpu[self._name("di", code.address)]
        self._step(pc, code, "di")
        try:
            self._cpu.vcpu.write_by_address(gpa, data)
        except MmioExit:
            return MmioWrite(gpa, data)
        return "done"

    def _outs(self, pc: int, code: _Code) -> Exit | Literal["done"]:
        if self._is_over(pc, code):
            return "done"
        gpa = self._cpu[self._name("si", code.address)]
        answer = self._cpu.take_answer()
        if answer is not None and self._device:
            data = answer.ljust(code.width, b"\0")[: code.width]
        else:
            try:
                data = self._cpu.vcpu.read_by_address(gpa, code.width)
            except MmioExit:
                self._device = True
                return MmioRead(gpa, code.width)
        self._device = False
        self._step(pc, code, "si")
        return PortOut(self._cpu["dx"], data)

    def _is_over(self, pc: int, code: _Code) -> bool:
        """Whether a repeated instruction is complete."""
        over = code.repeated and not self._cpu[self._name("cx", code.address)]
        if over:
            self._go_to(pc + code.length)
        return over

    def _step(self, pc: int, code: _Code, index: str) -> None:
        """Complete one turn of a string instruction."""
        down = self._cpu["eflags"] & _DF
        self._add(index, -code.width if down else code.width, code.address)
        if code.repeated:
            self._add("cx", -1, code.address)
        if not code.repeated or not self._cpu[self._name("cx", code.address)]:
            self._go_to(pc + code.length)

    def _add(self, name: str, number: int, size: int) -> None:
        register = self._name(name, size)
        self._cpu[register] = self._cpu[register] + number & (1 << 8 * size) - 1

    # --- hypercalls -------------------------------------------------------------------

    def _hypercall(self, after: int) -> Exit | Literal["done"]:
        """kvm_emulate_hypercall(); only KVM_HC_MAP_GPA_RANGE is implemented."""
        cpu = self._cpu
        number = cpu[self._full("ax")]
        gpa, pages, attributes = (cpu[self._full(name)] for name in ("bx", "cx", "dx"))
        if number != KVM_HC_MAP_GPA_RANGE or number not in cpu.hypercalls:
            result = -_KVM_ENOSYS
        elif gpa % PAGE_SIZE or not pages or pages >= _GFNS - (gpa >> PAGE_SHIFT):
            result = -_KVM_EINVAL
        else:
            answer = cpu.take_answer()
            if answer is None:
                return Hypercall(number, (gpa, pages, attributes))
            result = int.from_bytes(answer, "little")
        bits = 64 if self._long else 32
        cpu[self._full("ax")] = result & (1 << bits) - 1
        self._go_to(after)
        return "done"
