"""A CPU for the few instructions of the rows' guests, where unicorn is not installed.

It knows the instructions that `probe.assembler` makes in long mode, and no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.cpubase import CpuBase
from inaccfs.kvm.probe.protocol import AbsentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.kvm.probe.protocol import Exit
    from inaccfs.kvm.vcpu import Vcpu

_U32: Final = (1 << 32) - 1
# By their number in an instruction.
_NAMES: Final = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
_LOW_BYTES: Final = {"al": "ax", "cl": "cx", "dl": "dx", "bl": "bx"}
# In bits.
_WIDTHS: Final = {"r": 64, "e": 32}

# mov r32, imm32: with the register in the opcode.
_MOV: Final = range(0xB8, 0xC0)
# With [rdi] and eax, or a part of it: mov to eax, from eax; or; xchg.
_LOAD_BYTE, _LOAD = 0x8A, 0x8B
_STORE_BYTE, _STORE = 0x88, 0x89
_OR, _EXCHANGE = 0x0B, 0x87
_AT_RDI: Final = 0x07
_BYTES: Final = (_LOAD_BYTE, _STORE_BYTE)
_MEMORY: Final = (*_BYTES, _LOAD, _STORE, _OR, _EXCHANGE)


class SmallCpu(CpuBase):
    """Runs what `probe.assembler` assembles for long mode."""

    def __init__(self, vcpu: Vcpu) -> None:
        """All registers are 0."""
        super().__init__(vcpu, "long", None)
        self._values: Final = dict.fromkeys((*_NAMES, "ip", "flags"), 0)
        # ZF
        self._zero = False
        self._fixed: Final[dict[bytes, Callable[[int], None]]] = {
            b"\x31\xc0": self._xor,
            b"\xff\xc9": self._dec,
            b"\xff\xe7": self._jump,
            b"\xf3\xa5": self._move,
        }

    # --- registers --------------------------------------------------------------------

    def __getitem__(self, name: str) -> int:
        register, bits = _register(name)
        return self._values[register] & (1 << bits) - 1

    def __setitem__(self, name: str, value: int) -> None:
        register, bits = _register(name)
        # A write to 32 bits clears the upper 32.
        kept = self._values[register] >> bits << bits if bits < 32 else 0
        self._values[register] = kept | value & (1 << bits) - 1

    # --- instructions -----------------------------------------------------------------

    def _execute(self, pc: int, code: bytes) -> Exit | None:
        self._after = None
        width = 2 if code[0] == 0x66 else 4
        at = int(code[0] == 0x66)
        opcode = code[at]
        if (call := self._fixed.get(code[:2])) is not None:
            call(pc + 2)
        elif opcode in _MEMORY and code[at + 1] == _AT_RDI:
            self._memory(opcode, 1 if opcode in _BYTES else width)
            self["rip"] = pc + at + 2
        elif opcode in _MOV:
            self["e" + _NAMES[opcode & 7]] = int.from_bytes(code[1:5], "little")
            self["rip"] = pc + 5
        elif opcode == 0x3D:  # cmp eax, imm32
            self._zero = self["eax"] == int.from_bytes(code[1:5], "little")
            self["rip"] = pc + 5
        elif opcode in (0x74, 0x75):  # je, jne
            taken = self._zero == (opcode == 0x74)
            distance = int.from_bytes(code[1:2], "little", signed=True)
            self["rip"] = pc + 2 + (distance if taken else 0)
        elif code[:2] == b"\x83\xc7":  # add edi, imm8
            self["edi"] += code[2]
            self["rip"] = pc + 3
        else:
            raise AbsentError(f"unicorn, for the instruction {code[:4].hex()}")
        self._forget_answers()
        return self._after

    def _memory(self, opcode: int, width: int) -> None:
        gpa = self["rdi"]
        name = {1: "al", 2: "ax", 4: "eax"}[width]
        data = self[name].to_bytes(width, "little")
        if opcode in (_STORE, _STORE_BYTE):
            self._write(gpa, data)
            return
        found = int.from_bytes(self._read(gpa, width), "little")
        if opcode == _EXCHANGE:
            self._write(gpa, data)
        self[name] = found | self[name] if opcode == _OR else found

    def _xor(self, after: int) -> None:
        self["eax"] = 0
        self["rip"] = after

    def _dec(self, after: int) -> None:
        self["ecx"] = self["ecx"] - 1 & _U32
        self._zero = not self["ecx"]
        self["rip"] = after

    def _jump(self, after: int) -> None:
        self["rip"] = self["rdi"]

    def _move(self, after: int) -> None:
        """One turn of rep movsd."""
        if self["rcx"]:
            self._write(self["rdi"], self._read(self["rsi"], 4))
            self["rsi"] += 4
            self["rdi"] += 4
            self["rcx"] -= 1
        if not self["rcx"]:
            self["rip"] = after


def _register(name: str) -> tuple[str, int]:
    """Which register has that name, and how many bits of it."""
    if name in _LOW_BYTES:
        return _LOW_BYTES[name], 8
    if name[0] in _WIDTHS and len(name) > 2:
        return name[1:], _WIDTHS[name[0]]
    return name, 16
