"""Machine code of a guest's operations: a table of some twenty x86 instructions.

The same instructions serve real mode and long mode. In real mode an instruction on 32
bits has the prefix 66 (operand) and one with an address in edi the prefix 67 (address);
its segments begin at 0 and have no limit below 4 GiB, so an address is a gpa. In long
mode 32 bits are the default, and all gpas are mapped one to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.kvm.probe.guest import (
    END,
    IN,
    OUT,
    SAID,
    STARTED,
    CallHypervisor,
    Copy,
    Exchange,
    Ins,
    Jump,
    OrPage,
    Outs,
    Read,
    SpinWhile,
    SpinWriting,
    Start,
    Write,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.kvm.probe.guest import Operation


class Mode(NamedTuple):
    """The CPU's mode when a guest begins."""

    name: str
    long: bool
    """Whether it is long mode; otherwise it is real mode."""

    user: bool
    """CPL 3 with IOPL 3: such a guest may use ports, and may not halt."""


REAL: Final = Mode("real", long=False, user=False)
LONG: Final = Mode("long", long=True, user=False)
USER: Final = Mode("user", long=True, user=True)
MODES: Final = {mode.name: mode for mode in (REAL, LONG, USER)}

# The number of words in a page.
_WORDS: Final = 1024


class Assembler:
    """Makes machine code for one mode."""

    def __init__(self, mode: Mode) -> None:
        self._mode: Final = mode
        self._code = b""

    def program(self, operations: Sequence[Operation]) -> bytes:
        """The code of a program, and of the end after it."""
        for operation in operations:
            self._operation(operation)
        self._end()
        return self._code

    # --- prefixes ---------------------------------------------------------------------

    def _emit(self, code: bytes) -> None:
        self._code += code

    def _wide(self, code: bytes) -> None:
        """An instruction on 32 bits."""
        self._emit(code if self._mode.long else b"\x66" + code)

    def _wide_at(self, code: bytes) -> None:
        """An instruction on 32 bits in memory, whose address is in edi or rdi."""
        self._emit(code if self._mode.long else b"\x67\x66" + code)

    def _sized_at(self, byte: bytes, other: bytes, width: int) -> None:
        """As `_wide_at`, on *width* bytes: *byte* is the opcode for one."""
        if width == 1:
            self._emit(byte if self._mode.long else b"\x67" + byte)
        elif width == 2:
            self._emit((b"\x66" if self._mode.long else b"\x67") + other)
        else:
            self._wide_at(other)

    def _load(self, opcode: int, value: int) -> None:
        """One of the mov instructions with a register in the opcode."""
        self._wide(bytes([opcode]) + (value & 0xFFFFFFFF).to_bytes(4, "little"))

    def _eax(self, value: int) -> None:
        self._load(0xB8, value)  # mov eax, imm32

    def _ecx(self, value: int) -> None:
        self._load(0xB9, value)  # mov ecx, imm32

    def _edx(self, value: int) -> None:
        self._load(0xBA, value)  # mov edx, imm32

    def _ebx(self, value: int) -> None:
        self._load(0xBB, value)  # mov ebx, imm32

    def _esi(self, value: int) -> None:
        self._load(0xBE, value)  # mov esi, imm32

    def _edi(self, value: int) -> None:
        self._load(0xBF, value)  # mov edi, imm32

    def _back_to(self, label: int, jump: bytes) -> None:
        """A short conditional *jump* back to *label*."""
        distance = label - (len(self._code) + len(jump) + 1)
        self._emit(jump + distance.to_bytes(1, "little", signed=True))

    def _out(self, port: int) -> None:
        self._wide(bytes([0xE7, port]))  # out imm8, eax

    def _end(self) -> None:
        if self._mode.user:
            self._out(END)
        else:
            self._emit(b"\xf4")  # hlt

    # --- operations -------------------------------------------------------------------

    def _operation(self, operation: Operation) -> None:
        match operation:
            case Read(gpa, width):
                self._edi(gpa)
                self._wide(b"\x31\xc0")  # xor eax, eax
                self._sized_at(b"\x8a\x07", b"\x8b\x07", width)  # mov eax, [edi]
                self._out(SAID)
            case Write(gpa, value, width):
                self._edi(gpa)
                self._eax(value)
                self._sized_at(b"\x88\x07", b"\x89\x07", width)  # mov [edi], eax
            case Exchange(gpa, value):
                self._edi(gpa)
                self._eax(value)
                self._wide_at(b"\x87\x07")  # xchg [edi], eax: always locked
                self._out(SAID)
            case OrPage(gpa):
                self._or_page(gpa)
            case Copy(source, target, count):
                self._esi(source)
                self._edi(target)
                self._ecx(count)
                self._wide_at(b"\xf3\xa5")  # rep movsd
            case Outs(gpa):
                self._esi(gpa)
                self._edx(OUT)
                self._wide_at(b"\x6f")  # outsd: dx, [esi]
            case Ins(gpa):
                self._edi(gpa)
                self._edx(IN)
                self._wide_at(b"\x6d")  # insd: [edi], dx
            case Jump(gpa):
                self._edi(gpa)
                self._wide(b"\xff\xe7")  # jmp edi, or rdi
            case CallHypervisor(number, arguments):
                self._hypercall(number, arguments)
            case Start():
                self._out(STARTED)
            case SpinWhile(gpa, value):
                self._spin_while(gpa, value)
            case SpinWriting(gpa, value):
                self._spin_writing(gpa, value)

    def _or_page(self, gpa: int) -> None:
        self._edi(gpa)
        self._wide(b"\x31\xc0")  # xor eax, eax
        self._ecx(_WORDS)
        again = len(self._code)
        self._wide_at(b"\x0b\x07")  # or eax, [edi]
        self._wide(b"\x83\xc7\x04")  # add edi, 4
        self._wide(b"\xff\xc9")  # dec ecx
        self._back_to(again, b"\x75")  # jnz
        self._out(SAID)

    def _hypercall(self, number: int, arguments: tuple[int, ...]) -> None:
        # The ABI of KVM: the number in eax, then ebx, ecx, edx, esi.
        registers = (self._ebx, self._ecx, self._edx, self._esi)
        for load, argument in zip(registers, arguments, strict=False):
            load(argument)
        self._eax(number)
        self._emit(b"\x0f\x01\xd9")  # vmmcall
        self._out(SAID)

    def _spin_while(self, gpa: int, value: int) -> None:
        self._edi(gpa)
        again = len(self._code)
        self._wide_at(b"\x8b\x07")  # mov eax, [edi]
        self._compare(value)
        self._back_to(again, b"\x74")  # je
        self._out(SAID)

    def _spin_writing(self, gpa: int, value: int) -> None:
        self._edi(gpa)
        again = len(self._code)
        self._eax(value)
        self._wide_at(b"\x89\x07")  # mov [edi], eax
        self._wide_at(b"\x8b\x07")  # mov eax, [edi]
        self._compare(value)
        self._back_to(again, b"\x74")  # je
        self._out(SAID)

    def _compare(self, value: int) -> None:
        self._load(0x3D, value)  # cmp eax, imm32


def assemble(operations: Sequence[Operation], mode: Mode) -> bytes:
    """Machine code of a program."""
    return Assembler(mode).program(operations)
