"""Races: a guest spins while the host changes what it spins on.

Each row has the set of possible outcomes. How often each is seen does not matter.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe import guest
from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import PAGES, T
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.probe.machine import Machine, Spinning

ROWS: Final = Rows("race")

# In seconds: how long a row watches a spinning guest that nothing disturbs.
_WHILE: Final = 0.2

_EXIT_PRIVATE: Final = f"EFAULT exit 0x8 gpa {T:#x} size {PAGE_SIZE:#x}"
_EXIT_SHARED: Final = f"EFAULT exit 0x0 gpa {T:#x} size {PAGE_SIZE:#x}"


def _spinning(machine: Machine, value: int) -> Spinning:
    """Start a guest that has mapped the page at T, and reads it while it is *value*."""
    return machine.spin(guest.Read(T), guest.Start(), guest.SpinWhile(T, value))


@ROWS.row(
    "The guest reads a page until it is zeros; the page is punched.",
    allowed=frozenset({"done; ok; read 0x11, read 0x0", "done; ok; read 0x0"}),
)
def punch(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    yield machine.write(T, 0x11)
    spinning = _spinning(machine, 0x11)
    yield machine.punch(fd)
    yield spinning.ended()


@ROWS.row(
    "The guest writes a page and reads it back until it differs; it is punched often.",
    allowed=frozenset({"ok; still running", "ok; read 0x0"}),
)
def punch_writer(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    spinning = machine.spin(guest.Start(), guest.SpinWriting(T, 0x11))
    wrong = {machine.punch(fd) for _ in range(200)} - {"ok"}
    yield ", ".join(sorted(wrong)) or "ok"
    # Between its write and its read, a punch makes it zeros; nothing else can be read.
    yield spinning.ended(_WHILE)


@ROWS.row(
    "The guest spins on a page while others are allocated and punched.",
    allowed=frozenset({"ok; still running; ok; read 0x11, read 0x0"}),
)
def neighbours(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    machine.write(T, 0x11)
    spinning = _spinning(machine, 0x11)
    found = set()
    for page in range(1, PAGES):
        found.add(machine.allocate(fd, page))
        found.add(machine.punch(fd, page))
    yield ", ".join(sorted(found))
    yield spinning.ended(_WHILE)
    yield machine.punch(fd)
    yield spinning.ended()


@ROWS.row(
    "The guest spins on a page while it is allocated again and again.",
    allowed=frozenset({"ok; still running"}),
)
def allocate(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    machine.write(T, 0x11)
    spinning = _spinning(machine, 0x11)
    yield ", ".join(sorted({machine.allocate(fd) for _ in range(100)}))
    yield spinning.ended(_WHILE)


@ROWS.row(
    "The guest spins on a private page; its slot is deleted.",
    private=True,
    allowed=frozenset({f"ok; read 0x11, {_EXIT_PRIVATE}"}),
)
def delete(machine: Machine) -> Iterator[object]:
    machine.memory()
    machine.write(T, 0x11)
    spinning = _spinning(machine, 0x11)
    yield machine.delete()
    yield spinning.ended()


@ROWS.row(
    "The guest spins on a page of a plain slot; the slot is deleted: MMIO.",
    allowed=frozenset({f"ok; read 0x33333333, mmio read {T:#x} 4, read 0x0"}),
)
def delete_plain(machine: Machine) -> Iterator[object]:
    machine.plain()
    spinning = _spinning(machine, 0x33333333)
    yield machine.delete()
    yield spinning.ended()


@ROWS.row(
    "The guest spins on a private page; the file is closed.",
    private=True,
    allowed=frozenset({f"ok; read 0x11, {_EXIT_PRIVATE}"}),
)
def close(machine: Machine) -> Iterator[object]:
    fd, _ = machine.memory()
    machine.write(T, 0x11)
    spinning = _spinning(machine, 0x11)
    yield machine.close(fd)
    yield spinning.ended()


@ROWS.row(
    "The guest spins on a shared page of a plain slot, which is made private.",
    private=True,
    allowed=frozenset(
        {
            f"ok; read 0x33333333, {_EXIT_PRIVATE}",
            # KVM classified the access before the change, and checked it after.
            f"ok; read 0x33333333, {_EXIT_SHARED}",
        }
    ),
)
def convert_plain(machine: Machine) -> Iterator[object]:
    machine.plain()
    spinning = _spinning(machine, 0x33333333)
    yield machine.to_private()
    yield spinning.ended()


@ROWS.row(
    "The guest spins on a private page, which is made shared: it reads other memory.",
    private=True,
    allowed=frozenset(
        {
            "ok; read 0x11, read 0xaaaaaaaa",
            f"ok; read 0x11, {_EXIT_PRIVATE}",
            f"ok; read 0x11, {_EXIT_SHARED}",
        }
    ),
)
def convert(machine: Machine) -> Iterator[object]:
    machine.memory(fill=0xAA)
    machine.write(T, 0x11)
    spinning = _spinning(machine, 0x11)
    yield machine.to_shared()
    yield spinning.ended()


@ROWS.row(
    "The guest spins on a page that is converted again and again; all of it is zeros.",
    private=True,
    allowed=frozenset(
        {
            "ok; read 0x0, still running",
            f"ok; read 0x0, {_EXIT_PRIVATE}",
            f"ok; read 0x0, {_EXIT_SHARED}",
        }
    ),
)
def flip(machine: Machine) -> Iterator[object]:
    machine.memory(fill=0)
    spinning = _spinning(machine, 0)
    found = set()
    until = time.monotonic() + _WHILE
    while time.monotonic() < until:
        found |= {machine.to_shared(), machine.to_private()}
    yield ", ".join(sorted(found))
    outcome = spinning.ended(0)
    # A guest that has not exited has reported only its first word.
    yield f"read 0x0, {outcome}" if outcome == "still running" else outcome


@ROWS.row(
    "The guest spins on a private page; the next one is converted again and again.",
    private=True,
    allowed=frozenset({"ok; still running"}),
)
def flip_beside(machine: Machine) -> Iterator[object]:
    machine.memory(fill=0xAA)
    machine.write(T, 0x11)
    spinning = _spinning(machine, 0x11)
    found = set()
    for _ in range(100):
        found |= {machine.to_shared(T + PAGE_SIZE), machine.to_private(T + PAGE_SIZE)}
    yield ", ".join(sorted(found))
    yield spinning.ended(_WHILE)


@ROWS.row(
    "The guest spins on a private page; the VM makes and deletes other slots.",
    private=True,
    allowed=frozenset({"ok; still running"}),
)
def other_slots(machine: Machine) -> Iterator[object]:
    machine.memory()
    machine.write(T, 0x11)
    spinning = _spinning(machine, 0x11)
    half = machine.anonymous()
    found = set()
    for _ in range(20):
        found.add(machine.region(2, 0, 2 * T, PAGES * PAGE_SIZE, half.address))
        found.add(machine.delete(2))
    yield ", ".join(sorted(found))
    yield spinning.ended(_WHILE)


@ROWS.row(
    "The guest spins on a plain page; the VMM writes it.",
    allowed=frozenset({"read 0x33333333, read 0x44332211"}),
)
def vmm_writes(machine: Machine) -> Iterator[object]:
    half = machine.plain()
    spinning = _spinning(machine, 0x33333333)
    half.put(bytes.fromhex("11223344"))
    yield spinning.ended()
