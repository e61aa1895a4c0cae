"""Which pages are private: a range map that never lacks an entry."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from inaccfs.shim.attributes import Attributes
from inaccfs.shim.frames import Extent

PAGES = 24
spans = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)).map(
    lambda pair: (min(pair), max(pair))
)


@given(
    st.booleans(),
    st.lists(st.tuples(spans, st.booleans()), max_size=12),
    st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)),
)
def test_it_is_a_flag_a_page(
    initial: bool, changes: list[tuple[tuple[int, int], bool]], asked: tuple[int, int]
) -> None:
    made = Attributes("private" if initial else "shared")
    model = [initial] * PAGES
    for (start, end), private in changes:
        made.set(start, end, private=private)
        model[start:end] = [private] * (end - start)
    assert [made.is_private(page) for page in range(PAGES)] == model
    # Far past all changes there is an entry, too.
    assert made.is_private(1 << 51) is initial
    ranges = list(made.since(0, PAGES))
    assert [flag for start, end, flag in ranges for _ in range(start, end)] == model
    assert all(one[2] is not other[2] for one, other in pairwise(ranges))
    start, end = asked[0], min(asked[0] + asked[1], PAGES)
    part = model[start:end]
    for private in (True, False):
        first = start + part.index(private) if private in part else None
        assert made.first(start, end, private=private) == first
    kinds = {True: "private", False: "shared"}
    found = "both" if len(set(part)) == 2 else kinds[part[0]]
    assert made.kinds(start, end) == found


@given(
    st.lists(st.tuples(spans, st.booleans()), max_size=6),
    spans.filter(lambda span: span[0] < span[1]),
    st.sampled_from([1, 4, 8]),
)
def test_extents_are_cut_where_the_attribute_or_the_order_changes(
    changes: list[tuple[tuple[int, int], bool]], asked: tuple[int, int], granule: int
) -> None:
    made = Attributes("private")
    for (start, end), private in changes:
        made.set(start, end, private=private)
    start, end = asked
    found = made.cut([Extent(start, 100 + start, end - start, 3)], granule, 1)
    orders = {}
    for offset, pfn, count, order in found:
        assert pfn == 100 + offset
        assert len({made.is_private(page) for page in range(offset, offset + count)})
        orders.update(dict.fromkeys(range(offset, offset + count), order))

    def is_whole(page: int) -> bool:
        first = page // granule * granule
        return all(made.is_private(one) for one in range(first, first + granule))

    assert orders == {
        page: 3 if granule == 1 or is_whole(page) else 0 for page in range(start, end)
    }


def test_there_is_room_for_so_many_ranges_and_always_for_fewer() -> None:
    made = Attributes("private", most=5)
    for page in (2, 4):
        assert made.has_room(page, page + 1)
        made.set(page, page + 1, private=False)
    assert not made.has_room(6, 7)
    assert not made.has_room(0, 1)
    # This makes no more of them.
    assert made.has_room(2, 5)
    made.set(2, 5, private=False)
    assert made.has_room(6, 7)
