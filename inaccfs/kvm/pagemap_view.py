"""A guest's memory as text: a character for each page, or for as many as fit.

0x000000000  mmmm....s---.... ................ ...
"""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Final

from inaccfs.cells import GROUP, Kind, Layout, Palette, Run
from inaccfs.cells import SEVERAL as SEVERAL
from inaccfs.kvm.memory import resident
from inaccfs.kvm.uapi import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.vm import VM

MAPPED: Final = {PG_LEVEL_4K: "m", PG_LEVEL_2M: "M", PG_LEVEL_1G: "G"}
ALLOCATED: Final = "-"
HOLE: Final = "."
SHARED: Final = "s"
DOUBLE: Final = "d"
NO_SLOT: Final = "_"

# Private and mapped pages are green, shared ones yellow.
_PALETTE: Final = Palette(
    {
        MAPPED[PG_LEVEL_4K]: Kind("mapped by 4 KiB", "32"),
        MAPPED[PG_LEVEL_2M]: Kind("mapped by 2 MiB", "32"),
        MAPPED[PG_LEVEL_1G]: Kind("mapped by 1 GiB", "32"),
        ALLOCATED: Kind("allocated, not mapped", "36"),
        HOLE: Kind("not allocated", "2"),
        SHARED: Kind("shared", "33"),
        DOUBLE: Kind("shared, its private page still there", "31"),
        NO_SLOT: Kind("no slot"),
    }
)

MEANINGS: Final = {kind: meaning for kind, (meaning, *_) in _PALETTE.kinds.items()}
"""What each character means."""

_ROW: Final = 4 * GROUP
_ROWS: Final = 16
# The width of a row with its address.
_WIDTH: Final = 80


def states(vm: VM, gfn: int, pages: int) -> str:
    """The state of each of *pages* from *gfn* on: one character of `MEANINGS` each.

    Where the mount refuses get-memory, allocated pages that are not mapped look like
    holes.
    """
    found = [NO_SLOT] * pages
    for slot in vm.slots:
        start, end = max(gfn, slot.base_gfn), min(gfn + pages, slot.end_gfn)
        with vm.hold(slot) as there:
            if there and start < end:
                found[start - gfn : end - gfn] = _of_slot(vm, slot, start, end)
    return "".join(found)


def _of_slot(vm: VM, slot: MemorySlot, start: int, end: int) -> Iterator[str]:
    allocated = _allocated(slot, start, end)
    for gfn, there in zip(range(start, end), allocated, strict=True):
        if slot.backing is None or not vm.is_private(gfn):
            # If the file has the shared pages, too, a page has one copy of its content.
            yield DOUBLE if there and not vm.shared_in_file else SHARED
        elif (spte := vm.spte(gfn)) is not None:
            yield MAPPED[spte.level]
        else:
            yield ALLOCATED if there else HOLE


def _allocated(slot: MemorySlot, start: int, end: int) -> list[bool]:
    """Whether each page of the private half has memory."""
    nothing = [False] * (end - start)
    if slot.backing is None:
        return nothing
    with suppress(PermissionError):
        slot.backing.reach(slot.pgoff(end))
    window = slot.backing.window
    if window is None:
        return nothing
    first = slot.pgoff(start)
    known = max(min(end - start, (len(window) >> PAGE_SHIFT) - first), 0)
    there = [bool(byte & 1) for byte in resident(window, first, known)]
    return there + nothing[known:]


def render(found: str, gfn: int = 0, *, colour: bool = False) -> str:
    """Lay out the result of `states` from *gfn* on: gpa, then 64 characters a row.

    If that takes more than 16 rows, a character stands for 8, 64 or 512 pages. A row
    that equals the one before it is only counted.
    """
    scale = 1
    while len(found) > scale * _ROW * _ROWS:
        scale *= 8
    if scale > 1:
        found = _PALETTE.cells(_runs(found), scale)
    lines = [f"one character is {scale} pages"] if scale > 1 else []
    layout = Layout(_ROW, scale, " ", _WIDTH)
    lines += _PALETTE.rows(found, layout, PAGE_SIZE, gfn, colour=colour)
    return "\n".join(lines)


def _runs(found: str) -> Iterator[Run]:
    start = 0
    for kind, same in groupby(found):
        end = start + len(list(same))
        yield Run(start, end, kind)
        start = end


def legend(found: str, *, colour: bool = False) -> str:
    """The meaning of the characters in *found*, and how many pages have each."""
    counts = {kind: found.count(kind) for kind in MEANINGS}
    return "\n".join(_PALETTE.folded(counts, _WIDTH, colour=colour))
