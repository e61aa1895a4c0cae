"""KVM_SET_MEMORY_ATTRIBUTES: every check, and what the ioctl depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import END, LOW, PAGES, T
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.kvmcalls import KVM_MEMORY_ATTRIBUTE_PRIVATE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.probe.asking import Steps
    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("attribute")

_PRIVATE: Final = KVM_MEMORY_ATTRIBUTE_PRIVATE

# gpa, size, attributes, flags
_CALLS: Final[dict[str, tuple[str, tuple[int, int, int, int]]]] = {
    "private": ("Make a page of the slot private.", (T, PAGE_SIZE, _PRIVATE, 0)),
    "shared": ("Make a page of the slot shared, which it is.", (T, PAGE_SIZE, 0, 0)),
    "gpa-off-by-1": ("address plus 1.", (T + 1, PAGE_SIZE, _PRIVATE, 0)),
    "gpa-off-by-2k": ("address plus 2 KiB.", (T + 0x800, PAGE_SIZE, _PRIVATE, 0)),
    "size-0": ("size 0.", (T, 0, _PRIVATE, 0)),
    "size-1": ("size 1.", (T, 1, _PRIVATE, 0)),
    "size-4095": ("size 4095.", (T, PAGE_SIZE - 1, _PRIVATE, 0)),
    "wraps": (
        "address and size add up to more than 2^64.",
        (END - PAGE_SIZE, 2 * PAGE_SIZE, _PRIVATE, 0),
    ),
    "ends-at-2-64": (
        "address and size add up to 2^64.",
        (END - PAGE_SIZE, PAGE_SIZE, _PRIVATE, 0),
    ),
    "ends-a-page-before": (
        "address and size add up to 2^64 less a page.",
        (END - 2 * PAGE_SIZE, PAGE_SIZE, _PRIVATE, 0),
    ),
    "bit-0": ("Attribute 1<<0, which was for reading.", (T, PAGE_SIZE, 1, 0)),
    "bit-1": ("Attribute 1<<1, which was for writing.", (T, PAGE_SIZE, 2, 0)),
    "bit-2": ("Attribute 1<<2, which was for executing.", (T, PAGE_SIZE, 4, 0)),
    "bit-4": ("Attribute 1<<4.", (T, PAGE_SIZE, 16, 0)),
    "bit-63": ("Attribute 1<<63.", (T, PAGE_SIZE, 1 << 63, 0)),
    "private-and-bit-0": ("Attribute 1<<3 with 1<<0.", (T, PAGE_SIZE, _PRIVATE | 1, 0)),
    "flags-1": ("flags 1.", (T, PAGE_SIZE, _PRIVATE, 1)),
    "flags-63": ("flags 1<<63.", (T, PAGE_SIZE, _PRIVATE, 1 << 63)),
    "many-mistakes": ("flags 1, attribute 1<<0, size 0.", (T, 0, 1, 1)),
    "no-slot": ("gfns without a slot.", (8 * T, PAGE_SIZE, _PRIVATE, 0)),
    "plain-slot": (
        "A gfn of slot 0, which has no file.",
        (LOW - PAGE_SIZE, PAGE_SIZE, _PRIVATE, 0),
    ),
    "before-slot": (
        "The page before the slot and its first.",
        (T - PAGE_SIZE, 2 * PAGE_SIZE, _PRIVATE, 0),
    ),
    "after-slot": (
        "The slot's last page and 16 after it.",
        (T + (PAGES - 1) * PAGE_SIZE, 17 * PAGE_SIZE, _PRIVATE, 0),
    ),
    "gpa-2-52": ("A gpa that no CPU has.", (1 << 52, PAGE_SIZE, _PRIVATE, 0)),
    "1g": ("1 GiB at once, without a slot.", (1 << 32, 1 << 30, _PRIVATE, 0)),
    "1t-shared": ("1 TiB at once, which is shared already.", (1 << 41, 1 << 40, 0, 0)),
}


def _call(arguments: tuple[int, int, int, int]) -> Steps:
    def steps(machine: Machine) -> Iterator[object]:
        machine.memory(private=False)
        yield machine.attributes(*arguments)

    return steps


for _name, (_sentence, _arguments) in _CALLS.items():
    ROWS.add(_name, _sentence, _call(_arguments), private=True)


@ROWS.row("A page is made private, again, and shared, again.", private=True)
def again(machine: Machine) -> Iterator[object]:
    machine.memory(private=False)
    yield machine.to_private()
    yield machine.to_private()
    yield machine.to_shared()
    yield machine.to_shared()


@ROWS.row("One page of four is private; then all are made so.", private=True)
def mixed(machine: Machine) -> Iterator[object]:
    machine.memory(private=False)
    yield machine.to_private(T + PAGE_SIZE)
    yield machine.to_private(T, 4)


@ROWS.row("On a VM of the default type: private, shared.", private=True)
def default_vm(machine: Machine) -> Iterator[object]:
    other = machine.another(0)
    yield other.to_private()
    yield other.to_shared()


@ROWS.row("A page is made private that is private: what is mapped stays.", private=True)
def again_zaps_nothing(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.write(T, 0x11)
    yield machine.mapped()
    yield machine.to_private()
    yield machine.mapped()


@ROWS.row("A page is converted: it alone is unmapped.", private=True)
def converting_zaps(machine: Machine) -> Iterator[object]:
    machine.memory()
    for page in range(3):
        yield machine.write(T + page * PAGE_SIZE, 0x11)
    yield machine.mapped()
    yield machine.to_shared(T + PAGE_SIZE)
    yield machine.mapped()


@ROWS.row("Attributes of a slot are there before it and after its end.", private=True)
def outlive_slots(machine: Machine) -> Iterator[object]:
    yield machine.to_private(T, PAGES)
    fd, half = machine.memory(private=False)
    yield machine.write(T, 0x11)
    yield machine.cached(fd)
    yield machine.delete()
    yield machine.read()
    yield machine.region(fd=fd, at=half.address)
    yield machine.read()


@ROWS.row(
    "A gfn is private in one VM, shared in another, then the reverse: both VMs read.",
    private=True,
)
def of_another_vm(machine: Machine) -> Iterator[object]:
    other = machine.another()
    machine.memory(fill=0xAA)
    other.memory(fill=0x33, private=False)
    yield machine.read()
    yield other.read()
    yield other.to_private()
    yield machine.to_shared()
    yield machine.read()
    yield other.read()
