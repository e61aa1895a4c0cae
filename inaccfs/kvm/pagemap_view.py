"""A guest's memory as text: a character for each page, or for as many as fit.

0x000000000  mmmm....s---....  ................  ...
"""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.memory import resident
from inaccfs.kvm.uapi import PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K

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
SEVERAL: Final = "+"

MEANINGS: Final = {
    "m": "mapped by 4 KiB",
    "M": "mapped by 2 MiB",
    "G": "mapped by 1 GiB",
    ALLOCATED: "allocated, not mapped",
    HOLE: "not allocated",
    SHARED: "shared",
    DOUBLE: "shared, its private page still there",
    NO_SLOT: "no slot",
    SEVERAL: "several of these",
}

# See console_codes(4): private and mapped pages are green, shared ones yellow.
_COLOURS: Final = {
    **dict.fromkeys("mMG", "32"),
    ALLOCATED: "36",
    HOLE: "2",
    SHARED: "33",
    DOUBLE: "31",
    SEVERAL: "35",
}

_GROUP: Final = 16
_ROW: Final = 4 * _GROUP
_ROWS: Final = 16


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
            yield DOUBLE if there else SHARED
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
        found = "".join(_merged(found, scale))
    lines = [f"one character is {scale} pages"] if scale > 1 else []
    rows = (
        (gfn + at * scale, found[at : at + _ROW]) for at in range(0, len(found), _ROW)
    )
    for text, same in groupby(rows, key=lambda row: row[1]):
        (first, _), *more = same
        also = f"  and {len(more)} more" if more else ""
        lines.append(f"{first << PAGE_SHIFT:#011x}  {_row(text, colour=colour)}{also}")
    return "\n".join(lines)


def _merged(found: str, scale: int) -> Iterator[str]:
    for at in range(0, len(found), scale):
        kinds = set(found[at : at + scale])
        yield kinds.pop() if len(kinds) == 1 else SEVERAL


def _row(text: str, *, colour: bool) -> str:
    parts = [text[at : at + _GROUP] for at in range(0, len(text), _GROUP)]
    return "  ".join(_coloured(part) if colour else part for part in parts)


def _coloured(text: str) -> str:
    return "".join(
        f"\x1b[{_COLOURS[kind]}m{''.join(same)}\x1b[0m"
        if kind in _COLOURS
        else "".join(same)
        for kind, same in groupby(text)
    )


def legend(found: str, *, colour: bool = False) -> str:
    """The meaning of the characters in *found*, and how many pages have each."""
    return "   ".join(
        f"{_coloured(kind) if colour else kind} {meaning} ({found.count(kind)})"
        for kind, meaning in MEANINGS.items()
        if kind in found
    )
