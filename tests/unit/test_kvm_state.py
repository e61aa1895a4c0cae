"""The parts of the simulated KVM that are state only: retry, attributes, page table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs.kvm.attributes import MemoryAttributes
from inaccfs.kvm.invalidation import Invalidation
from inaccfs.kvm.pagetable import ByLevel, PageTable, Run
from inaccfs.kvm.uapi import (
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    MemoryFaultExit,
    Spte,
    level_of_order,
    pages_of_level,
)

# --- the retry protocol ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("gfn", "retries"), [(9, False), (10, True), (19, True), (20, False)]
)
def test_a_fault_in_the_range_retries_while_it_lasts(
    gfn: int, *, retries: bool
) -> None:
    state = Invalidation()
    state.begin(10, 20)
    assert state.retry(state.seq, gfn, gfn + 1) is retries


def test_a_fault_that_began_before_the_end_retries_wherever_it_is() -> None:
    state = Invalidation()
    before = state.seq
    state.begin(10, 20)
    state.end()
    assert state.retry(before, 500, 501)
    assert not state.retry(state.seq, 10, 11)


def test_the_range_is_the_hull_and_is_not_narrowed_before_the_last_end() -> None:
    """Patch 4/8: this causes spurious retries only."""
    state = Invalidation()
    state.begin(10, 20)
    state.begin(40, 50)
    state.end()
    assert (state.range_start, state.range_end) == (10, 50)
    assert state.retry(state.seq, 30, 31)
    state.end()
    assert not state.retry(state.seq, 30, 31)


def test_the_first_of_the_next_ones_sets_the_range_anew() -> None:
    state = Invalidation()
    state.begin(0, 1000)
    state.end()
    state.begin(5, 6)
    assert (state.range_start, state.range_end) == (5, 6)


def test_an_end_without_its_begin_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="without its begin"):
        Invalidation().end()


# --- attributes -----------------------------------------------------------------------

RANGES = st.tuples(st.integers(0, 40), st.integers(1, 20), st.booleans())


@given(st.booleans(), st.lists(RANGES, max_size=12))
def test_attributes_are_those_of_a_list_of_flags(
    default: bool, changes: list[tuple[int, int, bool]]
) -> None:
    attributes = MemoryAttributes(default_private=default)
    model = [default] * 64
    for start, length, private in changes:
        end = start + length
        changed = any(flag != private for flag in model[start:end])
        assert attributes.set(start, end, private=private) is changed
        model[start:end] = [private] * length
    assert [attributes.is_private(gfn) for gfn in range(64)] == model
    for start in range(0, 64, 8):
        assert attributes.mixed(start, start + 8) == (
            len(set(model[start : start + 8])) > 1
        )
    flat = [
        private
        for first, end, private in attributes.runs(0, 64)
        for _ in range(first, end)
    ]
    assert flat == model


# --- the page table -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "level"), [(0, 1), (8, 1), (9, 2), (17, 2), (18, 3), (20, 3)]
)
def test_the_level_follows_from_the_order(order: int, level: int) -> None:
    assert level_of_order(order) == level


@pytest.mark.parametrize("level", [PG_LEVEL_2M, PG_LEVEL_1G])
def test_a_huge_mapping_is_walked_to_the_page_and_zapped_as_a_whole(level: int) -> None:
    table, pages = PageTable(), pages_of_level(level)
    table.map_huge(pages, 4 * pages, level)
    assert table.walk(pages - 1) is None
    assert table.walk(pages + 7) == Spte(4 * pages + 7, level)
    assert table.walk(2 * pages) is None
    assert table.runs() == [Run(pages, 4 * pages, pages, level)]
    zapped = table.zap(pages + 7, pages + 8)
    assert zapped[level - 1] == sum(zapped) == 1
    assert table.count() == ByLevel()


def test_pages_are_not_mapped_over_a_huge_mapping() -> None:
    table = PageTable()
    table.map_huge(512, 1024, PG_LEVEL_2M)
    assert table.map_pages(510, 9000, 4) == 2
    assert table.walk(512) == Spte(1024, PG_LEVEL_2M)
    assert table.walk(511) == Spte(9001, PG_LEVEL_4K)


def test_a_split_huge_mapping_maps_the_same_frames() -> None:
    table, gib = PageTable(), pages_of_level(PG_LEVEL_1G)
    table.map_huge(gib, 2 * gib, PG_LEVEL_1G)
    # Where one begins there is nothing to split, nor where there is none.
    for gfn in (0, gib, 2 * gib):
        assert table.split(gfn) == ByLevel()
    assert table.split(gib + 512) == ByLevel(0, 512, -1)
    assert table.split(gib + 512) == ByLevel()
    assert table.split(gib + 512 + 3) == ByLevel(512, -1, 0)
    assert table.count() == ByLevel(512, 511, 0)
    for gfn, level in ((0, 2), (511, 2), (512, 1), (1023, 1), (1024, 2)):
        assert table.walk(gib + gfn) == Spte(2 * gib + gfn, level)
    assert table.zap(gib + 515, gib + 517) == ByLevel(2, 0, 0)
    assert table.walk(gib + 514) == Spte(2 * gib + 514, PG_LEVEL_4K)


def test_frames_may_lie_anywhere_in_a_table() -> None:
    table = PageTable()
    table.map_pages(0, 100, 2)
    table.map_pages(2, 50, 1)
    table.map_pages(4, 52, 1)
    assert table.runs() == [Run(0, 100, 2, 1), Run(2, 50, 1, 1), Run(4, 52, 1, 1)]


PAGES = st.integers(0, 2000)
MAPS = st.tuples(st.just("map"), PAGES, st.integers(1, 700))
ZAPS = st.tuples(st.just("zap"), PAGES, st.integers(1, 1500))


@given(st.lists(MAPS | ZAPS, max_size=10))
def test_the_table_is_a_dict_of_pages(steps: list[tuple[str, int, int]]) -> None:
    table, model, frame = PageTable(), dict[int, int](), 1 << 20
    for kind, start, count in steps:
        zapped = [gfn for gfn in range(start, start + count) if gfn in model]
        if kind == "zap":
            assert table.zap(start, start + count) == ByLevel(len(zapped))
            for gfn in zapped:
                del model[gfn]
        else:
            assert table.map_pages(start, frame, count) == len(zapped)
            model |= {start + index: frame + index for index in range(count)}
            frame += 1 << 20
    assert table.count() == ByLevel(len(model))
    flat = {
        run.gfn + index: run.pfn + index
        for run in table.copy().runs()
        for index in range(run.pages)
    }
    assert flat == model
    assert all(table.walk(gfn) == Spte(pfn, 1) for gfn, pfn in model.items())


# --- exits ----------------------------------------------------------------------------


def test_an_exit_describes_itself_in_words() -> None:
    assert str(MemoryFaultExit(1, 0x5000, 4096)) == (
        "private access to 4096 bytes at gpa 0x5000"
    )
    assert str(MemoryFaultExit(0, 0, 4096, 22)).endswith(": Invalid argument")
