"""The table of known frames, against a dict with each page."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs import syscalls
from inaccfs.shim.frames import (
    Extent,
    Table,
    allocate,
    differing,
    split_folios,
    whole_folios,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

END: Final = 40

ranges = st.tuples(st.integers(0, END), st.integers(0, END)).map(
    lambda pair: (min(pair), max(pair))
)
# Each page's frame less its offset, and its order: few, so that many go on.
places = st.tuples(st.sampled_from([100, 200]), st.integers(0, 1))
# What is recorded of a range: page by page, or all of it alike.
records = st.tuples(
    ranges,
    st.lists(st.none() | places, max_size=END)
    | places.map(lambda place: [place] * END),
)


def as_extents(model: dict[int, tuple[int, int]], per_page: int) -> list[Extent]:
    """The fewest extents with the content of *model*."""
    found: list[Extent] = []
    for page, (shift, order) in sorted(model.items()):
        if (
            found
            and model.get(page - 1) == (shift, order)
            and found[-1].offset + found[-1].count == page
        ):
            found[-1] = found[-1]._replace(count=found[-1].count + 1)
        else:
            found.append(Extent(page, shift + page * per_page, 1, order))
    return found


@pytest.mark.parametrize("per_page", [1, 512])
@given(done=st.lists(records, max_size=15), looked_at=ranges)
def test_it_knows_each_page_in_as_few_extents_as_possible(
    done: list[tuple[tuple[int, int], Sequence[tuple[int, int] | None]]],
    looked_at: tuple[int, int],
    per_page: int,
) -> None:
    # A few extents are many blocks.
    tested, model = Table(per_page, load=2), dict[int, tuple[int, int]]()
    for (start, end), new in done:
        pages = {
            start + at: place
            for at, place in enumerate(new[: end - start])
            if place is not None
        }
        for page in range(start, end):
            model.pop(page, None)
        model.update(pages)
        tested.record(start, end, as_extents(pages, per_page))
        assert tested.extents() == as_extents(model, per_page)
        assert tested.pages == len(model)
    start, end = looked_at
    inside = {page: place for page, place in model.items() if start <= page < end}
    expected = as_extents(inside, per_page)
    assert tested.look(start, end) == expected
    whole = len(inside) == end - start
    assert tested.whole(start, end) == (expected if whole else None)
    missing = dict.fromkeys(set(range(start, end)) - set(inside), (0, 0))
    assert tested.gaps(start, end) == [
        (one.offset, one.offset + one.count) for one in as_extents(missing, per_page)
    ]
    tested.clear()
    assert tested.extents() == []


def test_only_pages_in_other_frames_differ() -> None:
    old = [Extent(0, 100, 10, 0), Extent(20, 300, 2, 0)]
    # A removed page has not moved, and neither has one whose order changed.
    new = [Extent(0, 100, 4, 3), Extent(4, 500, 2, 0), Extent(6, 106, 1, 0)]
    assert differing(old, new, 1) == [Extent(4, 104, 2, 0)]
    assert differing(old, [], 1) == []


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (8, 16, (8, 16)),
        (9, 10, (8, 16)),
        (15, 17, (8, 32)),
        (4, 6, (4, 6)),
        (20, 24, (16, 32)),
        (100, 200, (100, 200)),
    ],
)
def test_a_range_is_widened_to_the_folios_at_its_ends(
    start: int, end: int, expected: tuple[int, int]
) -> None:
    table = Table(1)
    table.record(0, 8, [Extent(0, 0, 8, 0)])
    table.record(8, 16, [Extent(8, 8, 8, 3)])
    table.record(16, 32, [Extent(16, 16, 16, 4)])
    assert whole_folios(table.look, start, end) == expected


def test_a_folio_counts_if_but_one_of_its_pages_is_known() -> None:
    table = Table(1)
    table.record(3, 4, [Extent(3, 1024 + 3, 1, 9)])
    assert whole_folios(table.look, 100, 200) == (0, 200)
    assert whole_folios(table.look, 0, 2) == (0, 512)
    assert whole_folios(table.look, 512, 600) == (512, 600)


@pytest.mark.parametrize("length", [4096, 4 << 20], ids=["quick", "long"])
def test_an_allocation_that_is_interrupted_is_begun_again(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """The kernel interrupts one on a hugetlbfs when it needs this thread."""
    tried = []
    call = syscalls.fallocate_now if length == 4096 else syscalls.fallocate

    def interrupted(*arguments: int) -> None:
        tried.append(arguments)
        if len(tried) < 3:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        call(*arguments)

    monkeypatch.setattr(syscalls, call.__name__, interrupted)
    fd = os.memfd_create("interrupted")
    allocate(fd, 0, length)
    assert len(tried) == 3
    # The size of the file has not changed.
    assert os.fstat(fd).st_size == 0
    assert os.fstat(fd).st_blocks * 512 == length
    os.close(fd)


@pytest.mark.parametrize(
    ("extents", "pages", "split"),
    [
        # The whole folio is found, though only some of its pages are read.
        ([(4, 104, 8, 3)], {2}, [(4, 104, 4, 0), (8, 108, 4, 3)]),
        ([(0, 100, 24, 3)], {8, 15}, [(0, 100, 8, 3), (8, 108, 8, 0), (16, 116, 8, 3)]),
        ([(0, 100, 8, 3), (8, 300, 8, 0)], {3, 9}, [(0, 100, 8, 0), (8, 300, 8, 0)]),
        ([(0, 100, 8, 3), (8, 108, 8, 0)], {3}, [(0, 100, 16, 0)]),
        ([(16, 116, 8, 3)], {3, 99}, [(16, 116, 8, 3)]),
    ],
)
def test_folios_of_some_pages_are_split(
    extents: list[tuple[int, int, int, int]],
    pages: set[int],
    split: list[tuple[int, int, int, int]],
) -> None:
    assert split_folios([Extent(*one) for one in extents], pages, 1) == split


def test_a_page_that_is_a_folio_is_not_split() -> None:
    """On a hugetlbfs."""
    extents = [Extent(0, 512, 4, 9)]
    assert split_folios(extents, {1}, 512) == extents
