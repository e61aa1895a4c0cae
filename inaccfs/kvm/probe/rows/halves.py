"""The two halves of a slot, the file and userspace_addr: which one is accessed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe import guest
from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import PAGES, T
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.kvmcalls import KVM_MEM_READONLY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("half")


@ROWS.row("No attribute is set: read, pages of the file; then private.", private=True)
def default_attribute(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory(fill=0x33, private=False)
    yield machine.read()
    yield machine.cached(fd)
    yield machine.to_private()
    yield machine.read()
    yield machine.cached(fd)
    yield machine.read(T + PAGE_SIZE)


@ROWS.row("The guest writes private memory: what is at userspace_addr.", private=True)
def private_write(machine: Machine) -> Iterator[object]:
    _, half = machine.memory(fill=0xAA)
    yield machine.write(T, 0x11223344)
    yield half.at()
    half.put(b"\xbb" * 4)
    yield machine.read()


@ROWS.row("Written while shared, made private, written, shared, private.", private=True)
def there_and_back(machine: Machine) -> Iterator[object]:
    _, half = machine.memory(private=False)
    yield machine.write(T, 0x51)
    yield half.at()
    yield machine.to_private()
    yield machine.read()
    yield machine.write(T, 0x9B)
    yield half.at()
    yield machine.to_shared()
    yield machine.read()
    yield machine.to_private()
    yield machine.read()


@ROWS.row(
    "Written while private, shared, punched, private: what is read.", private=True
)
def punch_between(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory(fill=0xAA)
    yield machine.write(T, 0x9B)
    yield machine.to_shared()
    yield machine.punch(fd)
    yield machine.read()
    yield machine.to_private()
    yield machine.read()


@ROWS.row(
    "One page private, its neighbour shared: each is its own half's.", private=True
)
def neighbours(machine: Machine) -> Iterator[object]:
    machine.memory(fill=0xAA, private=False)
    yield machine.to_private(T + PAGE_SIZE)
    yield machine.read()
    yield machine.read(T + PAGE_SIZE)
    yield machine.read(T + 2 * PAGE_SIZE)


@ROWS.row(
    "A word across a private page and a shared one: read, write, read.", private=True
)
def straddling(machine: Machine) -> Iterator[object]:
    _, half = machine.memory(fill=0xAA)
    yield machine.to_shared(T + PAGE_SIZE)
    yield machine.read(T + PAGE_SIZE - 2)
    yield machine.write(T + PAGE_SIZE - 2, 0x11223344)
    yield machine.read(T + PAGE_SIZE - 2)
    yield half.at(1)


@ROWS.row("The guest copies from a shared page to a private one.", private=True)
def copy(machine: Machine) -> Iterator[object]:
    machine.memory(fill=0xAA)
    yield machine.to_shared()
    yield machine.run(guest.Copy(T, T + PAGE_SIZE, 1024))
    yield machine.read(T + 2 * PAGE_SIZE - 4)


@ROWS.row(
    "A page is converted 100 times and written each time: wrong reads.", private=True
)
def often(machine: Machine) -> Iterator[object]:
    machine.memory(private=False)
    written = [0, 0]
    wrong = 0
    for turn in range(100):
        side = turn % 2
        (machine.to_private if side else machine.to_shared)()
        wrong += machine.read() != f"read {written[side]:#x}"
        written[side] = 0x100 + turn
        machine.write(T, written[side])
    yield wrong


@ROWS.row(
    "Private pages of a file are allocated; those of its shared half are not.",
    private=True,
)
def shared_half_allocates_nothing(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory(private=False)
    yield machine.write(T, 0x11)
    yield machine.write(T + PAGE_SIZE, 0x11)
    yield machine.cached(fd)


@ROWS.row("Code in each half of a page: which is executed.", private=True)
def execute(machine: Machine) -> Iterator[object]:
    machine.memory(private=False)
    yield machine.write(T + PAGE_SIZE, 0x11)
    yield machine.write(T + PAGE_SIZE + 4, 0x22)
    yield machine.write_code(T, guest.Read(T + PAGE_SIZE))
    yield machine.to_private()
    yield machine.write_code(T, guest.Read(T + PAGE_SIZE + 4))
    yield machine.run(guest.Jump(T))
    yield machine.to_shared()
    yield machine.run(guest.Jump(T))


# --- a shared half that is missing ----------------------------------------------------


@ROWS.row(
    "userspace_addr 0: read as shared, as private, write, as shared.", private=True
)
def no_shared_half(machine: Machine) -> Iterator[object]:
    yield machine.region(fd=machine.create())
    yield machine.read()
    yield machine.to_private()
    yield machine.read()
    yield machine.write()
    yield machine.to_shared()
    yield machine.read()


@ROWS.row(
    "The VMM unmaps userspace_addr: a private page and a shared one.", private=True
)
def unmapped(machine: Machine) -> Iterator[object]:
    _, half = machine.memory(fill=0x22, private=False)
    yield machine.to_private()
    yield machine.write(T, 0x11)
    yield machine.read(T + PAGE_SIZE)
    half.unmap(0, PAGES)
    yield machine.read()
    yield machine.read(T + PAGE_SIZE)
    yield machine.to_private(T + PAGE_SIZE)
    yield machine.read(T + PAGE_SIZE)


@ROWS.row(
    "MADV_DONTNEED of userspace_addr: a private page and a shared one.", private=True
)
def discarded(machine: Machine) -> Iterator[object]:
    _, half = machine.memory(fill=0x22, private=False)
    yield machine.to_private()
    yield machine.write(T, 0x11)
    yield machine.read(T + PAGE_SIZE)
    half.discard()
    yield machine.read()
    yield machine.read(T + PAGE_SIZE)


# --- what KVM accesses itself ---------------------------------------------------------


@ROWS.row("OUTS from a private page: which half KVM reads.", private=True)
def outs(machine: Machine) -> Iterator[object]:
    machine.memory(fill=0xAA)
    yield machine.write(T, 0x11223344)
    yield machine.run(guest.Outs(T))


@ROWS.row("INS to a private page: which half KVM writes.", private=True)
def ins(machine: Machine) -> Iterator[object]:
    _, half = machine.memory(fill=0xAA)
    yield machine.write(T, 0x11223344)
    yield machine.run(guest.Ins(T))
    yield machine.read()
    yield half.at()


@ROWS.row("OUTS from a private page never used: does that allocate it.", private=True)
def outs_allocates(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory(fill=0xAA)
    yield machine.run(guest.Outs(T))
    yield machine.cached(fd)


@ROWS.row("OUTS from a private page where userspace_addr is 0.", private=True)
def outs_no_shared_half(machine: Machine) -> Iterator[object]:
    yield machine.region(fd=machine.create())
    yield machine.to_private()
    yield machine.write(T, 0x11)
    yield machine.run(guest.Outs(T))


@ROWS.row(
    "Code in a private page writes to a device; at userspace_addr it is an exchange.",
    private=True,
)
def code_of_mmio(machine: Machine) -> Iterator[object]:
    _, half = machine.memory()
    device = 8 * T
    # Up to the access itself, both are the same instructions.
    half.put(machine.vcpu.code([guest.Exchange(device, 0x11)]))
    yield machine.write_code(T, guest.Write(device, 0x11))
    yield machine.run(guest.Jump(T))


# --- a file that is mapped ------------------------------------------------------------


@ROWS.row(
    "userspace_addr maps the file: the VMM writes, the guest reads.",
    mappable=True,
)
def mapped_host_writes(machine: Machine) -> Iterator[object]:
    _, half = machine.memory()
    half.put(b"\1\2\3\4")
    yield machine.read()


@ROWS.row(
    "userspace_addr maps the file: the guest writes, the VMM reads.",
    mappable=True,
)
def mapped_guest_writes(machine: Machine) -> Iterator[object]:
    _, half = machine.memory()
    yield machine.write(T, 0x55)
    yield half.at()


@ROWS.row(
    "userspace_addr maps the file, which is punched: both read.",
    mappable=True,
)
def mapped_punch(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.write(T, 0x55)
    yield machine.punch(fd)
    yield half.at()
    yield machine.read()


@ROWS.row(
    "userspace_addr is not the file's mapping: which is read.",
    mappable=True,
)
def mapped_elsewhere(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    machine.host_half(fd).put(b"\x0f" * 4)
    yield machine.region(fd=fd, at=machine.anonymous(fill=0xAA).address)
    yield machine.read()
    yield machine.run(guest.Outs(T))


@ROWS.row("userspace_addr is 0, and the file could be mapped.", mappable=True)
def mapped_nowhere(machine: Machine) -> Iterator[object]:
    yield machine.region(fd=machine.create())
    yield machine.read()
    yield machine.write(T, 0x11)
    yield machine.read()


# --- plain slots ----------------------------------------------------------------------


@ROWS.row("A plain slot is made private, and shared again.", private=True)
def plain_made_private(machine: Machine) -> Iterator[object]:
    machine.plain()
    yield machine.read()
    yield machine.to_private()
    yield machine.read()
    yield machine.write()
    yield machine.to_shared()
    yield machine.read()


@ROWS.row("A read-only plain slot: write, then private: read, write.", private=True)
def readonly_made_private(machine: Machine) -> Iterator[object]:
    half = machine.anonymous(fill=0x33)
    yield machine.region(flags=KVM_MEM_READONLY, at=half.address)
    yield machine.write(T, 1)
    yield machine.to_private()
    yield machine.read()
    yield machine.write(T, 1)
