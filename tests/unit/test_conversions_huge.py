"""Conversions in huge pages: folios split and merge, and events say what goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inaccfs.errors import PinnedError
from inaccfs.semantics import HugetlbRfc
from inaccfs.syscalls import PUNCH
from tests.unit.conversion_worlds import HUGE, PAGE, world

if TYPE_CHECKING:
    from inaccfs.inprocess import File


def orders(file: File, start: int, count: int) -> list[tuple[int, int, int]]:
    found = file.get_pfns(start, count)
    for one in found:
        file.put_pfn(one.pfn, one.count)
    return [(one.offset, one.count, one.order) for one in found]


def test_a_huge_page_splits_at_its_first_shared_page_and_merges_again() -> None:
    with world(HugetlbRfc, 4 * HUGE) as it:
        it.listen(0, 4 * HUGE)
        # Memory comes in whole huge pages.
        assert orders(it.file, 5, 1) == [(5, 1, 9)]
        assert it.blocks == HUGE
        it.file.set_memory_attributes(7, 2, False)
        assert orders(it.file, 0, 2 * HUGE) == [
            (0, 7, 0),
            (7, 2, 0),
            (9, HUGE - 9, 0),
            (HUGE, HUGE, 9),
        ]
        it.file.set_memory_attributes(7, 1, True)
        assert orders(it.file, 0, 1) == [(0, 1, 0)]
        it.file.set_memory_attributes(8, 1, True)
        assert orders(it.file, 0, 2 * HUGE) == [(0, 2 * HUGE, 9)]
        assert it.blocks == 2 * HUGE


@pytest.mark.parametrize("bound", [True, False], ids=["bound", "referenced"])
def test_the_time_does_not_grow_with_huge_pages_that_nobody_watches(
    bound: bool,
) -> None:
    pages = 1 << 38
    with world(HugetlbRfc, pages, initial="shared") as it:
        it.listen(pages - 10, pages)
        it.client.file(it.fd).get_pfn(pages - 10)
        if not bound:
            it.client.close()
            it.client = it.mount.connect()
            it.file = it.client.file(it.fd)
            it.file.pin_pages(pages - 10, 1)
        it.file.set_memory_attributes(0, pages - HUGE, True)
        assert it.private == [(0, pages - HUGE)]
        assert it.events == []
        with pytest.raises(PinnedError):
            it.file.set_memory_attributes(0, pages, True)
        it.file.set_memory_attributes(0, pages, False)
        kinds = [("start", "shared"), ("end", "shared")] if bound else []
        assert [(event, kind) for event, _, _, kind in it.events] == kinds


def test_events_of_a_huge_page_are_rounded_out_to_it() -> None:
    with world(HugetlbRfc, 2 * HUGE) as it:
        it.listen(0, 2 * HUGE)
        it.file.set_memory_attributes(5, 1, False)
        assert [event[:3] for event in it.events] == [
            ("start", 0, HUGE),
            ("end", 0, HUGE),
        ]


def test_events_of_a_huge_page_say_which_mappings_have_to_go() -> None:
    with world(HugetlbRfc, 2 * HUGE) as it:
        found: list[tuple[int, ...] | None] = []
        for start, end in ((0, HUGE // 2), (HUGE // 2, 2 * HUGE)):
            it.file.bind(
                start,
                end,
                print,
                invalidate_start=lambda start, end, zaps: found.append(zaps),
                invalidate_end=lambda start, end, zaps: found.append(zaps),
                with_zaps=True,
            )
        # The second of these is bound to none of them.
        it.file.set_memory_attributes(5, 2, False)
        middle = HUGE // 2
        assert found == [(5, 7), (middle, middle)] * 2
        found.clear()
        # Whole huge pages, and punches.
        it.file.set_memory_attributes(HUGE, HUGE, False)
        it.mount.fallocate(it.fd, PUNCH, HUGE * PAGE, HUGE * PAGE)
        assert found == [None] * 4


def test_one_huge_page_after_the_other_and_an_error_leaves_the_earlier_ones() -> None:
    with world(HugetlbRfc, 4 * HUGE, initial="shared") as it:
        it.listen(0, 4 * HUGE)
        pinned = it.file.pin_pages(2 * HUGE + 3)
        with pytest.raises(PinnedError) as caught:
            it.file.set_memory_attributes(1, 4 * HUGE - 1, True)
        assert caught.value.offset == 2 * HUGE + 3
        assert it.private == [(1, 2 * HUGE)]
        assert [event[:3] for event in it.events] == [
            ("start", 0, HUGE),
            ("end", 0, HUGE),
            ("start", HUGE, 2 * HUGE),
            ("end", HUGE, 2 * HUGE),
        ]
        it.file.unpin_pages(pinned)
        it.file.set_memory_attributes(1, 4 * HUGE - 1, True)
        assert it.private == [(1, 4 * HUGE)]
