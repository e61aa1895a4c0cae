"""Pages as text: a character for each, or for as many as it takes to fit.

    0x000000000  rrrr....----....  ................
    0x000020000  ................  ................  and 3 more

Works on runs, so that a map of a terabyte takes no longer than one of a megabyte.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

GROUP: Final = 16
"""The number of characters in a group."""

SEVERAL: Final = "+"
"""A cell with pages of several kinds."""


class Kind(NamedTuple):
    """What a character means."""

    meaning: str
    # As in console_codes(4), between ESC [ and m; empty for none.
    colour: str = ""
    # Whether one such page decides the kind of its cell, whatever the others are.
    shows: bool = False


class Run(NamedTuple):
    """Pages of one kind, from *start* to *end*."""

    start: int
    end: int
    kind: str


class Palette:
    """The kinds of one sort of map, by their characters, in the order of a legend."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.kinds: Final = {**kinds, SEVERAL: Kind("several of these", "35")}

    def cells(self, runs: Iterable[Run], scale: int) -> str:
        """A character for each *scale* pages of *runs*, which are without gaps."""
        found: list[str] = []
        # The current cell: its kinds, and how many pages it has.
        kinds: set[str] = set()
        filled = 0
        for start, end, kind in runs:
            pages = end - start
            if filled:
                part = min(pages, scale - filled)
                kinds.add(kind)
                filled += part
                pages -= part
                if filled < scale:
                    continue
                found.append(self._one(kinds))
            found.append(kind * (pages // scale))
            filled = pages % scale
            kinds = {kind} if filled else set()
        if filled:
            found.append(self._one(kinds))
        return "".join(found)

    def _one(self, kinds: set[str]) -> str:
        if len(kinds) == 1:
            return next(iter(kinds))
        shown = (kind for kind in self.kinds if kind in kinds)
        return next((kind for kind in shown if self.kinds[kind].shows), SEVERAL)

    def legend(
        self, counts: Mapping[str, int], *, colour: bool = False, several: bool = False
    ) -> list[str]:
        """For each kind that occurs: its meaning, and the number of pages."""
        return [
            f"{self._coloured(kind) if colour else kind} {meaning} ({counts[kind]:,})"
            for kind, (meaning, *_) in self.kinds.items()
            if counts.get(kind)
        ] + [f"{SEVERAL} {self.kinds[SEVERAL].meaning}"] * several

    def folded(
        self,
        counts: Mapping[str, int],
        width: int,
        *,
        colour: bool = False,
        several: bool = False,
    ) -> Iterator[str]:
        """The legend, in as few lines of *width* columns as possible."""
        plain = self.legend(counts, several=several)
        drawn = self.legend(counts, colour=colour, several=several)
        line, used = "", 0
        for text, shown in zip(plain, drawn, strict=True):
            if used and used + 3 + len(text) > width:
                yield line
                line, used = "", 0
            line += f"{'   ' if used else ''}{shown}"
            used += len(text) + (3 if used else 0)
        yield line

    def rows(
        self, cells: str, layout: Layout, unit: int, first: int = 0, *, colour: bool
    ) -> Iterator[str]:
        """Lines with the address of their first page, of *unit* bytes each.

        *first* is the page of the first cell. Lines equal to the one before them are
        only counted.
        """
        width = layout.columns
        last = (first + len(cells) * layout.scale) * unit
        digits = max(9, len(f"{last:x}"))
        rows = [
            (first + at * layout.scale, cells[at : at + width])
            for at in range(0, len(cells), width)
        ]
        for text, same in groupby(rows, key=lambda row: row[1]):
            (page, _), *more = same
            also = f"  and {len(more)} more" if more else ""
            line = self._row(text, layout.gap, colour=colour)
            used = digits + 4 + len(self._row(text, layout.gap, colour=False))
            if also and layout.width and used + len(also) > layout.width:
                indent = min(digits + 2, max(layout.width - len(also), 0))
                also = "\n" + " " * indent + also
            yield f"{page * unit:#0{digits + 2}x}  {line}{also}"

    def _row(self, text: str, gap: str, *, colour: bool) -> str:
        parts = [text[at : at + GROUP] for at in range(0, len(text), GROUP)]
        return gap.join(self._coloured(part) if colour else part for part in parts)

    def _coloured(self, text: str) -> str:
        return "".join(
            f"\x1b[{self.kinds[kind].colour}m{''.join(same)}\x1b[0m"
            if self.kinds[kind].colour
            else "".join(same)
            for kind, same in groupby(text)
        )


class Layout(NamedTuple):
    """How many cells a line has, and how many pages a cell."""

    columns: int
    scale: int
    # Between groups.
    gap: str = "  "
    # The most columns of a line; 0 for no limit.
    width: int = 0


def layout(pages: int, unit: int, width: int, height: int) -> Layout:
    """The layout that shows the most of *pages* in *width* columns and *height* lines.

    A page has *unit* bytes. The number of pages in a cell is a power of two.
    """
    digits = max(9, len(f"{pages * unit:x}"))
    room = width - (digits + 2) - 2
    gap = " "
    groups = (room + len(gap)) // (GROUP + len(gap))
    # On a narrow terminal the available width, but at least one cell.
    columns = groups * GROUP if groups > 0 else max(room, 1)
    if groups * (GROUP + 2) - 2 <= room:
        gap = "  "
    scale = 1
    while -(-pages // scale) > columns * max(height, 1):
        scale *= 2
    return Layout(columns, scale, gap, width)


def counted(runs: Sequence[Run]) -> dict[str, int]:
    """How many pages there are of each kind."""
    counts: dict[str, int] = {}
    for start, end, kind in runs:
        counts[kind] = counts.get(kind, 0) + end - start
    return counts
