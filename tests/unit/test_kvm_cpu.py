"""Machine code on the simulated KVM: it accesses and exits as the vCPU does."""

from __future__ import annotations

import errno
import mmap
import signal
import sys
import threading
from typing import Any

import pytest

from inaccfs.kvm import Cpu, GuestLimitError, GuestUnavailableError
from inaccfs.kvm.probe.protocol import (
    Halt,
    Hypercall,
    MemoryFault,
    MmioRead,
    MmioWrite,
    OtherExit,
    PortIn,
    PortOut,
)
from inaccfs.semantics import V8, GuestMemfdShared
from tests.unit.kvm_code import (
    ANSWER,
    CODE,
    GPA,
    HLT,
    HOLE,
    LOAD,
    STORE,
    Machine,
    machine,
    said,
    to_the_end,
)
from tests.unit.kvm_guests import MIB, PAGE

# --- memory ---------------------------------------------------------------------------


def test_code_reads_and_writes_private_memory(guest: Machine) -> None:
    assert guest.run(STORE + LOAD + HLT, rdi=GPA) == said(42)
    assert guest.vm.spte(GPA // PAGE) is not None
    assert guest.vm.create_vcpu().read(GPA, 4) == b"\x2a\0\0\0"
    assert guest.shared[:4] == bytes(4)


def test_nothing_is_stale(guest: Machine) -> None:
    """A page is punched or converted between two instructions."""
    cpu = guest.cpu(STORE + LOAD + LOAD + LOAD + HLT, rdi=GPA)
    assert cpu.run() == said(42)[0]
    guest.punch(0)
    assert cpu.run() == said(0)[0]
    guest.shared[:4] = b"\x11\0\0\0"
    guest.private(0, private=False)
    assert cpu.run() == said(0x11)[0]


def test_real_mode_reaches_4_gib() -> None:
    with machine() as made:
        # mov dword [edi], 42; mov eax, [edi]; out 0x10, eax; hlt
        code = "6766c7072a000000 67668b07 66e710 f4"
        assert made.run(code, mode="real", edi=GPA) == said(42)
        # jmp edi: there is no code that far away.
        found = made.run("66ffe7", mode="real", edi=GPA)
        assert found == [OtherExit(0, "KVM_EXIT_SHUTDOWN")]


def test_an_access_that_straddles_pages(guest: Machine) -> None:
    edge = GPA + PAGE - 2
    assert guest.run(STORE + LOAD + HLT, rdi=edge) == said(42)
    assert guest.vm.create_vcpu().read(edge, 4) == b"\x2a\0\0\0"
    guest.private(1, private=False)
    guest.shared[PAGE : PAGE + 2] = b"\x77\x77"
    assert guest.run(LOAD + HLT, rdi=edge) == said(0x7777002A)


def test_a_write_that_straddles_pages_exits_as_a_whole() -> None:
    with machine() as made:
        made.vm.set_user_memory_region(2, 4 * MIB, PAGE, shared=mmap.mmap(-1, PAGE))
        made.vm.set_memory_attributes(4 * MIB + PAGE, PAGE, private=True)
        edge = 4 * MIB + PAGE - 2
        (found,) = made.run(STORE + HLT, rdi=edge)
        assert found == MemoryFault(errno.EFAULT, 8, 4 * MIB + PAGE, PAGE)
        assert made.vm.create_vcpu().read(edge, 2) == bytes(2)


def test_instructions_with_several_accesses(guest: Machine) -> None:
    """xchg; rep movsd; cmpsd of two words of one page; add to memory; push and pop."""
    assert guest.run("8707 e710" + LOAD + HLT, rdi=GPA, rax=7) == said(0, 7)
    vcpu = guest.vm.create_vcpu()
    vcpu.write(GPA, b"abcdefghijkl")
    guest.run("f3a5" + HLT, rsi=GPA, rdi=GPA + PAGE, rcx=3)
    assert vcpu.read(GPA + PAGE, 12) == b"abcdefghijkl"
    # cmpsd; sete al; movzx eax, al; out 0x10, eax
    same = "a7 0f94c0 0fb6c0 e710"
    vcpu.write(GPA, b"samesamediff")
    assert guest.run(same + HLT, rsi=GPA, rdi=GPA + 4) == said(1)
    assert guest.run(same + HLT, rsi=GPA, rdi=GPA + 8) == said(0)
    vcpu.write(GPA, b"\5\0\0\0")
    assert guest.run("0107" + LOAD + HLT, rdi=GPA, rax=3) == said(8)
    # push rdi; pop rax; out 0x10, eax
    assert guest.run("57 58 e710 f4", rsp=GPA + PAGE, rdi=9) == said(9)
    assert vcpu.read(GPA + PAGE - 8, 8) == b"\t" + bytes(7)


def test_a_file_that_serves_all_of_a_slot() -> None:
    """GUEST_MEMFD_FLAG_MMAP, for a VM without private memory."""
    with machine(GuestMemfdShared(), protected=False) as made:
        made.shared[:4] = b"\x33\0\0\0"
        assert made.run(LOAD + STORE + LOAD + HLT, rdi=GPA) == said(0, 42)
        assert made.shared[:4] == b"\x33\0\0\0"


# --- exits ----------------------------------------------------------------------------


def test_an_exit_is_precise_and_the_next_run_repeats_the_instruction() -> None:
    with machine(V8()) as made:
        made.private(0, private=False)
        cpu = made.cpu(STORE + LOAD + HLT, rdi=GPA)
        for _ in range(2):
            assert cpu.run() == MemoryFault(0, 1, GPA, PAGE)
            assert (cpu["rip"], cpu["rax"]) == (CODE, 0)
        made.private(0)
        assert to_the_end(cpu) == said(42)


def test_a_read_and_write_that_exits_at_its_write_has_not_read(
    guest: Machine,
) -> None:
    """The page becomes shared and read-only between the read and the write: MMIO."""
    guest.vm.set_user_memory_region(
        2, 4 * MIB, PAGE, shared=mmap.mmap(-1, PAGE), flags=2
    )
    found = guest.run("8707 e710 f4", rdi=4 * MIB, rax=7)
    assert found == [MmioWrite(4 * MIB, b"\7\0\0\0"), *said(0)]


def test_a_device_is_read_again_with_its_answer(guest: Machine) -> None:
    assert guest.run(LOAD + HLT, rdi=HOLE) == [
        MmioRead(HOLE, 4),
        *said(0x5A5A5A5A),
    ]
    assert guest.run(STORE + HLT, rdi=HOLE) == [MmioWrite(HOLE, b"*\0\0\0"), Halt()]
    # cmpsd of two of its registers.
    found = guest.run("a7 f4", rsi=HOLE, rdi=HOLE + 4)
    assert sorted(map(str, found[:2])) == sorted(
        map(str, [MmioRead(HOLE, 4), MmioRead(HOLE + 4, 4)])
    )
    assert found[2:] == [Halt()]


def test_memory_then_a_device_in_one_access(guest: Machine) -> None:
    edge = GPA + MIB - 2
    guest.private(0, MIB // PAGE, private=False)
    guest.shared[-2:] = b"\x11\x22"
    assert guest.run(LOAD + HLT, rdi=edge) == [
        MmioRead(GPA + MIB, 2),
        *said(0x5A5A2211),
    ]


def test_ports(guest: Machine) -> None:
    # in eax, dx; out 0x10, eax; in al, 0x12; out 0x11, al
    found = guest.run("ed e710 e412 e611 f4", rdx=0x99, rax=0)
    assert found == [
        PortIn(0x99, 4),
        *said(0x5A5A5A5A)[:1],
        PortIn(0x12, 1),
        PortOut(0x11, b"\x5a"),
        Halt(),
    ]


def test_strings_of_ports_use_the_shared_half(guest: Machine) -> None:
    """KVM itself reads and writes the strings, and does not check the attribute."""
    guest.shared[:8] = b"abcdefgh"
    guest.vm.create_vcpu().write(GPA, b"private!")
    # rep outsd
    found = guest.run("f36f f4", rsi=GPA, rdx=0x11, rcx=2)
    assert found == [PortOut(0x11, b"abcd"), PortOut(0x11, b"efgh"), Halt()]
    assert guest.run("6d f4", rdi=GPA, rdx=0x12) == [PortIn(0x12, 4), Halt()]
    assert guest.shared[:8] == b"\x5a\x5a\x5a\x5aefgh"
    assert guest.vm.create_vcpu().read(GPA, 8) == b"private!"
    assert guest.run("f36f f4", rsi=GPA, rdx=0x11, rcx=0) == [Halt()]


def test_where_kvm_finds_nothing_mapped_there_is_a_device(guest: Machine) -> None:
    assert guest.run("6f f4", rsi=HOLE, rdx=0x11) == [
        MmioRead(HOLE, 4),
        PortOut(0x11, ANSWER[:4]),
        Halt(),
    ]
    assert guest.run("6d f4", rdi=HOLE, rdx=0x12) == [
        PortIn(0x12, 4),
        MmioWrite(HOLE, ANSWER[:4]),
        Halt(),
    ]


def test_hypercalls(guest: Machine) -> None:
    """KVM_HC_MAP_GPA_RANGE, vmmcall and vmcall; -1000 is ENOSYS."""
    for opcode in ("0f01d9", "0f01c1"):
        code = f"{opcode} e710 f4"
        registers: dict[str, Any] = {"rax": 12, "rbx": GPA, "rcx": 1, "rdx": 8}
        assert guest.run(code, **registers) == said(0x100000000 - 1000)
        cpu = guest.cpu(code, **registers)
        cpu.hypercalls.add(12)
        assert cpu.run() == Hypercall(12, (GPA, 1, 8))
        cpu.answer(bytes(8))
        assert to_the_end(cpu) == said(0)


@pytest.mark.parametrize(
    ("gpa", "pages"), [(GPA + 1, 1), (GPA, 0), (GPA, (1 << 64) - 1)]
)
def test_a_hypercall_for_a_bad_range(guest: Machine, gpa: int, pages: int) -> None:
    """kvm_emulate_hypercall(): also where the gfns would wrap."""
    cpu = guest.cpu("0f01d9 e710 f4", rax=12, rbx=gpa, rcx=pages, rdx=8)
    cpu.hypercalls.add(12)
    assert to_the_end(cpu) == said(0x100000000 - 22)


def test_no_shared_half() -> None:
    with machine() as made:
        made.vm.set_user_memory_region(2, 4 * MIB, PAGE, shared=0)
        found = made.run(LOAD + HLT, rdi=4 * MIB)
        assert found == [OtherExit(errno.EFAULT, "KVM_EXIT_UNKNOWN")]


def test_an_instruction_that_is_none(guest: Machine) -> None:
    assert guest.run("0f0b") == [OtherExit(0, "KVM_EXIT_SHUTDOWN")]


# --- bounds ---------------------------------------------------------------------------


def test_a_guest_that_never_exits_is_stopped(guest: Machine) -> None:
    cpu = guest.cpu("ebfe")
    with pytest.raises(GuestLimitError, match="run 500 instructions"):
        cpu.run(instructions=500)
    with pytest.raises(GuestLimitError, match=r"run for 0\.01 s without an exit"):
        cpu.run(instructions=None, seconds=0.01)
    assert cpu["rip"] == CODE


def test_a_guest_that_never_exits_can_be_interrupted(guest: Machine) -> None:
    """At any signal an instruction has been executed as a whole or not at all."""
    # inc dword [rdi]; mov eax, [rdi]; jmp
    code = bytes.fromhex("ff07 8b07 ebfa")
    guest.low[CODE : CODE + len(code)] = code
    accesses = due = 0

    def interrupt(gpa: int) -> None:
        nonlocal accesses
        accesses += 1
        if accesses == due:
            signal.raise_signal(signal.SIGINT)

    cpu = Cpu(guest.vm.create_vcpu(), private=interrupt)
    cpu["rdi"] = GPA
    cpu.start(CODE)
    counted = 0
    for due in range(1, 40):
        accesses = 0
        with pytest.raises(KeyboardInterrupt):
            cpu.run(instructions=None, seconds=None)
        assert cpu["rip"] in (CODE, CODE + 2, CODE + 4)
        count = int.from_bytes(guest.vm.create_vcpu().read(GPA, 4), "little")
        assert 0 <= count - counted <= due
        counted = count
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # It goes on where it was.
    due = 0
    with pytest.raises(GuestLimitError, match="30 instructions"):
        cpu.run(instructions=30)
    assert guest.vm.create_vcpu().read(GPA, 4) == (counted + 10).to_bytes(4, "little")


def test_a_page_converted_to_and_fro_is_read_whole(guest: Machine) -> None:
    """A guest runs in a thread, and a VMM converts the page meanwhile."""
    guest.vm.create_vcpu().write(GPA, b"\x11\0\0\0")
    guest.shared[:4] = b"\x22\0\0\0"
    cpu = guest.cpu(LOAD + "ebfa", rdi=GPA)
    seen: set[object] = set()
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            found = cpu.run(instructions=None, seconds=None)
            seen.add(found.data if isinstance(found, PortOut) else type(found))

    thread = threading.Thread(target=spin)
    thread.start()
    for index in range(100):
        guest.private(0, private=bool(index % 2))
    stop.set()
    thread.join()
    assert seen <= {b"\x11\0\0\0", b"\x22\0\0\0", MemoryFault}


def test_unknown_registers(guest: Machine) -> None:
    with pytest.raises(KeyError, match="no register 'rzx'"):
        guest.cpu(HLT, rzx=1)


@pytest.mark.parametrize("missing", ["unicorn", "unicorn.x86_const"])
def test_without_unicorn_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with machine() as made, pytest.raises(GuestUnavailableError) as caught:
        made.cpu(HLT)
    assert str(caught.value) == (
        "guests of machine code need the package unicorn: pip install 'inaccfs[guest]'"
    )
