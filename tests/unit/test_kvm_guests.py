"""A guest's machine code, and which KVM of this machine can run it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import pytest

from inaccfs.kvm.probe import guest, here
from inaccfs.kvm.probe.assembler import LONG, REAL, USER, Mode, assemble

if TYPE_CHECKING:
    from inaccfs.kvm.probe.guest import Operation

T: Final = 0x100000
_EDI: Final = "bf00001000"

# As objdump disassembles them: -M i8086 for the first, -M x86-64 for the second.
CODE: Final[list[tuple[Operation, str, str]]] = [
    # mov edi, T; xor eax, eax; mov eax, [edi]; out 0x10, eax
    (guest.Read(T), f"66{_EDI} 6631c0 67668b07 66e710", f"{_EDI} 31c0 8b07 e710"),
    (guest.Read(T, 1), f"66{_EDI} 6631c0 678a07 66e710", f"{_EDI} 31c0 8a07 e710"),
    (guest.Read(T, 2), f"66{_EDI} 6631c0 678b07 66e710", f"{_EDI} 31c0 668b07 e710"),
    # mov edi, T; mov eax, 0x11223344; mov [edi], eax
    (
        guest.Write(T, 0x11223344),
        f"66{_EDI} 66b844332211 67668907",
        f"{_EDI} b844332211 8907",
    ),
    # mov edi, T; mov eax, 5; xchg [edi], eax; out 0x10, eax
    (
        guest.Exchange(T, 5),
        f"66{_EDI} 66b805000000 67668707 66e710",
        f"{_EDI} b805000000 8707 e710",
    ),
    # mov esi, T; mov edi, T; mov ecx, 4; rep movsd
    (
        guest.Copy(T, T, 4),
        f"66be00001000 66{_EDI} 66b904000000 6766f3a5",
        f"be00001000 {_EDI} b904000000 f3a5",
    ),
    # mov esi, T; mov edx, 0x11; outsd
    (guest.Outs(T), "66be00001000 66ba11000000 67666f", "be00001000 ba11000000 6f"),
    # mov edi, T; mov edx, 0x12; insd
    (guest.Ins(T), f"66{_EDI} 66ba12000000 67666d", f"{_EDI} ba12000000 6d"),
    # mov edi, T; mov eax, [edi]; cmp eax, 0x11; je to the mov; out 0x10, eax
    (
        guest.SpinWhile(T, 0x11),
        f"66{_EDI} 67668b07 663d11000000 74f4 66e710",
        f"{_EDI} 8b07 3d11000000 74f7 e710",
    ),
    # mov edi, T; jmp edi
    (guest.Jump(T), f"66{_EDI} 66ffe7", f"{_EDI} ffe7"),
    # mov ebx, 1; mov ecx, 2; mov eax, 12; vmmcall; out 0x10, eax
    (
        guest.CallHypervisor(12, (1, 2)),
        "66bb01000000 66b902000000 66b80c000000 0f01d9 66e710",
        "bb01000000 b902000000 b80c000000 0f01d9 e710",
    ),
]


@pytest.mark.parametrize(("operation", "real_hex", "long_hex"), CODE)
def test_an_operation_is_these_instructions(
    operation: Operation, real_hex: str, long_hex: str
) -> None:
    real, long = bytes.fromhex(real_hex), bytes.fromhex(long_hex)
    assert assemble([operation], REAL) == real + b"\xf4"
    assert assemble([operation], LONG) == long + b"\xf4"
    # At CPL 3 there is no hlt: out 0x13, eax.
    assert assemble([operation], USER) == long + b"\xe7\x13"


@pytest.mark.parametrize("mode", [REAL, LONG, USER], ids=lambda mode: mode.name)
def test_a_program_is_its_operations_and_an_end(mode: Mode) -> None:
    program = [operation for operation, _, _ in CODE]
    end = len(assemble([], mode))
    parts = [assemble([operation], mode)[:-end] for operation in program]
    assert assemble(program, mode) == b"".join(parts) + assemble([], mode)


# --- /dev/kvm -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOENT, "/dev/kvm: No such file or directory"),
        (errno.EACCES, "/dev/kvm: Permission denied"),
        (errno.ENODEV, "/dev/kvm: No such device"),
    ],
)
def test_where_there_is_no_kvm_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(here.SkippedError, match=f"^{reason}$"):
        here.find()


def test_another_architecture_runs_no_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.uname()
    other = os.uname_result((*name[:4], "riscv64"))
    monkeypatch.setattr(os, "uname", lambda: other)
    with pytest.raises(here.SkippedError, match="programs for x86_64, not riscv64"):
        here.find()


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.8.0-31-generic", "guest_memfd-6.8"),
        ("6.11.2", "guest_memfd-6.8"),
        ("6.12.117", "guest_memfd-6.12"),
        ("6.12.117-1~deb12u1", "guest_memfd-6.12"),
        ("7.0.1", "guest_memfd-6.12"),
    ],
)
def test_a_kernel_has_the_rules_of_its_time(release: str, version: str) -> None:
    assert here.version_of(release) == version
