"""Cells: one character for a page or several, and lines that fit."""

from __future__ import annotations

import pytest

from inaccfs.cells import Kind, Layout, Palette, Run, counted, layout

PALETTE = Palette(
    {"!": Kind("bad", "31", shows=True), "a": Kind("there", "36"), ".": Kind("hole")}
)


def runs(text: str) -> list[Run]:
    return [Run(at, at + 1, kind) for at, kind in enumerate(text)]


@pytest.mark.parametrize(
    ("pages", "scale", "cells"),
    [
        ("", 1, ""),
        ("a..a", 1, "a..a"),
        ("aa..a.", 2, "a.+"),
        ("aaaaaa", 4, "aa"),
        ("a..aa", 4, "+a"),
        # Even a single page of this kind must be visible.
        ("aaa!....", 4, "!."),
        (".!", 8, "!"),
    ],
)
def test_a_cell_stands_for_its_pages(pages: str, scale: int, cells: str) -> None:
    assert PALETTE.cells(runs(pages), scale) == cells
    merged = [Run(0, len(pages), pages[0])] if len(set(pages)) == 1 else runs(pages)
    assert PALETTE.cells(merged, scale) == cells


def test_time_does_not_grow_with_pages() -> None:
    huge = [Run(0, 1 << 50, "."), Run(1 << 50, (1 << 50) + 3, "a")]
    assert PALETTE.cells(huge, 1 << 46) == "." * 16 + "a"
    assert counted(huge) == {".": 1 << 50, "a": 3}


@pytest.mark.parametrize("pages", [1, 63, 64, 65, 1 << 10, (1 << 20) + 1, 1 << 40])
@pytest.mark.parametrize(
    ("width", "height"), [(80, 16), (200, 50), (30, 3), (20, 10), (1, 1)]
)
def test_lines_fit(pages: int, width: int, height: int) -> None:
    placed = layout(pages, 4096, width, height)
    halves = [Run(0, pages // 2, "a"), Run(pages // 2, pages, ".")]
    cells = PALETTE.cells(halves, placed.scale)
    lines = "\n".join(PALETTE.rows(cells, placed, 4096, colour=False)).split("\n")
    assert len(lines) <= height
    if width >= 20:
        assert max(map(len, lines)) <= width
    # Half as many pages in a cell would not fit.
    if placed.scale > 1:
        assert -(-pages // (placed.scale // 2)) > placed.columns * height


def test_equal_lines_are_counted() -> None:
    made = PALETTE.rows("a" * 64, Layout(16, 2), 4096, colour=False)
    assert list(made) == ["0x000000000  aaaaaaaaaaaaaaaa  and 3 more"]


def test_a_legend_has_what_is_there() -> None:
    counts = {".": 1234, "a": 1}
    assert PALETTE.legend(counts) == ["a there (1)", ". hole (1,234)"]
    assert PALETTE.legend(counts, colour=True, several=True) == [
        "\x1b[36ma\x1b[0m there (1)",
        ". hole (1,234)",
        "+ several of these",
    ]
