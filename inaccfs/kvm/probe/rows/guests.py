"""What a guest reads in a slot with a file: fresh, written, punched, moved."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe import guest
from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import PAGES, SIZE, T
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("guest")

# The gpa of a device that answers each byte with 0x5a; there is no slot.
_HOLE: Final = 8 * T


@ROWS.row("A page that nobody wrote: its first word, and all of another page, or-ed.")
def fresh(machine: Machine) -> Iterator[object]:
    machine.memory(fill=0xAA)
    yield machine.read()
    yield machine.or_page(T + PAGE_SIZE)


@ROWS.row("A read allocates: pages of the file, and what is mapped, before and after.")
def read_allocates(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.mapped()
    yield machine.cached(fd)
    yield machine.read()
    yield machine.cached(fd)
    yield machine.mapped()


@ROWS.row("Write a word, and read it.")
def write(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.write(T, 0x11223344)
    yield machine.read()


@ROWS.row("Write one byte, two and four, and read each with another width.")
def widths(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.write(T, 0x11223344)
    yield machine.read(T, 1)
    yield machine.read(T + 1, 2)
    yield machine.write(T + 3, 0x99, 1)
    yield machine.write(T, 0x5566, 2)
    yield machine.read()


@ROWS.row("A write of four bytes across two pages, and a read of each page.")
def straddling(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.write(T + PAGE_SIZE - 2, 0x11223344)
    yield machine.read(T + PAGE_SIZE - 2)
    yield machine.read(T + PAGE_SIZE - 4)
    yield machine.read(T + PAGE_SIZE)
    yield machine.cached(fd)


@ROWS.row("Exchange a word by a locked instruction, and read it.")
def exchange(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.write(T, 0x11)
    yield machine.run(guest.Exchange(T, 0x22))
    yield machine.read()


@ROWS.row("Copy 2048 words from two pages to two others, and read the last one.")
def copy(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.write(T + 2 * PAGE_SIZE - 4, 0x11223344)
    yield machine.run(guest.Copy(T, T + 4 * PAGE_SIZE, 2048))
    yield machine.read(T + 6 * PAGE_SIZE - 4)
    yield machine.cached(fd)


@ROWS.row("The last page of a slot, and its last word.")
def last_page(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.write(T + SIZE - 4, 0x11)
    yield machine.read(T + SIZE - 4)


@ROWS.row("Pages are allocated by fallocate(2), read, written, allocated again, read.")
def allocated_before(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.allocate(fd, 0, 4)
    yield machine.mapped()
    yield machine.read()
    yield machine.write(T, 0x42)
    yield machine.allocate(fd, 0, 4)
    yield machine.read()
    yield machine.cached(fd)
    yield machine.mapped()


@ROWS.row("The guest writes code into the slot, and executes it.")
def execute(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.write(T + PAGE_SIZE, 0x11)
    yield machine.write_code(T, guest.Read(T + PAGE_SIZE))
    yield machine.run(guest.Jump(T))


@ROWS.row("Code of the slot is punched under a guest that comes back to it.")
def execute_punched(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    for value in (0x11, 0x22):
        yield machine.write_code(T, guest.Write(T + PAGE_SIZE, value))
        yield machine.run(guest.Jump(T))
        yield machine.read(T + PAGE_SIZE)
        yield machine.punch(fd)


@ROWS.row("A slot of 2 MiB, aligned: pages of 4 KiB and of 2 MiB that are mapped.")
def huge(machine: Machine) -> Iterator[object]:
    machine.memory(512, gpa=2 << 20)
    yield machine.write(2 << 20, 0x11)
    yield machine.write((2 << 20) + PAGE_SIZE, 0x11)
    yield machine.mapped()
    yield f"{machine.vm.stat('pages_2m')} of 2 MiB"


# --- punched --------------------------------------------------------------------------


@ROWS.row("A page that the guest wrote is punched: what it reads then.")
def punch(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.write(T, 0x11)
    yield machine.punch(fd)
    yield machine.read()


@ROWS.row(
    "One of three pages is punched: pages of the file, mapped ones, all three read."
)
def punch_neighbours(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    for page in range(3):
        machine.write(T + page * PAGE_SIZE, 0x10 + page)
    yield machine.cached(fd)
    yield machine.mapped()
    yield machine.punch(fd, 1)
    yield machine.cached(fd)
    yield machine.mapped()
    for page in range(3):
        yield machine.read(T + page * PAGE_SIZE)
    yield machine.mapped()


@ROWS.row("All of the file is punched: pages of the file, mapped ones, what is read.")
def punch_all(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    for page in range(3):
        machine.write(T + page * PAGE_SIZE, 0x10 + page)
    yield machine.punch(fd, 0, PAGES)
    yield machine.cached(fd)
    yield machine.mapped()
    yield machine.read()


@ROWS.row("A page is punched that was never there, and one that is not in the slot.")
def punch_nothing(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    half = machine.host_half(fd)
    yield machine.region(fd=fd, at=half.address, size=8 * PAGE_SIZE)
    yield from machine.to_private_if_possible(T, 8)
    yield machine.write(T, 0x11)
    yield machine.mapped()
    yield machine.punch(fd, 3)
    yield machine.punch(fd, 12)
    yield machine.mapped()
    yield machine.read()


@ROWS.row("A slot at an offset in its file: punch file page 5 and file pages 0 to 3.")
def punch_offset(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    address = machine.host_half(fd).address + 4 * PAGE_SIZE
    yield machine.region(fd=fd, at=address, offset=4 * PAGE_SIZE, size=8 * PAGE_SIZE)
    yield from machine.to_private_if_possible(T, 8)
    for page in range(8):
        machine.write(T + page * PAGE_SIZE, 0x20 + page)
    yield machine.punch(fd, 5)
    yield machine.read(T)
    yield machine.read(T + PAGE_SIZE)
    yield machine.read(T + 5 * PAGE_SIZE)
    yield machine.punch(fd, 0, 4)
    yield machine.read(T)


@ROWS.row("Write, punch and read a page 200 times: how often it was not zeros.")
def punch_often(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    wrong = 0
    for _ in range(200):
        machine.write(T, 0x11)
        machine.punch(fd)
        wrong += machine.read() != "read 0x0"
    yield wrong


# --- several slots and files ----------------------------------------------------------


@ROWS.row("Two slots of one file: pages 7 and 8, one in each, are punched.")
def two_slots(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    address = machine.host_half(fd).address
    half = 8 * PAGE_SIZE
    yield machine.region(1, gpa=T, size=half, at=address, fd=fd)
    at = address + half
    yield machine.region(2, gpa=2 * T, size=half, at=at, offset=half, fd=fd)
    yield from machine.to_private_if_possible(T, 8)
    yield from machine.to_private_if_possible(2 * T, 8)
    gpas = (T, T + 7 * PAGE_SIZE, 2 * T, 2 * T + PAGE_SIZE)
    for value, gpa in enumerate(gpas, 1):
        machine.write(gpa, value)
    yield machine.punch(fd, 7, 2)
    for gpa in gpas:
        yield machine.read(gpa)


@ROWS.row("Two VMs, each with a file: write in each, punch the first, read each.")
def two_vms(machine: Machine) -> Iterator[object]:
    other = machine.another()
    fd, _ = machine.memory()
    other.memory()
    yield machine.write(T, 0xA)
    yield other.read()
    yield other.write(T, 0xB)
    yield machine.read()
    yield machine.punch(fd)
    yield other.read()
    yield machine.read()


@ROWS.row("The slot is deleted, and one at another gpa gets the file: what is in it.")
def moved_slot(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.write(T, 0x77)
    yield machine.delete()
    yield machine.region(gpa=2 * T, fd=fd, at=half.address)
    yield from machine.to_private_if_possible(2 * T, PAGES)
    yield machine.read(2 * T)
    yield machine.read(T)


@ROWS.row("The slot is deleted and made again: what is in it.")
def slot_again(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.write(T, 0x77)
    yield machine.delete()
    yield machine.region(fd=fd, at=half.address)
    yield machine.read()


@ROWS.row("The slot is deleted: what is mapped, and what the file has.", private=True)
def deleted_slot_zaps(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.write(T, 0x77)
    yield machine.mapped()
    yield machine.delete()
    yield machine.mapped()
    yield machine.cached(fd)


@ROWS.row("The slot is deleted: read, write, and a page that was never used.")
def deleted_slot(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.write(T, 0x77)
    yield machine.delete()
    yield machine.read()
    yield machine.write()
    yield machine.read(T + PAGE_SIZE)


@ROWS.row("The slot ends before its file: its last page, and the one after it.")
def slot_end(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    half = machine.host_half(fd)
    yield machine.region(fd=fd, at=half.address, size=8 * PAGE_SIZE)
    yield from machine.to_private_if_possible(T, PAGES)
    yield machine.read(T + 7 * PAGE_SIZE)
    yield machine.read(T + 8 * PAGE_SIZE)
    yield machine.cached(fd)


@ROWS.row("A read of four bytes across the slot's end.")
def straddling_slot_end(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield from machine.to_private_if_possible(T, PAGES + 1)
    yield machine.read(T + SIZE - 2)


@ROWS.row("No slot: read, write of one byte, write of four.")
def no_slot(machine: Machine) -> Iterator[object]:
    yield machine.read(_HOLE)
    yield machine.write(_HOLE + 4, 0x12, 1)
    yield machine.write(_HOLE, 0x1234)


@ROWS.row("A plain slot: read, write, and what the VMM finds.")
def plain_slot(machine: Machine) -> Iterator[object]:
    half = machine.plain()
    yield machine.read()
    yield machine.write(T, 0x44332211)
    yield half.at()


# --- closed ---------------------------------------------------------------------------


@ROWS.row("The file's last descriptor is closed: a read, a write, a page never used.")
def closed_file(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    yield machine.close(fd)
    yield machine.read()
    yield machine.write()
    yield machine.read(T + PAGE_SIZE)


@ROWS.row("The file's last descriptor is closed: what is mapped.", private=True)
def closed_file_zaps(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    yield machine.mapped()
    yield machine.close(fd)
    yield machine.mapped()


@ROWS.row("The file is closed, and its slot deleted and made plain.")
def closed_file_then_plain(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    yield machine.close(fd)
    yield machine.delete()
    yield machine.region(flags=0, at=machine.anonymous(fill=0x44).address)
    if machine.kvm.private:
        yield machine.to_shared(T, PAGES)
    yield machine.read()


@ROWS.row("The file is closed while a duplicate of its descriptor is open.")
def closed_but_dup(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    other = os.dup(fd)
    yield machine.write(T, 0x77)
    yield machine.close(fd)
    yield machine.read()
    yield machine.close(other)
    yield machine.read()


@ROWS.row("The file is closed, and another one's slot takes its gfns.")
def closed_then_another(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    yield machine.close(fd)
    yield machine.delete()
    machine.memory()
    yield machine.read()
