"""KVM_EXIT_MEMORY_FAULT: when it comes, its members, and how the guest continues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe import guest, words
from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import PAGES, SIZE, T
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.kvmcalls import CAPABILITIES, KVM_HC_MAP_GPA_RANGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("exit")

_HYPERCALL: Final = CAPABILITIES["KVM_CAP_EXIT_HYPERCALL"]


def _private_plain(machine: Machine) -> None:
    """A plain slot whose pages are private: each access is an exit."""
    machine.plain()
    machine.to_private(T, PAGES)


@ROWS.row("Private without a file: read, write, exchange.", private=True)
def plain_slot(machine: Machine) -> Iterator[object]:
    _private_plain(machine)
    yield machine.read()
    yield machine.write()
    yield machine.run(guest.Exchange(T, 1))


@ROWS.row("Private without a file: the guest goes there to execute it.", private=True)
def execute_plain_slot(machine: Machine) -> Iterator[object]:
    _private_plain(machine)
    yield machine.run(guest.Jump(T))


@ROWS.row("Private without a slot: read, write.", private=True)
def no_slot(machine: Machine) -> Iterator[object]:
    yield machine.to_private()
    yield machine.read()
    yield machine.write()


@ROWS.row("Private without a slot: the guest goes there to execute it.", private=True)
def execute_no_slot(machine: Machine) -> Iterator[object]:
    yield machine.to_private()
    yield machine.run(guest.Jump(T))


@ROWS.row("Private, and after the slot's end.", private=True)
def after_slot(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.to_private(T + SIZE)
    yield machine.read(T + SIZE)


@ROWS.row("The gpa of an exit is that of the page: an access at 0x123.", private=True)
def gpa_in_page(machine: Machine) -> Iterator[object]:
    _private_plain(machine)
    yield machine.read(T + 0x123)


@ROWS.row("The gpa of an exit in the last word of a page.", private=True)
def gpa_last_word(machine: Machine) -> Iterator[object]:
    _private_plain(machine)
    yield machine.read(T + PAGE_SIZE - 4)


@ROWS.row("An access across two pages that both exit: the gpa.", private=True)
def gpa_across(machine: Machine) -> Iterator[object]:
    _private_plain(machine)
    yield machine.read(T + PAGE_SIZE - 2)


@ROWS.row(
    "An access across a page that is there and one that exits: the gpa.", private=True
)
def gpa_across_second(machine: Machine) -> Iterator[object]:
    machine.plain()
    yield machine.to_private(T + PAGE_SIZE)
    yield machine.read(T + PAGE_SIZE - 2)


@ROWS.row(
    "A write across two pages whose second one exits: is the first written.",
    private=True,
)
def write_across_second(machine: Machine) -> Iterator[object]:
    half = machine.plain()
    yield machine.to_private(T + PAGE_SIZE)
    yield machine.write(T + PAGE_SIZE - 4, 0x11111111)
    yield machine.write(T + PAGE_SIZE - 2, 0x22222222)
    yield half.pages[PAGE_SIZE - 4 : PAGE_SIZE].hex()


@ROWS.row(
    "A copy of two pages whose second one exits; it goes on after conversion.",
    private=True,
)
def copy_across(machine: Machine) -> Iterator[object]:
    machine.plain()
    yield machine.to_private(T + PAGE_SIZE)
    yield machine.run(guest.Copy(T, T + 8 * PAGE_SIZE, 2048))
    yield machine.read(T + 8 * PAGE_SIZE)
    yield machine.run(
        guest.Copy(T, T + 8 * PAGE_SIZE, 2048), guest.Read(T + 9 * PAGE_SIZE)
    )
    yield machine.to_shared(T + PAGE_SIZE)
    yield machine.resume()


@ROWS.row("KVM_RUN again after an exit, with nothing changed, twice.", private=True)
def resume_unchanged(machine: Machine) -> Iterator[object]:
    _private_plain(machine)
    yield machine.read()
    yield machine.resume()
    yield machine.resume()


@ROWS.row(
    "An exit is answered by a conversion to shared: KVM_RUN goes on.", private=True
)
def resume_shared(machine: Machine) -> Iterator[object]:
    _private_plain(machine)
    yield machine.read()
    yield machine.to_shared()
    yield machine.resume()


@ROWS.row("An exit is answered by a slot with a file: KVM_RUN goes on.", private=True)
def resume_slot(machine: Machine) -> Iterator[object]:
    yield machine.to_private(T, PAGES)
    yield machine.read()
    machine.memory(private=False)
    yield machine.resume()


@ROWS.row("A write exits; shared then: it is made once, by KVM_RUN.", private=True)
def resume_write(machine: Machine) -> Iterator[object]:
    machine.plain()
    yield machine.to_private()
    yield machine.run(guest.Write(T, 0x66), guest.Read(T))
    yield machine.to_shared()
    yield machine.resume()


@ROWS.row(
    "The guest says something, exits, and says more after conversion.", private=True
)
def resume_in_program(machine: Machine) -> Iterator[object]:
    machine.plain()
    yield machine.to_private(T + PAGE_SIZE)
    yield machine.run(
        guest.Read(T), guest.Read(T + PAGE_SIZE), guest.Read(T + 2 * PAGE_SIZE)
    )
    yield machine.to_shared(T + PAGE_SIZE)
    yield machine.resume()


# --- MMIO and private memory ----------------------------------------------------------


@ROWS.row("MMIO at a gfn, which is then made private: read, write.", private=True)
def mmio_before(machine: Machine) -> Iterator[object]:
    yield machine.read()
    yield machine.to_private()
    yield machine.read()
    yield machine.write(T, 1)


@ROWS.row(
    "Two gfns are made private, of which one had an MMIO: read both.", private=True
)
def mmio_before_beside(machine: Machine) -> Iterator[object]:
    yield machine.read(T)
    yield machine.to_private(T, 2)
    yield machine.read(T)
    yield machine.read(T + PAGE_SIZE)


@ROWS.row("An exit without a slot; shared then: MMIO; private again.", private=True)
def mmio_after(machine: Machine) -> Iterator[object]:
    yield machine.to_private()
    yield machine.read()
    yield machine.to_shared()
    yield machine.read()
    yield machine.to_private()
    yield machine.read()


@ROWS.row(
    "MMIO at a gfn, then a slot with a file is there: run, and again.", private=True
)
def mmio_then_slot(machine: Machine) -> Iterator[object]:
    yield machine.read()
    machine.memory()
    yield machine.read()
    yield machine.resume()


@ROWS.row("MMIO at a gfn, then a plain slot is there.")
def mmio_then_plain(machine: Machine) -> Iterator[object]:
    yield machine.read()
    machine.plain()
    yield machine.read()


def _answered_late(machine: Machine) -> Iterator[object]:
    """Run a guest that reads a device twice to its first exit, and answer that."""
    vcpu = machine.vcpu
    vcpu.load((guest.Read(T), guest.Read(T)))
    yield words.of_exit(vcpu.run())
    vcpu.answer(b"\x5a" * 4)


@ROWS.row(
    "A plain slot is made after an MMIO exit, before the next KVM_RUN: both reads."
)
def mmio_answered_late(machine: Machine) -> Iterator[object]:
    yield from _answered_late(machine)
    machine.plain()
    yield machine.story(machine.vcpu, bytes(8))


@ROWS.row(
    "A private slot is made after an MMIO exit, before the next KVM_RUN: both reads.",
    private=True,
)
def mmio_answered_private(machine: Machine) -> Iterator[object]:
    yield from _answered_late(machine)
    machine.memory()
    yield machine.story(machine.vcpu, bytes(8))


@ROWS.row(
    "A conversion over two slots and a hole between that had an MMIO.", private=True
)
def conversion_over_hole(machine: Machine) -> Iterator[object]:
    first, _ = machine.memory(4, fill=0x10, private=False)
    second, _ = machine.memory(4, T + 8 * PAGE_SIZE, slot=2, fill=0x20, private=False)
    yield machine.read()
    yield machine.read(T + 4 * PAGE_SIZE)
    yield machine.read(T + 8 * PAGE_SIZE)
    yield machine.to_private(T - PAGE_SIZE, 16)
    yield machine.read()
    yield machine.read(T + 4 * PAGE_SIZE)
    yield machine.read(T + 5 * PAGE_SIZE)
    yield machine.read(T + 8 * PAGE_SIZE)
    yield machine.cached(first)
    yield machine.cached(second)


# --- hypercalls -----------------------------------------------------------------------


@ROWS.row("KVM_HC_MAP_GPA_RANGE without KVM_CAP_EXIT_HYPERCALL.", private=True)
def hypercall_refused(machine: Machine) -> Iterator[object]:
    machine.memory()
    yield machine.run(guest.CallHypervisor(KVM_HC_MAP_GPA_RANGE, (T, 1, 0)))


@ROWS.row("KVM_HC_MAP_GPA_RANGE to shared, as an exit: does KVM convert.", private=True)
def hypercall(machine: Machine) -> Iterator[object]:
    machine.memory(fill=0x33)
    machine.vm.enable_cap(_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)
    yield machine.run(guest.CallHypervisor(KVM_HC_MAP_GPA_RANGE, (T, 1, 0)))
    yield machine.read()


@ROWS.row(
    "KVM_ENABLE_CAP of KVM_CAP_EXIT_HYPERCALL with a call nobody knows.", private=True
)
def hypercall_unknown(machine: Machine) -> Iterator[object]:
    yield words.of(machine.vm.enable_cap, _HYPERCALL, 1 << 1)
