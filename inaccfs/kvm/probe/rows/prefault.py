"""KVM_PRE_FAULT_MEMORY: checks, partial success, and the rest in the struct."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import END, PAGES, SIZE, T
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.kvmcalls import KVM_MEM_READONLY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.probe.asking import Steps
    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("prefault")

_FAR: Final = 8 * T

# gpa, size, flags
_CALLS: Final[dict[str, tuple[str, tuple[int, int, int]]]] = {
    "page": ("A page of the slot.", (T, PAGE_SIZE, 0)),
    "slot": ("All of the slot.", (T, SIZE, 0)),
    "gpa-off-by-1": ("gpa plus 1.", (T + 1, PAGE_SIZE, 0)),
    "size-0": ("size 0.", (T, 0, 0)),
    "size-1": ("size 1.", (T, 1, 0)),
    "size-4095": ("size 4095.", (T, PAGE_SIZE - 1, 0)),
    "wraps": (
        "gpa and size add up to more than 2^64.",
        (END - PAGE_SIZE, 2 * PAGE_SIZE, 0),
    ),
    "ends-at-2-64": ("gpa and size add up to 2^64.", (END - PAGE_SIZE, PAGE_SIZE, 0)),
    "flags-1": ("flags 1.", (T, PAGE_SIZE, 1)),
    "flags-63": ("flags 1<<63.", (T, PAGE_SIZE, 1 << 63)),
    "two-mistakes": ("flags 1 and no slot.", (_FAR, PAGE_SIZE, 1)),
    "no-slot": ("No slot.", (_FAR, PAGE_SIZE, 0)),
    "gpa-2-52": ("A gpa that no CPU has.", (1 << 52, PAGE_SIZE, 0)),
    "across-end": (
        "8 pages of the slot, and 8 after it.",
        (T + 8 * PAGE_SIZE, SIZE, 0),
    ),
    "after-end": ("The page after the slot.", (T + SIZE, PAGE_SIZE, 0)),
    "across-begin": (
        "The page before the slot, and its first.",
        (T - PAGE_SIZE, 2 * PAGE_SIZE, 0),
    ),
}


def _call(arguments: tuple[int, int, int]) -> Steps:
    def steps(machine: Machine) -> Iterator[object]:
        machine.memory()
        yield machine.pre_fault(*arguments)

    return steps


for _name, (_sentence, _arguments) in _CALLS.items():
    ROWS.add(_name, _sentence, _call(_arguments))


@ROWS.row("4 pages, and again: pages of the file and mapped ones each time, then read.")
def maps(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.mapped()
    for _ in range(2):
        yield machine.pre_fault(T, 4 * PAGE_SIZE)
        yield machine.cached(fd)
        yield machine.mapped()
    yield machine.read()


@ROWS.row(
    "A private, a shared and a private page: pages of the file, mapped ones.",
    private=True,
)
def mixed(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory(private=False)
    machine.to_private(T)
    machine.to_private(T + 2 * PAGE_SIZE)
    yield machine.pre_fault(T, 3 * PAGE_SIZE)
    yield machine.cached(fd)
    yield machine.mapped()


@ROWS.row("Shared pages of a slot with a file.", private=True)
def shared(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory(private=False)
    yield machine.pre_fault(T, 2 * PAGE_SIZE)
    yield machine.cached(fd)
    yield machine.mapped()


@ROWS.row("A plain slot.")
def plain(machine: Machine) -> Iterator[object]:
    machine.plain()
    yield machine.pre_fault(T, 2 * PAGE_SIZE)
    yield machine.mapped()


@ROWS.row("A read-only plain slot; then the guest reads and writes.")
def plain_readonly(machine: Machine) -> Iterator[object]:
    half = machine.anonymous(fill=0x33)
    yield machine.region(flags=KVM_MEM_READONLY, at=half.address)
    yield machine.pre_fault(T, 2 * PAGE_SIZE)
    yield machine.mapped()
    yield machine.read()
    yield machine.write(T, 1)


@ROWS.row("A plain slot that is private.", private=True)
def plain_private(machine: Machine) -> Iterator[object]:
    machine.plain()
    machine.to_private(T, PAGES)
    yield machine.pre_fault(T, 2 * PAGE_SIZE)


@ROWS.row("A plain slot whose second page is private: partial success.", private=True)
def plain_partly_private(machine: Machine) -> Iterator[object]:
    machine.plain()
    machine.to_private(T + PAGE_SIZE)
    yield machine.pre_fault(T, 2 * PAGE_SIZE)
    yield machine.pre_fault(T + PAGE_SIZE, PAGE_SIZE)


@ROWS.row("Private gfns without a slot.", private=True)
def private_no_slot(machine: Machine) -> Iterator[object]:
    machine.to_private()
    yield machine.pre_fault()


@ROWS.row("userspace_addr 0, shared; then private.", private=True)
def no_shared_half(machine: Machine) -> Iterator[object]:
    machine.region(fd=machine.create())
    yield machine.pre_fault()
    machine.to_private()
    yield machine.pre_fault()


@ROWS.row("The file is closed.", private=True)
def closed_file(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    machine.close(fd)
    yield machine.pre_fault(T, 4 * PAGE_SIZE)


@ROWS.row(
    "The file is closed, and the first page is shared: partial success.", private=True
)
def closed_file_partly_shared(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    machine.to_shared()
    machine.close(fd)
    yield machine.pre_fault(T, 4 * PAGE_SIZE)


@ROWS.row(
    "4 pages; punch one, convert one: pages of the file and mapped ones.", private=True
)
def punched_after(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.pre_fault(T, 4 * PAGE_SIZE)
    yield machine.punch(fd)
    yield machine.cached(fd)
    yield machine.mapped()
    yield machine.to_shared(T + PAGE_SIZE)
    yield machine.cached(fd)
    yield machine.mapped()


@ROWS.row("A page that the guest wrote is pre-faulted: what it reads.")
def written(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.write(T, 0x77)
    yield machine.pre_fault()
    yield machine.read()


@ROWS.row("Across two slots that adjoin.", private=True)
def two_slots(machine: Machine) -> Iterator[object]:
    machine.memory(4)
    machine.memory(4, T + 4 * PAGE_SIZE, slot=2)
    yield machine.pre_fault(T, 8 * PAGE_SIZE)
    yield machine.mapped()


@ROWS.row("After an exit: pre-fault changes nothing about it.", private=True)
def after_exit(machine: Machine) -> Iterator[object]:
    machine.plain()
    machine.to_private()
    yield machine.read()
    yield machine.pre_fault()
    yield machine.resume()
