"""Row 9: which huge pages a slot can have, by its offsets in the guest and the file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.kvm import KVM_MEM_PRIVATE, VM
from inaccfs.kvm.attributes import MemoryAttributes
from inaccfs.kvm.uapi import PAGE_SIZE, PG_LEVEL_2M, pages_of_level

if TYPE_CHECKING:
    from inaccfs.experiments.lab import Bench, Lab
    from inaccfs.kvm.memslots import MemorySlot

_LEVELS: Final = {1: "4K", 2: "2M", 3: "1G"}
_HUGE: Final = pages_of_level(PG_LEVEL_2M)
_K, _M, _G = 1 << 10, 1 << 20, 1 << 30


class _Place(NamedTuple):
    """The offsets of a slot in the guest and in the file, and its size, in bytes."""

    name: str
    gpa: int
    offset: int
    size: int


_PLACES: Final = (
    _Place("4G of RAM, below 3G", 0, 0, 3 * _G),
    _Place("  above 4G", 4 * _G, 3 * _G, _G),
    _Place("4G of RAM, below 2.5G", 0, 0, 5 * _G // 2),
    _Place("  above 4G", 4 * _G, 5 * _G // 2, 3 * _G // 2),
    _Place("  above 4G, file of its own", 4 * _G, 0, 3 * _G // 2),
    _Place("a device's, 2M apart", 6 * _M, 4 * _M, 8 * _M),
    _Place("1M into both", _M, _M, 8 * _M),
    _Place("1M into the guest", _M, 0, 8 * _M),
    _Place("1M into the file", 0, _M, 8 * _M),
    _Place("a page into the file", 0, 4 * _K, 8 * _M),
    _Place("1M into the file, small", 0, _M, _M),
)


def _bytes(level: int) -> int:
    return pages_of_level(level) * PAGE_SIZE


def _fitting(size: int) -> int:
    """The largest page that a slot of that size could have."""
    return max(level for level in _LEVELS if _bytes(level) <= size)


# --- which rules accept it ------------------------------------------------------------


def _congruent(place: _Place) -> bool:
    """The rule in the tree of January 2023: as aligned as the gfn."""
    gfn = place.gpa | 1 << 63
    return place.offset % (gfn & -gfn) == 0


def _aligned(place: _Place) -> bool:
    """The rule of Sean Christopherson: aligned to the largest page that fits in."""
    return place.offset % _bytes(_fitting(place.size)) == 0


def _outcome(accepted: bool) -> str:
    return "ok" if accepted else "EINVAL"


# --- what it gets ---------------------------------------------------------------------


def _allowed(slot: MemorySlot) -> int:
    """The largest page that kvm_lpage_info allows for any of its gfns."""
    private = MemoryAttributes(default_private=True)
    return max(
        level
        for level in _LEVELS
        for gfn in range(slot.base_gfn, slot.end_gfn, min(_HUGE, slot.npages))
        if not slot.disallow_lpage(gfn, level, private)
    )


def _row(bench: Bench, place: _Place) -> list[object]:
    with ExitStack() as stack:
        # The file is sparse: touch only one huge page.
        fd = bench.shim.memfd_create("guest", size=place.offset + place.size)
        stack.callback(os.close, fd)
        vm = stack.enter_context(VM(bench.shim, default_private=True))
        vm.set_user_memory_region(
            0,
            place.gpa,
            place.size,
            private_fd=fd,
            private_offset=place.offset,
            flags=KVM_MEM_PRIVATE,
        )
        (slot,) = vm.slots
        vcpu = vm.create_vcpu()
        got = []
        for gfn in (slot.base_gfn, slot.base_gfn + slot.npages // 2):
            parts.allocate(fd, 1, slot.pgoff(gfn))
            vcpu.read(gfn * PAGE_SIZE, 1)
            spte = vm.spte(gfn)
            got.append("-" if spte is None else _LEVELS[spte.level])
        return [
            place.name,
            *map(_size, (place.gpa, place.offset, place.size)),
            *(_LEVELS[_allowed(slot)], *got),
            *(_outcome(_congruent(place)), _outcome(_aligned(place))),
        ]


def _size(size: int) -> str:
    for unit, name in ((_G, "G"), (_M, "M"), (_K, "K")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return "0"


def _run(lab: Lab) -> None:
    head = "gpa", "offset", "size", "allows", "first", "middle", "as gfn", "by size"
    for number, semantics in enumerate(lab.semantics):
        with lab.bench(semantics, size="64m", huge="always") as bench:
            lab.say("\n" * bool(number) + f"{bench.semantics}:")
            lab.table(["", *head], [_row(bench, place) for place in _PLACES])


EXPERIMENT: Final = Experiment(
    name="alignment",
    question="Which huge pages can a slot have, by its offsets in guest and file?",
    run=_run,
    semantics=("v8",),
)
