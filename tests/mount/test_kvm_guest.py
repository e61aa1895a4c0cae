"""`Guest`: machine code and functions on a mount, under the rules of each version."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.kvm import Guest, GuestLimitError, GuestUnavailableError
from inaccfs.kvm.probe.protocol import (
    Exit,
    Halt,
    MemoryFault,
    MmioRead,
    PortIn,
    PortOut,
)
from inaccfs.syscalls import PUNCH, fallocate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm import Vcpu

pytestmark = pytest.mark.fuse

PAGE = 4096
STORE = bytes.fromhex("c7072a000000")  # mov dword [rdi], 42
LOAD = bytes.fromhex("8b07 e710")  # mov eax, [rdi]; out 0x10, eax
END = b"\xf4"  # hlt


def said(value: int) -> list[Exit]:
    return [PortOut(0x10, value.to_bytes(4, "little")), Halt()]


@pytest.fixture(params=["v8", "guest_memfd-6.12"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with (
        inaccfs.mounted(size="16m", semantics=request.param) as mount,
        inaccfs.connect(mount.path) as shim,
        Guest(shim) as made,
    ):
        yield made


def test_code_and_functions_share_private_memory(guest: Guest) -> None:
    assert guest.run(STORE + LOAD + END, rdi=guest.gpa) == said(42)
    assert guest.run(lambda vcpu: vcpu.read(guest.gpa, 4)) == b"*\0\0\0"
    assert guest.shared[:4] == bytes(4)
    assert guest.vm.spte(guest.gpa // PAGE) is not None
    fallocate(guest.fd, PUNCH, 0, PAGE)
    assert guest.vm.spte(guest.gpa // PAGE) is None
    assert guest.run(LOAD + END, rdi=guest.gpa) == said(0)


def test_the_vmm_converts_for_both(guest: Guest) -> None:
    """Both access private memory as shared; a function says so itself."""

    def write(vcpu: Vcpu) -> str:
        vcpu.write(guest.gpa, b"host", private=False)
        return "written"

    assert guest.run(write) == "written"
    assert guest.shared[:4] == b"host"
    gfn = guest.gpa // PAGE
    assert not guest.vm.is_private(gfn)
    # If the guest decides, code accesses the file's pages as private: converted back.
    found = guest.run(LOAD + END, rdi=guest.gpa)
    by_attribute = guest.vm.rules.kvm_access == "attribute"
    assert guest.vm.is_private(gfn) is not by_attribute
    assert found == said(int.from_bytes(b"host", "little") if by_attribute else 0)


def test_exits_are_returned_if_nobody_converts(guest: Guest) -> None:
    guest.vm.set_memory_attributes(8 << 20, PAGE, private=True)
    found = guest.run(LOAD + END, rdi=8 << 20, converts=False)
    if guest.vm.rules.kvm_access == "attribute":
        assert found == [MemoryFault(14, 8, 8 << 20, PAGE)]
    else:
        assert found == [MmioRead(8 << 20, 4), *said(0)]


def test_a_device_answers(guest: Guest) -> None:
    def device(found: Exit) -> bytes:
        return b"port" if isinstance(found, PortIn) else b"mmio"

    # in eax, 0x12; out 0x10, eax
    code = bytes.fromhex("e512 e710") + LOAD + END
    assert guest.run(code, rdi=8 << 20, device=device) == [
        PortIn(0x12, 4),
        PortOut(0x10, b"port"),
        MmioRead(8 << 20, 4),
        PortOut(0x10, b"mmio"),
        Halt(),
    ]


def test_a_closed_file_ends_the_guest_and_not_the_vmm(guest: Guest) -> None:
    """A conversion does not help, so the VMM must not try for ever."""
    os.dup2(os.open("/dev/null", os.O_RDWR), guest.fd)
    if guest.vm.rules.kvm_slot_holds_file:
        assert guest.run(STORE + LOAD + END, rdi=guest.gpa) == said(42)
        return
    found: list[Exit] = []
    while not found or isinstance(found[-1], Halt):
        found = guest.run(STORE + END, rdi=guest.gpa)
    assert found == [MemoryFault(14, 8, guest.gpa, PAGE)]


def test_what_is_wrong_is_said(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GuestLimitError, match="1000 instructions without an exit"):
        guest.run(b"\xeb\xfe", instructions=1000)
    with pytest.raises(KeyError, match="no register 'rzx'"):
        guest.run(END, rzx=1)
    with pytest.raises(ValueError, match="do not fit"):
        guest.run(bytes(1 << 16))
    monkeypatch.setitem(sys.modules, "unicorn", None)
    with pytest.raises(GuestUnavailableError, match=r"pip install 'inaccfs\[guest\]'"):
        guest.run(END)
    assert guest.run(lambda vcpu: vcpu.number) == 0
