"""Machine code on the simulated KVM: where it is fetched from."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from inaccfs.kvm.probe.protocol import (
    MemoryFault,
    MmioRead,
    MmioWrite,
    OtherExit,
    PortOut,
)
from tests.unit.kvm_code import GPA, HOLE, Machine, said, to_the_end
from tests.unit.kvm_guests import PAGE


def test_code_is_fetched_from_private_memory(guest: Machine) -> None:
    vcpu = guest.vm.create_vcpu()
    vcpu.write(GPA, bytes.fromhex("b82a000000 e710 f4"))
    # jmp rdi
    assert guest.run("ffe7", rdi=GPA) == said(42)
    vcpu.write(GPA, bytes.fromhex("b82b000000 e710 f4"))
    assert guest.run("ffe7", rdi=GPA) == said(43)
    # An instruction on two pages.
    vcpu.write(GPA + PAGE - 2, bytes.fromhex("b82c000000 e710 f4"))
    assert guest.run("ffe7", rdi=GPA + PAGE - 2) == said(44)
    # Code that changes itself: mov byte [rip+1], 45; mov eax, 0.
    vcpu.write(GPA, bytes.fromhex("c605010000002d b800000000 e710 f4"))
    assert guest.run("ffe7", rdi=GPA) == said(45)
    # rep stosb to its own page; mov rbx, gpa; jmp rbx.
    vcpu.write(GPA, bytes.fromhex("f3aa e710 f4"))
    assert guest.run(
        "48bb0000100000000000 ffe3", rdi=GPA + 0x100, rcx=3, rax=0x41
    ) == said(0x41)
    assert vcpu.read(GPA + 0x100, 4) == b"AAA\0"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ee", "f4"),
        ("e7", "10 f4"),
        ("66", "ef f4"),
        ("f3", "6f f4"),
        ("0f", "01d9 ee f4"),
        ("0f01", "d9 ee f4"),
        # mov eax, imm32 and an operand-size prefix are the CPU's.
        ("b8", "01000000 ee f4"),
        ("66", "b80100 ee f4"),
    ],
)
def test_what_kvm_emulates_at_the_end_of_a_page(
    guest: Machine, before: str, after: str
) -> None:
    registers: dict[str, Any] = {"rdx": 0x11, "rsi": GPA, "rcx": 1}
    expected = guest.run(before + after, **registers)
    assert len(expected) == 2
    nops = "90" * (PAGE - len(bytes.fromhex(before)))
    assert guest.run(nops + before + after, **registers) == expected


def test_what_is_emulated_needs_the_next_page_only_if_it_goes_on_there(
    guest: Machine,
) -> None:
    """The page after the slot is a hole."""
    last = len(guest.low) - 1
    not_fetched = OtherExit(0, "KVM_EXIT_INTERNAL_ERROR 1")
    for code, expected in (
        (b"\xee", [PortOut(0x11, b"\5"), not_fetched]),
        (b"\xe6", [not_fetched]),
    ):
        guest.low[last:] = code
        cpu = guest.cpu("", rdx=0x11, rax=5)
        cpu.start(last)
        assert to_the_end(cpu) == expected


def test_kvm_fetches_what_it_emulates_from_the_shared_half(guest: Machine) -> None:
    """half-code-of-mmio: the private code is a mov to a device, the shared an xchg."""
    guest.vm.create_vcpu().write(GPA, bytes.fromhex("8907 e710 f4"))
    jump = "48bb0000100000000000 ffe3"  # mov rbx, gpa; jmp rbx
    registers: dict[str, Any] = {"rdi": HOLE, "rax": 7}
    # mov [rdi], eax, beside xchg [rdi], eax
    guest.shared[:5] = bytes.fromhex("8707 e710 f4")
    write = MmioWrite(HOLE, b"\7\0\0\0")
    assert guest.run(jump, **registers) == [
        MmioRead(HOLE, 4),
        write,
        *said(0x5A5A5A5A),
    ]
    guest.shared[:5] = bytes.fromhex("8907 e710 f4")
    assert guest.run(jump, **registers) == [write, *said(7)]
    # The CPU executes instructions that need no device.
    guest.shared[:5] = bytes.fromhex("8707 e710 f4")
    assert guest.run(jump, rdi=GPA + PAGE, rax=7) == said(7)


def test_code_that_cannot_be_fetched(guest: Machine) -> None:
    found = guest.run("ffe7", rdi=HOLE)
    assert found == [OtherExit(0, "KVM_EXIT_INTERNAL_ERROR 1")]
    guest.vm.set_memory_attributes(2 * HOLE, PAGE, private=True)
    found = guest.run("ffe7", rdi=2 * HOLE)
    assert found == [MemoryFault(errno.EFAULT, 8, 2 * HOLE, PAGE)]
