"""The map of ranges against a dict; its blocks are small, so few ranges need many."""

from __future__ import annotations

from itertools import groupby
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs.shim.rangemap import RangeMap

END: Final = 60

places = st.integers(0, END)
values = st.integers(0, 2)
ranges = st.tuples(places, places).map(lambda pair: (min(pair), max(pair)))
changes = st.one_of(
    st.tuples(st.just("set"), ranges, values),
    st.tuples(st.just("delete"), ranges, values),
    st.tuples(st.just("replace"), ranges, st.lists(st.none() | values, max_size=END)),
)


def as_ranges(model: dict[int, int]) -> list[tuple[int, int, int]]:
    """The fewest ranges with the content of *model*."""
    # Within a run both the value and the place less its index stay the same.
    runs = groupby(
        enumerate(sorted(model)), lambda one: (one[1] - one[0], model[one[1]])
    )
    found = []
    for (_, value), run in runs:
        members = [place for _, place in run]
        found.append((members[0], members[-1] + 1, value))
    return found


def change(
    tested: RangeMap[int], model: dict[int, int], one: tuple[object, ...]
) -> None:
    """Make the same change to both."""
    match one:
        case ("set", (int(start), int(end)), int(value)):
            tested.set(start, end, value)
            model.update(dict.fromkeys(range(start, end), value))
        case ("delete", (int(start), int(end)), _):
            tested.delete(start, end)
            for place in range(start, end):
                model.pop(place, None)
        case ("replace", (int(start), int(end)), list(new)):
            # Single items, so equal neighbours have to be merged.
            pieces = {
                start + at: value
                for at, value in enumerate(new[: end - start])
                if value is not None
            }
            tested.replace(start, end, [(at, at + 1, v) for at, v in pieces.items()])
            for place in range(start, end):
                model.pop(place, None)
            model.update(pieces)
        case _:
            raise AssertionError(one)


@given(st.lists(changes, max_size=25), ranges)
def test_it_is_a_dict_of_all_its_places(
    done: list[tuple[object, ...]], looked_at: tuple[int, int]
) -> None:
    tested, model = RangeMap[int](load=2), dict[int, int]()
    for one in done:
        change(tested, model, one)
        assert list(tested) == as_ranges(model)
        assert tested.size == len(model)
    assert len(tested) == len(as_ranges(model))
    assert bool(tested) == bool(model)
    assert [tested.get(place) for place in range(-1, END + 1)] == [
        model.get(place) for place in range(-1, END + 1)
    ]
    start, end = looked_at
    inside = {place: value for place, value in model.items() if start <= place < end}
    assert tested.clipped(start, end) == as_ranges(inside)
    overlapping = [
        one for one in as_ranges(model) if one[0] < end and start < one[1] and inside
    ]
    assert tested.overlapping(start, end) == overlapping
    assert tested.values(start, end) == [value for _, _, value in overlapping]
    outside = {place: 0 for place in range(start, end) if place not in model}
    assert tested.gaps(start, end) == [one[:2] for one in as_ranges(outside)]
    assert tested.covers(start, end) == (not outside)


@pytest.mark.parametrize("step", [1, -1, 7])
def test_blocks_come_and_go(step: int) -> None:
    tested = RangeMap[int](load=2)
    # 41 is prime, so this visits each place once.
    order = [at * step % 41 for at in range(41)]
    for at in order:
        tested.set(2 * at, 2 * at + 1, at)
    left = set(order)
    for at in order:
        tested.delete(2 * at, 2 * at + 1)
        left.remove(at)
        assert [tested.get(2 * one) for one in left] == list(left)
    assert not tested


def test_a_change_does_not_affect_results_returned_before() -> None:
    tested = RangeMap[str]()
    tested.set(0, 10, "a")
    found = tested.overlapping(0, 10)
    tested.set(3, 4, "b")
    assert found == [(0, 10, "a")]


def test_a_million_places_in_one_range_are_one_range() -> None:
    tested = RangeMap[str]()
    tested.set(0, 1 << 40, "a")
    tested.set(1 << 20, 1 << 21, "b")
    assert len(tested) == 3
    tested.set(1 << 20, 1 << 21, "a")
    assert len(tested) == 1
    assert tested.size == 1 << 40
