"""Existing slots: made again, overlapped, moved, changed, deleted, sharing a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe import words
from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import PAGES, SIZE, T
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.kvmcalls import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("slot")


@ROWS.row("The same call again.")
def again(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.region(fd=fd, at=half.address)


@ROWS.row("Delete, with memory_size 0 and no flags; delete again; create again.")
def delete(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.delete()
    yield machine.delete()
    yield machine.region(fd=fd, at=half.address)


@ROWS.row("Delete with KVM_MEM_GUEST_MEMFD and the descriptor.")
def delete_with_file(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.region(fd=fd, size=0)


@ROWS.row("Delete with KVM_MEM_GUEST_MEMFD and KVM_MEM_READONLY; then as it should be.")
def delete_wrong_flags(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.region(flags=KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY, size=0)
    yield machine.delete()


@ROWS.row("Delete with another guest_phys_addr, and with one that is not aligned.")
def delete_elsewhere(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.region(flags=0, gpa=5 * T + 1, size=0)
    yield machine.region(flags=0, gpa=5 * T, size=0)


@ROWS.row("Change a slot with a file: other flags.")
def change_flags(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    flags = KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES
    yield machine.region(flags=flags, fd=fd, at=half.address)
    yield machine.region(flags=KVM_MEM_LOG_DIRTY_PAGES, at=half.address)


@ROWS.row("Change a slot with a file: no flags, as if it were plain.")
def change_to_plain(machine: Machine) -> Iterator[object]:
    _, half = machine.memory()
    yield machine.region(flags=0, at=half.address)


@ROWS.row("Move a slot with a file, with KVM_MEM_GUEST_MEMFD and without.")
def move(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.region(gpa=2 * T, fd=fd, at=half.address)
    yield machine.region(flags=0, gpa=2 * T, at=half.address)


@ROWS.row("Change a slot with a file: fewer pages, with its flag and without.")
def change_size(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.region(size=SIZE // 2, fd=fd, at=half.address)
    yield machine.region(flags=0, size=SIZE // 2, at=half.address)


@ROWS.row("Change a slot with a file: another file.")
def change_file(machine: Machine) -> Iterator[object]:
    _, half = machine.memory()
    yield machine.region(fd=machine.create(), at=half.address)


@ROWS.row("Change a slot with a file: another userspace_addr, with its flag, without.")
def change_address(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    address = machine.anonymous().address
    yield machine.region(fd=fd, at=address)
    yield machine.region(flags=0, at=address)


@ROWS.row("Give a plain slot a file.")
def add_file(machine: Machine) -> Iterator[object]:
    half = machine.plain()
    yield machine.region(fd=machine.create(), at=half.address)


@ROWS.row(
    "A plain slot: the same call again, moved, with a dirty log, read-only, larger."
)
def plain_changes(machine: Machine) -> Iterator[object]:
    at = machine.plain().address
    yield machine.region(flags=0, at=at)
    yield machine.region(flags=0, gpa=2 * T, at=at)
    yield machine.region(flags=KVM_MEM_LOG_DIRTY_PAGES, gpa=2 * T, at=at)
    yield machine.region(flags=KVM_MEM_READONLY, gpa=2 * T, at=at)
    yield machine.region(flags=0, gpa=2 * T, size=2 * SIZE, at=at)


@ROWS.row("A plain slot is moved over another one's gfns.")
def plain_moved_over(machine: Machine) -> Iterator[object]:
    at = machine.plain().address
    machine.plain(gpa=2 * T, slot=2)
    yield machine.region(flags=0, gpa=2 * T, at=at)


# --- overlaps -------------------------------------------------------------------------


def _second(machine: Machine, gpa: int, pages: int, slot: int = 2) -> str:
    """Make another slot, with another file."""
    fd = machine.create(pages)
    half = machine.host_half(fd, pages)
    return machine.region(slot, gpa=gpa, size=pages * PAGE_SIZE, fd=fd, at=half.address)


@ROWS.row("A slot with the gfns of another one.")
def gfns_same(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield _second(machine, T, PAGES)


@ROWS.row("A slot that begins at the last page of another one.")
def gfns_last_page(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield _second(machine, T + SIZE - PAGE_SIZE, PAGES)


@ROWS.row("A slot that ends with the first page of another one.")
def gfns_first_page(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield _second(machine, T - SIZE + PAGE_SIZE, PAGES)


@ROWS.row("A slot inside the gfns of another one.")
def gfns_inside(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield _second(machine, T + 4 * PAGE_SIZE, 4)


@ROWS.row("A slot around the gfns of another one.")
def gfns_around(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield _second(machine, T - 4 * PAGE_SIZE, PAGES + 8)


@ROWS.row("A plain slot over one with a file.")
def gfns_plain(machine: Machine) -> Iterator[object]:
    machine.memory()
    at = machine.anonymous().address
    yield machine.region(2, 0, T, SIZE, at)


@ROWS.row("Slots right before and right after another one.")
def gfns_beside(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield _second(machine, T - SIZE, PAGES)
    yield _second(machine, T + SIZE, PAGES, slot=3)


def _of_one_file(machine: Machine, *ranges: tuple[int, int]) -> Iterator[str]:
    """Make slots of one file. A range is its first page and the page after its last."""
    fd = machine.create()
    half = machine.host_half(fd)
    for number, (start, end) in enumerate(ranges, 1):
        yield machine.region(
            number,
            gpa=number * T,
            size=(end - start) * PAGE_SIZE,
            at=half.address + start * PAGE_SIZE,
            offset=start * PAGE_SIZE,
            fd=fd,
        )


@ROWS.row("Two slots of all of one file.")
def file_same(machine: Machine) -> Iterator[object]:
    yield from _of_one_file(machine, (0, PAGES), (0, PAGES))


@ROWS.row("Two slots of one file that have a page in common.")
def file_one_page(machine: Machine) -> Iterator[object]:
    yield from _of_one_file(machine, (0, 8), (7, 15))


@ROWS.row("Two slots of one file, the second inside the first.")
def file_inside(machine: Machine) -> Iterator[object]:
    yield from _of_one_file(machine, (0, 8), (3, 4))


@ROWS.row("Two slots of one file, the second around the first.")
def file_around(machine: Machine) -> Iterator[object]:
    yield from _of_one_file(machine, (4, 8), (0, PAGES))


@ROWS.row("Two slots of the two halves of a file.")
def file_beside(machine: Machine) -> Iterator[object]:
    yield from _of_one_file(machine, (0, 8), (8, PAGES))


@ROWS.row("Two slots of all of one file, the second by a duplicate of its descriptor.")
def file_by_dup(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.region(2, gpa=2 * T, fd=os.dup(fd), at=half.address)


@ROWS.row("A slot with the gfns and the pages of the file of another one.")
def both_same(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.region(2, fd=fd, at=half.address)


@ROWS.row("A slot of pages of a file that a deleted slot had.")
def file_after_delete(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield machine.delete()
    yield machine.region(2, gpa=2 * T, fd=fd, at=half.address)


@ROWS.row("Two slots of two files.")
def two_files(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield _second(machine, 2 * T, PAGES)


@ROWS.row(
    "KVM_GET_DIRTY_LOG of a slot with a file, of a plain one without a log, of none."
)
def dirty_log(machine: Machine) -> Iterator[object]:
    machine.memory()
    machine.plain(gpa=2 * T, slot=2)
    for slot in (1, 2, 3):
        yield words.of(machine.vm.get_dirty_log, slot)
