"""Audits a VM from outside: stale mappings, and pages that are allocated twice."""

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
    from inaccfs.kvm.shared import SharedHalf
    from inaccfs.kvm.shim import Shim


class StaleSpte(NamedTuple):
    """A mapping of a frame that its page does not have, or no longer has."""

    gfn: int
    # The frame that is mapped, and the page's frame now; None if the page was removed.
    pfn: int
    level: int
    now: int | None


class _Extent(NamedTuple):
    """Fetched pages of a file whose frames follow each other, in units of 4 KiB."""

    pgoff: int
    pfn: int
    pages: int


class _Wanted(NamedTuple):
    """The mappings that consecutive gfns should have."""

    gfn: int
    # None where no page of a mapping was fetched.
    pfn: int | None
    pages: int


class _Fetched:
    """The frames of the pages that were fetched and not punched since.

    The daemon keeps those pages in their frames, so a mapping of any other frame is
    stale.
    """

    def __init__(self, shim: Shim, shifts: dict[int, int]) -> None:
        found: dict[int, list[_Extent]] = {ino: [] for ino in shifts}
        for pin in shim.query_pins().extents:
            if pin.ino in found:
                shift = shifts[pin.ino]
                found[pin.ino].append(
                    _Extent(pin.offset << shift, pin.pfn, pin.count << shift)
                )
        self._extents: Final = {ino: sorted(each) for ino, each in found.items()}

    def between(self, ino: int, start: int, end: int) -> Iterator[_Extent]:
        """The fetched pages from *start* to *end* of a file."""
        extents = self._extents[ino]
        index = max(bisect_right(extents, _Extent(start, 1 << 64, 0)) - 1, 0)
        while index < len(extents) and extents[index].pgoff < end:
            first, pfn, pages = extents[index]
            index += 1
            low, high = max(first, start), min(first + pages, end)
            if low < high:
                yield _Extent(low, pfn + low - first, high - low)


def stale_sptes(
    shim: Shim, slots: Iterable[MemorySlot], runs: Iterable[Run]
) -> list[StaleSpte]:
    """The parts of *runs* that map other frames than their files have there.

    A mapping without any fetched page is stale. In a huge mapping with fetched pages,
    only those pages are compared.
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
) -> Iterator[_Wanted]:
    """The mappings that the gfns *start* to *end* should have, of *step* pages each."""
    gfn = start
    for first, pfn, pages in fetched.between(
        file.ino, slot.pgoff(start), slot.pgoff(end)
    ):
        known = slot.base_gfn + first - slot.private_pgoff
        # The whole mappings before this extent have no fetched page.
        if (known & -step) > gfn:
            yield _Wanted(gfn, None, (known & -step) - gfn)
        yield _Wanted(known, pfn, pages)
        gfn = max(gfn, -(-(known + pages) // step) * step)
    if gfn < end:
        yield _Wanted(gfn, None, end - gfn)


def double_allocated(slots: Iterable[MemorySlot]) -> int:
    """Count the 4 KiB pages that both a slot's file and its shared half have.

    Raises:
        OSError: EPERM where the mount refuses get-memory; `ControlError`.
    """
    return sum(
        _double(slot, slot.backing, slot.shared)
        for slot in slots
        if slot.backing is not None and slot.shared is not None
    )


def _double(slot: MemorySlot, file: BackingFile, shared: SharedHalf) -> int:
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
    other = int.from_bytes(shared.resident(pages), "little")
    return (ones & private & other).bit_count()
