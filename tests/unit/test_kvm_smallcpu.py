"""The CPU of the rows' guests does what unicorn does, even if an access exits."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from inaccfs.kvm import Cpu
from inaccfs.kvm.probe import guest
from inaccfs.kvm.probe.assembler import LONG, assemble
from inaccfs.kvm.probe.protocol import AbsentError, Exit
from inaccfs.kvm.smallcpu import SmallCpu
from tests.unit.kvm_code import CODE, GPA, HOLE, machine, to_the_end
from tests.unit.kvm_guests import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inaccfs.kvm.cpubase import CpuBase
    from inaccfs.kvm.probe.guest import Operation

# Four private pages, four shared ones, and then four that are private without a slot.
T: Final = GPA
SHARED: Final = T + 4 * PAGE
NONE: Final = T + 8 * PAGE

PROGRAMS: Final[dict[str, Sequence[Operation]]] = {
    "widths": [
        guest.Write(T, 0x11223344),
        *(guest.Read(T, width) for width in (1, 2, 4)),
        guest.Write(T + 1, 0x99, 1),
        guest.Write(T + 2, 0x5566, 2),
        guest.Read(T),
    ],
    "exchange": [guest.Write(T, 1), guest.Exchange(T, 2), guest.Read(T)],
    "all of a page": [guest.Write(T + PAGE - 4, 0x80), guest.OrPage(T)],
    "copy": [
        guest.Write(T + 64, 7),
        guest.Copy(T, T + PAGE, 20),
        guest.Read(T + PAGE + 64),
    ],
    "copy into an exit": [guest.Copy(T, NONE - 8, 4)],
    "across halves": [guest.Write(SHARED - 2, 0x11223344), guest.Read(SHARED - 2)],
    "an exit": [guest.Read(T), guest.Write(NONE, 1), guest.Read(T)],
    "an exit across pages": [guest.Write(NONE - 2, 1)],
    "mmio": [guest.Read(HOLE), guest.Write(HOLE, 5, 2), guest.Exchange(HOLE, 3)],
    "ports": [guest.Outs(SHARED), guest.Ins(SHARED), guest.Read(SHARED)],
    "hypercall": [guest.CallHypervisor(12, (T, 1, 0)), guest.Start()],
    "spin": [guest.Write(T, 1), guest.SpinWhile(T, 2), guest.SpinWhile(T, 0)],
    "spin, writing": [guest.SpinWriting(HOLE, 0x11)],
    "jump to nothing": [guest.Jump(HOLE)],
}


@contextmanager
def cpu(small: bool, program: Sequence[Operation]) -> Iterator[CpuBase]:
    """A CPU that begins with *program*."""
    with machine(pages=8, private=4) as it:
        it.private((NONE - T) // PAGE, 4)
        code = assemble(program, LONG)
        it.low[CODE : CODE + len(code)] = code
        vcpu = it.vm.create_vcpu()
        made = SmallCpu(vcpu) if small else Cpu(vcpu)
        made.start(CODE)
        yield made


def exits(small: bool, program: Sequence[Operation]) -> list[Exit]:
    with cpu(small, program) as made:
        made.hypercalls = {12}
        return to_the_end(made)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_does_what_unicorn_does(name: str) -> None:
    pytest.importorskip("unicorn")
    program = PROGRAMS[name]
    assert exits(small=True, program=program) == exits(small=False, program=program)


def test_registers_have_parts() -> None:
    with cpu(small=True, program=[]) as made:
        made["rax"] = 0x1122334455667788
        assert (made["eax"], made["ax"], made["al"]) == (0x55667788, 0x7788, 0x88)
        made["al"] = 1
        assert made["rax"] == 0x1122334455667701
        made["eax"] = 2
        assert made["rax"] == 2


def test_what_it_does_not_know_it_says() -> None:
    with (
        cpu(small=True, program=[guest.Jump(SHARED)]) as made,
        pytest.raises(AbsentError, match="unicorn, for the instruction 0000"),
    ):
        made.run()
