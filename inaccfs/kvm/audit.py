"""Looks at a VM from outside: what is stale, and what is there twice."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.kvm.memory import resident
from inaccfs.kvm.uapi import PAGE_SHIFT, pages_of_level

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inaccfs.kvm.backing import BackingFile
    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.pagetable import Run
    from inaccfs.kvm.shim import Shim


class StaleSpte(NamedTuple):
    """A mapping of a frame that is not the page's frame, or not any more."""

    gfn: int
    # What it maps, and what the page has now: None if it has gone.
    pfn: int
    level: int
    now: int | None


class _Fetched:
    """Where the pages of files are that have been fetched and not been punched since.

    The daemon keeps those in their frames, so a map to another frame is wrong.
    """

    def __init__(self, shim: Shim, shifts: dict[int, int]) -> None:
        found: dict[int, list[tuple[int, int, int]]] = {ino: [] for ino in shifts}
        for pin in shim.query_pins().extents:
            if pin.ino in found:
                shift = shifts[pin.ino]
                found[pin.ino].append(
                    (pin.offset << shift, pin.pfn, pin.count << shift)
                )
        self._extents: Final = {ino: sorted(each) for ino, each in found.items()}

    def between(self, ino: int, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """What there is of a file's pages *start* to *end*: first page, pfn, pages."""
        extents = self._extents[ino]
        index = max(bisect_right(extents, (start, 1 << 64, 0)) - 1, 0)
        while index < len(extents) and extents[index][0] < end:
            first, pfn, pages = extents[index]
            index += 1
            low, high = max(first, start), min(first + pages, end)
            if low < high:
                yield low, pfn + low - first, high - low


def stale_sptes(
    shim: Shim, slots: Iterable[MemorySlot], runs: Iterable[Run]
) -> list[StaleSpte]:
    """Which of *runs* map what their files do not have there.

    Of a huge mapping one page suffices to have been fetched; of the others only what
    is known is compared.
    """
    private = [(slot, slot.backing) for slot in slots if slot.backing is not None]
    fetched = _Fetched(shim, {file.ino: file.shift for _, file in private})
    stale: list[StaleSpte] = []
    for run in runs:
        for slot, file in private:
            start = max(run.gfn, slot.base_gfn)
            end = min(run.gfn + run.pages, slot.end_gfn)
            if start < end:
                stale += _stale(fetched, slot, file, run, start, end)
    return stale


def _stale(
    fetched: _Fetched,
    slot: MemorySlot,
    file: BackingFile,
    run: Run,
    start: int,
    end: int,
) -> Iterator[StaleSpte]:
    step = pages_of_level(run.level)
    for gfn, now, pages in _wanted(fetched, slot, file, start, end, step):
        pfn = run.pfn + gfn - run.gfn
        if now != pfn:
            for index in range(0, pages, step):
                there = None if now is None else now + index
                yield StaleSpte(gfn + index, pfn + index, run.level, there)


def _wanted(
    fetched: _Fetched,
    slot: MemorySlot,
    file: BackingFile,
    start: int,
    end: int,
    step: int,
) -> Iterator[tuple[int, int | None, int]]:
    """What is at the gfns from *start* to *end*: first gfn, pfn or None, pages.

    Mappings have *step* pages; one that has no fetched page at all is None.
    """
    gfn = start
    for first, pfn, pages in fetched.between(
        file.ino, slot.pgoff(start), slot.pgoff(end)
    ):
        known = slot.base_gfn + first - slot.private_pgoff
        # As many whole mappings as lie before what is known, if any.
        if (known & -step) > gfn:
            yield gfn, None, (known & -step) - gfn
        yield known, pfn, pages
        gfn = max(gfn, -(-(known + pages) // step) * step)
    if gfn < end:
        yield gfn, None, end - gfn


def double_allocated(slots: Iterable[MemorySlot]) -> int:
    """How many pages of 4 KiB are there in a slot's file and in its shared half.

    Raises:
        OSError: EPERM where the mount refuses get-memory; `ControlError`.
    """
    return sum(
        _double(slot, slot.backing, slot.shared)
        for slot in slots
        if slot.backing is not None and slot.shared is not None
    )


def _double(slot: MemorySlot, file: BackingFile, shared: memoryview) -> int:
    file.reach(slot.private_pgoff + slot.npages)
    window = file.window
    if window is None:
        return 0
    first = slot.private_pgoff
    pages = min(slot.npages, (len(window) >> PAGE_SHIFT) - first)
    if pages <= 0:
        return 0
    ones = int.from_bytes(b"\1" * pages, "little")
    private = int.from_bytes(resident(window, first, pages), "little")
    other = int.from_bytes(resident(shared, 0, pages), "little")
    return (ones & private & other).bit_count()
