"""KVM of the v8 series: patches 2/8 to 8/8, point by point.

Section and wording follow the notes on the series; the mails are those of 15 September
2022. docs/simulated-kvm.md says where this KVM departs from the series.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

from inaccfs.kvm import (
    KVM_LPAGE_PRIVATE_SHARED_MIXED,
    KVM_MEM_PRIVATE,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    MemoryFaultExit,
)
from inaccfs.kvm.attributes import MemoryAttributes
from inaccfs.kvm.invalidation import Invalidation
from inaccfs.kvm.memslots import MemorySlot
from inaccfs.kvm.uapi import level_of_order
from inaccfs.semantics import V8
from inaccfs.syscalls import PUNCH
from tests.unit.kvm_guests import MIB, PAGE
from tests.unit.kvm_outcomes import Guest, guest, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST = MIB // PAGE
U64 = 1 << 64


class Point(NamedTuple):
    """One statement about the series, a call, and its expected result."""

    patch: str
    says: str
    check: Callable[[Guest], object]
    wanted: object


# --- memslots: 2/8 and 8/8 ------------------------------------------------------------


def region(made: Guest, **changed: int) -> str:
    return made.slot(**{"number": 2, "gpa": 4 * MIB, "size": PAGE} | changed)


def exit_of(made: Guest, gpa: int, *, private: bool) -> tuple[int, int, int, int]:
    with pytest.raises(MemoryFaultExit) as caught:
        made.vm.create_vcpu().read(gpa, 1, private=private)
    found = caught.value
    return found.flags, found.gpa, found.size, found.errno


def both_halves(made: Guest) -> object:
    made.write(b"p")
    return made.read(), made.shared[:1]


def two_gfns(made: Guest) -> object:
    """The documentation says "undefined"; here both gfns have the page."""
    return region(made), made.write(b"p"), made.read(4 * MIB)


def deleted(made: Guest) -> object:
    inode = made.mount.inode(made.fd)
    before = len(inode.notifiers)
    return before, made.slot(1, 0, 0), len(inode.notifiers)


def refused(made: Guest) -> object:
    """The fd and the notifier are released if the slot cannot be created."""
    inode = made.mount.inode(made.fd)
    region(made, gpa=MIB)
    region(made, private_offset=1)
    return len(inode.notifiers)


# --- invalidate: 8/8 ------------------------------------------------------------------


def gfns(start: int, end: int) -> Callable[[Guest], object]:
    """The gfns that a slot of 4 pages at gfn 100 and file page 10 zaps."""
    slot = MemorySlot(0, KVM_MEM_PRIVATE, 100, 4, 10 * PAGE, None)
    return lambda made: slot.gfns(start, end)


def punched(made: Guest) -> object:
    made.write(b"p")
    made.write(b"q", MIB + PAGE)
    made.mount.fallocate(made.fd, PUNCH, 0, PAGE)
    return made.vm.spte(FIRST), made.read(), made.read(MIB + PAGE)


# --- the retry protocol: 4/8 ----------------------------------------------------------


def retry(made: Guest) -> object:
    state = Invalidation()
    seq = state.seq
    state.begin(10, 20)
    during = [state.retry(seq, gfn, gfn + 1) for gfn in (9, 10, 19, 20)]
    state.begin(30, 40)
    hull = state.retry(seq, 25, 26)
    state.end()
    narrowed = state.in_progress, state.retry(state.seq, 12, 13)
    state.end()
    return during, hull, narrowed, state.in_progress, state.retry(seq, 99, 100)


# --- attributes: 5/8 and 6/8 ----------------------------------------------------------


def attribute(gpa: int, size: int) -> Callable[[Guest], object]:
    return lambda made: outcome(made.vm.set_memory_attributes, gpa, size, private=False)


def converted(made: Guest) -> object:
    made.write(b"p")
    found = made.private(private=False), made.vm.spte(FIRST)
    return *found, made.vm.is_private(FIRST), made.vm.is_private(FIRST + 1)


def lpage(made: Guest) -> object:
    """disallow_lpage of a slot of 4 MiB: uniform, mixed, and not congruent."""
    attributes = MemoryAttributes(default_private=True)
    slot = MemorySlot(0, KVM_MEM_PRIVATE, 0, 1024, 0, None)
    odd = MemorySlot(0, KVM_MEM_PRIVATE, 0, 1024, PAGE, None)
    attributes.set(3, 4, private=False)
    return [
        each.disallow_lpage(gfn, 2, attributes)
        for each in (slot, odd)
        for gfn in (0, 512)
    ]


# --- the fault: 7/8 -------------------------------------------------------------------


def faulted(made: Guest) -> object:
    """KVM keeps no reference while it maps a page."""
    made.write(b"p")
    memory = made.mount.inode(made.fd).pages.memory
    assert memory is not None
    return made.vm.spte(FIRST) is not None, memory.references_count


POINTS = [
    Point("2/8", "KVM_MEM_PRIVATE is 1 << 2", lambda _: KVM_MEM_PRIVATE, 4),
    Point("2/8", "a slot has both halves", both_halves, ("p", b"s")),
    Point("2/8", "unknown flags", lambda m: region(m, flags=1 << 3), "EINVAL"),
    Point(
        "2/8", "private_offset aligned", lambda m: region(m, private_offset=1), "EINVAL"
    ),
    Point(
        "2/8",
        "private_offset does not wrap",
        lambda m: region(m, private_offset=U64 - PAGE),
        "EINVAL",
    ),
    Point("2/8", "a bad fd", lambda m: region(m, private_fd=-1), "EINVAL"),
    Point("2/8", "no move", lambda m: region(m, number=1, size=MIB), "EINVAL"),
    Point(
        "2/8", "no change of flags", lambda m: m.slot(flags=0, private_fd=-1), "EINVAL"
    ),
    Point(
        "2/8", "not even the same again", lambda m: m.slot(shared=m.shared), "EINVAL"
    ),
    Point("2/8", "delete", lambda m: m.slot(1, 0, 0), "ok"),
    Point("2/8", "overlapping gfns", lambda m: region(m, gpa=MIB), "EEXIST"),
    Point("8/8", "a notifier a slot, until it goes", deleted, (1, "ok", 0)),
    Point("8/8", "and none of one that was refused", refused, 1),
    Point("8/8", "one page at two gfns: undefined", two_gfns, ("ok", "ok", "p")),
    Point("3/8", "the flag is 1 << 0", lambda _: KVM_MEMORY_EXIT_FLAG_PRIVATE, 1),
    Point(
        "3/8",
        "private access, shared gfn; KVM_RUN returns 0",
        lambda m: (m.private(private=False), exit_of(m, MIB + 5, private=True)),
        ("ok", (1, MIB, PAGE, 0)),
    ),
    Point(
        "3/8",
        "shared access, private gfn",
        lambda m: exit_of(m, MIB + 5, private=False),
        (0, MIB, PAGE, 0),
    ),
    Point(
        "4/8",
        "hull, sequence, no narrowing",
        retry,
        ([False, True, True, False], True, (1, True), 0, True),
    ),
    Point("5/8", "size 0", attribute(0, 0), "EINVAL"),
    Point("5/8", "wraps", attribute(U64 - PAGE, 2 * PAGE), "EINVAL"),
    Point("5/8", "gpa unaligned", attribute(1, PAGE), "EINVAL"),
    Point("5/8", "size unaligned", attribute(0, PAGE + 1), "EINVAL"),
    Point("5/8", "no slot is needed", attribute(64 * MIB, PAGE), "ok"),
    Point("5/8", "absent is private", lambda m: m.vm.is_private(1 << 40), True),
    Point("5/8", "a conversion zaps", converted, ("ok", None, False, True)),
    Point(
        "6/8",
        "bit 31 where it is mixed; 1 where not congruent",
        lpage,
        [KVM_LPAGE_PRIVATE_SHARED_MIXED, 0, 1, 1],
    ),
    Point(
        "7/8",
        "order >= 18: 1G, >= 9: 2M, else 4K",
        lambda _: [level_of_order(order) for order in (0, 8, 9, 17, 18, 20)],
        [1, 1, 2, 2, 3, 3],
    ),
    Point("7/8", "no reference is kept", faulted, (True, 0)),
    Point("8/8", "the range as gfns: before it", gfns(0, 10), None),
    Point("8/8", "over its begin", gfns(5, 12), (100, 102)),
    Point("8/8", "inside", gfns(11, 12), (101, 102)),
    Point("8/8", "over its end", gfns(12, 99), (102, 104)),
    Point("8/8", "after it", gfns(14, 20), None),
    Point("8/8", "a punch zaps its pages alone", punched, (None, "\0", "q")),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda each: f"{each.patch} {each.says}")
def test_point(point: Point) -> None:
    with guest(V8()) as made:
        assert point.check(made) == point.wanted


def test_the_slot_holds_the_file() -> None:
    """8/8: fget() when it is made, fput() when it is freed."""
    with guest(V8()) as made:
        (slot,) = (each for each in made.vm.slots if each.id == 1)
        assert slot.backing is not None
        held = slot.backing.fd
        assert os.fstat(held).st_ino == os.fstat(made.fd).st_ino != held
        made.slot(1, 0, 0)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(held)
