"""Page frames as /proc/self/pagemap and /proc/kpageflags show them.

Both need CAP_SYS_ADMIN in the initial user namespace. See
Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from functools import lru_cache, partial
from itertools import compress, repeat
from operator import sub
from typing import TYPE_CHECKING, Final

from inaccfs.shim.frameoptions import FRAME_BYTES, HUGE_ORDER
from inaccfs.shim.frames import Extent

if TYPE_CHECKING:
    from collections.abc import Callable

# An entry of pagemap.
_PRESENT: Final = 1 << 63
_PFN: Final = (1 << 55) - 1

# Bits of kpageflags: include/uapi/linux/kernel-page-flags.h
_HEAD: Final = 1 << 15
_TAIL: Final = 1 << 16

# Frames of the largest folio. Folios are aligned to their size, in file and memory.
_HUGE: Final = 1 << HUGE_ORDER

# Flags of at most this many frames are read one by one.
_FEW_FRAMES: Final = 8


# Extent._make without its checks: there may be very many extents.
_new_extent: Final = partial(tuple.__new__, Extent)


class ProcPages:
    """The two open files."""

    def __init__(self) -> None:
        """Open them.

        Raises:
            OSError: one of them cannot be opened.
        """
        self._pagemap: Final = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._kpageflags: Final = os.open(
                "/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC
            )
        except OSError:
            os.close(self._pagemap)
            raise

    def close(self) -> None:
        """Close them."""
        os.close(self._pagemap)
        os.close(self._kpageflags)

    def are_shown(self) -> bool:
        """Whether this process may see frame numbers; if not, all read as 0."""
        here = ctypes.create_string_buffer(1)
        entry = self._entry(ctypes.addressof(here))
        return entry & _PFN != 0

    def base_pages(self, address: int, offset: int, count: int) -> list[Extent] | None:
        """The frames of *count* mapped pages of 4 KiB at *address*, all with order 0.

        *offset* is that of the first page in its file. None if a page is not in the
        page table at the moment, for instance because it is being migrated.
        """
        if count == 1:
            entry = self._entry(address)
            return [Extent(offset, entry & _PFN, 1, 0)] if entry & _PRESENT else None
        data = os.pread(self._pagemap, 8 * count, address // FRAME_BYTES * 8)
        present, pfns, guards, steps = _lanes(count)
        entries = int.from_bytes(data, "little")
        if entries & present != present:
            return None
        # All pages at once, in lanes of 64 bits: next frame - this frame - 1, that is 0
        # within a run. The guard bits keep a lane from borrowing from the one above.
        entries &= pfns
        steps ^= (entries >> 64 | guards) - entries
        breaks = array("Q", steps.to_bytes(8 * count, "little"))
        starts = [0, *compress(range(1, count), breaks)]
        ends = [*starts[1:], count]
        frames = array("Q", data)
        return list(
            map(
                _new_extent,
                zip(
                    [offset + start for start in starts],
                    [frames[start] & _PFN for start in starts],
                    map(sub, ends, starts),
                    repeat(0),
                    strict=False,
                ),
            )
        )

    def huge_pages(
        self, address: int, offset: int, count: int, page_size: int
    ) -> list[Extent] | None:
        """Like `base_pages`, for pages of *page_size* bytes that are one folio each."""
        per_page = page_size // FRAME_BYTES
        order = per_page.bit_length() - 1
        extents: list[Extent] = []
        for at in range(count):
            entry = self._entry(address + at * page_size)
            if not entry & _PRESENT:
                return None
            one = Extent(offset + at, entry & _PFN, 1, order)
            _append(extents, one, per_page)
        return extents

    def with_orders(self, extents: list[Extent]) -> list[Extent]:
        """*extents* of base pages, cut where the order of the folios changes."""
        found: list[Extent] = []
        for offset, pfn, count, _ in extents:
            end = offset + count
            while offset < end:
                stop = min(end, (offset | (_HUGE - 1)) + 1)
                if not offset % _HUGE and self._is_huge(pfn, stop - offset):
                    folios = [(stop - offset, HUGE_ORDER)]
                else:
                    folios = self._folios(pfn, stop - offset)
                for length, order in folios:
                    _append(found, Extent(offset, pfn, length, order), 1)
                    offset += length
                    pfn += length
        return found

    def _entry(self, address: int) -> int:
        place = address // FRAME_BYTES * 8
        return int.from_bytes(os.pread(self._pagemap, 8, place), "little")

    def _flags(self, pfn: int) -> int:
        return int.from_bytes(os.pread(self._kpageflags, 8, 8 * pfn), "little")

    def _is_huge(self, pfn: int, count: int) -> bool:
        """Whether *count* frames from *pfn* on are one folio of the largest order."""
        # A folio with its head here and a tail in the middle is larger than half.
        return (
            count == _HUGE
            and not pfn % _HUGE
            and bool(self._flags(pfn) & _HEAD)
            and bool(self._flags(pfn + _HUGE // 2) & _TAIL)
        )

    def _folios(self, pfn: int, count: int) -> list[tuple[int, int]]:
        """The folios of *count* frames from *pfn* on: length in them, and order."""
        flags: Callable[[int], int] = self._flags
        if count > _FEW_FRAMES:
            first = pfn & -_HUGE
            size = ((pfn + count - 1) | (_HUGE - 1)) + 1 - first
            data = os.pread(self._kpageflags, 8 * size, 8 * first)
            if not int.from_bytes(data, "little") & _compound(size):
                return [(count, 0)]
            block = array("Q", data)

            def flags(frame: int) -> int:
                return block[frame - first]

        folios = []
        end = pfn + count
        while pfn < end:
            order = _order(pfn, flags)
            stop = min(end, (pfn | (1 << order) - 1) + 1)
            folios.append((stop - pfn, order))
            pfn = stop
        return folios


def _order(pfn: int, flags: Callable[[int], int]) -> int:
    """The order of the folio of a frame."""
    if not flags(pfn) & (_HEAD | _TAIL):
        return 0
    order = 0
    # The folio is at least twice as large if the upper half of that begins with a tail:
    # the first frame of another folio would be a head.
    while order < HUGE_ORDER and flags(pfn & -(2 << order) | 1 << order) & _TAIL:
        order += 1
    return order


def _append(extents: list[Extent], one: Extent, per_page: int) -> None:
    """Append an extent, or merge it into the last one if it continues that."""
    if extents:
        offset, pfn, count, order = extents[-1]
        if pfn + count * per_page == one.pfn and order == one.order:
            extents[-1] = Extent(offset, pfn, count + one.count, order)
            return
    extents.append(one)


def _repeated(lane: int, count: int) -> int:
    return int.from_bytes(lane.to_bytes(8, "little") * count, "little")


@lru_cache(maxsize=4)
def _lanes(count: int) -> tuple[int, int, int, int]:
    """Masks for *count* entries at once: present, frame, guard, guard plus a step."""
    guard = 1 << 63
    return (
        _repeated(_PRESENT, count),
        _repeated(_PFN, count),
        _repeated(guard, count),
        _repeated(guard + 1, count),
    )


@lru_cache(maxsize=4)
def _compound(count: int) -> int:
    """A mask for *count* flags at once: any frame of a folio of several frames."""
    return _repeated(_HEAD | _TAIL, count)
