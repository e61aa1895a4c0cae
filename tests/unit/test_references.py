"""References of each peer, across punches, against a model that knows each page."""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from itertools import chain
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inaccfs.shim.frames import Extent
from inaccfs.shim.references import Reference, References
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Sequence

BASE: Final = 0x1000


def pages(offset: int, pfn: int, count: int) -> list[Extent]:
    return [Extent(offset, pfn, count, 0)]


def described(references: References, *holders: str) -> list[Reference]:
    """The references of these holders, or of all."""
    return [
        one
        for holder in holders or references.holders()
        for one in references.describe(holder)
    ]


def dropped(references: References, holder: str) -> list[tuple[int, int]]:
    return list(chain.from_iterable(references.drop(holder)))


def put_all(
    references: References, holder: str, *extents: tuple[int, int]
) -> list[tuple[int, int]]:
    return [
        run
        for put in references.put_all(holder, extents)
        if put is not None
        for run in put.freed
    ]


@pytest.fixture
def references() -> References:
    return References()


def test_far_more_than_there_is_is_refused_at_once(references: References) -> None:
    references.get("kvm", pages(0, BASE, 10))
    putting = references.put_all("kvm", [(BASE, 10), (BASE + 10, 1 << 50)])
    with refused(errno.EINVAL):
        next(putting)
    assert references.total("kvm") == 10


def test_a_put_is_as_large_as_it_says(references: References) -> None:
    references.get("kvm", pages(0, BASE, 10))
    assert references.total("kvm") == 10
    assert references.put("kvm", BASE + 3, 4) == []
    assert references.total("kvm") == 6
    assert described(references, "kvm") == [
        Reference("kvm", 0, BASE, 3, 1, punched=False),
        Reference("kvm", 7, BASE + 7, 3, 1, punched=False),
    ]


@pytest.mark.parametrize(
    ("pfn", "count"),
    [(BASE - 1, 2), (BASE + 9, 2), (BASE + 3, 3), (BASE, 0), (BASE, -1), (BASE, 10)],
    ids=["before", "behind", "a hole", "nothing", "less", "all"],
)
def test_a_put_of_too_many_changes_nothing(
    references: References, pfn: int, count: int
) -> None:
    references.get("kvm", [*pages(0, BASE, 4), *pages(5, BASE + 5, 5)])
    before = described(references)
    with refused(errno.EINVAL):
        references.put("kvm", pfn, count)
    assert described(references) == before
    assert references.total("kvm") == 9


def test_a_peer_cannot_put_references_of_another(references: References) -> None:
    references.get("one", pages(0, BASE, 1))
    with refused(errno.EINVAL):
        references.put("other", BASE, 1)
    references.put("one", BASE, 1)
    with refused(errno.EINVAL):
        references.put("one", BASE, 1)


def test_a_page_got_twice_is_put_twice(references: References) -> None:
    references.get("kvm", pages(0, BASE, 4))
    references.get("kvm", pages(2, BASE + 2, 4))
    assert references.total("kvm") == 8
    assert [(one.offset, one.count, one.refs) for one in described(references)] == [
        (0, 2, 1),
        (2, 2, 2),
        (4, 2, 1),
    ]
    references.put("kvm", BASE, 6)
    references.put("kvm", BASE + 2, 2)
    assert not references
    assert references.total("kvm") == 0


def test_a_punched_page_is_free_when_the_last_holder_puts_it(
    references: References,
) -> None:
    for holder in ("one", "other"):
        references.get(holder, pages(0, BASE, 4))
    references.get("one", pages(1, BASE + 1, 1))
    assert references.punched(pages(0, BASE, 6)) == [(BASE + 4, 2)]
    assert all(one.punched for one in described(references))
    assert references.put("one", BASE, 4) == []
    assert references.put("other", BASE, 2) == [(BASE, 1)]
    assert references.put("one", BASE + 1, 1) == [(BASE + 1, 1)]
    assert dropped(references, "other") == [(BASE + 2, 2)]
    assert dropped(references, "other") == []
    assert not references


def test_a_referenced_page_that_was_not_punched_is_not_free(
    references: References,
) -> None:
    references.get("kvm", pages(0, BASE, 4))
    references.punched(pages(0, BASE, 2))
    assert dropped(references, "kvm") == [(BASE, 2)]


def test_a_frame_that_comes_back_is_put_in_the_order_it_was_got(
    references: References,
) -> None:
    references.get("kvm", pages(0, BASE, 1))
    references.punched(pages(0, BASE, 1))
    references.get("kvm", pages(7, BASE, 1))
    assert described(references) == [
        Reference("kvm", 0, BASE, 1, 1, punched=True),
        Reference("kvm", 7, BASE, 1, 1, punched=False),
    ]
    assert references.put("kvm", BASE, 1) == [(BASE, 1)]
    assert described(references) == [Reference("kvm", 7, BASE, 1, 1, punched=False)]
    assert references.put("kvm", BASE, 1) == []


def test_a_frame_that_comes_back_as_the_same_page_is_another_all_the_same(
    references: References,
) -> None:
    for _ in range(2):
        references.get("kvm", pages(0, BASE, 1))
        references.punched(pages(0, BASE, 1))
        references.get("kvm", pages(0, BASE, 1))
    assert [(one.refs, one.punched) for one in described(references)] == [
        (1, True),
        (2, True),
        (1, False),
    ]
    assert references.put("kvm", BASE, 1) == []
    assert references.put("kvm", BASE, 1) == []
    # This was the last reference to the old page; one more is to the new page.
    assert references.put("kvm", BASE, 1) == [(BASE, 1)]
    assert references.total("kvm") == 1


def test_a_punch_is_of_the_page_that_is_there_now(references: References) -> None:
    """Two pages that exchanged frames are punched one after the other."""
    references.get("kvm", [*pages(0, BASE, 1), *pages(1, BASE + 1, 1)])
    # The old reference was to page 0: page 1 was not in that frame then.
    references.punched(pages(1, BASE, 1))
    assert not any(one.punched for one in described(references))
    references.punched(pages(0, BASE, 1))
    assert [one.punched for one in described(references)] == [True, False]


def test_frames_of_huge_pages_are_counted_in_small_ones() -> None:
    references = References(frames_per_page=512)
    references.get("kvm", pages(3, 512 * 100, 4))
    with refused(errno.EINVAL):
        references.put("kvm", 512 * 100 + 1, 1)
    references.put("kvm", 512 * 101, 1)
    assert described(references) == [
        Reference("kvm", 3, 512 * 100, 1, 1, punched=False),
        Reference("kvm", 5, 512 * 102, 2, 1, punched=False),
    ]
    assert references.punched(pages(3, 512 * 100, 4)) == [(512 * 101, 1)]
    assert dropped(references, "kvm") == [(512 * 100, 1), (512 * 102, 2)]


def test_a_million_pages_in_one_extent_are_one_record(references: References) -> None:
    references.get("kvm", pages(0, BASE, 1_000_000))
    references.put("kvm", BASE + 1000, 1)
    assert len(described(references)) == 2
    references.punched(pages(0, BASE, 1_000_000))
    assert dropped(references, "kvm") == [(BASE, 1000), (BASE + 1001, 998_999)]


PAGES: Final = 5
holders = st.sampled_from(["a", "b"])
runs = st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)).map(
    lambda run: (run[0], min(run[1], PAGES - run[0]))
)


class EachPage(RuleBasedStateMachine):
    """Page by page: a list of references, oldest first. Frames are those at BASE."""

    def __init__(self) -> None:
        super().__init__()
        self.tested = References()
        # By holder and frame: (offset, whether punched) of each reference.
        self.refs: dict[tuple[str, int], list[tuple[int, bool]]] = defaultdict(list)
        # The shift says which pages of the file are in these frames now.
        self.shift = 0

    def free(self, frames: set[int]) -> set[int]:
        """The *frames* without a reference from before a punch."""
        return {
            frame
            for frame in frames
            if not any(punched for h in "ab" for _, punched in self.refs[h, frame])
        }

    @staticmethod
    def as_set(found: Sequence[tuple[int, int]]) -> set[int]:
        frames = [pfn - BASE + at for pfn, count in found for at in range(count)]
        assert len(set(frames)) == len(frames)
        return set(frames)

    @rule(holder=holders, run=runs)
    def get(self, holder: str, run: tuple[int, int]) -> None:
        start, count = run
        self.tested.get(holder, pages(start + self.shift, BASE + start, count))
        for frame in range(start, start + count):
            self.refs[holder, frame].append((frame + self.shift, False))

    @rule(holder=holders, run=runs)
    def put(self, holder: str, run: tuple[int, int]) -> None:
        start, count = run
        frames = range(start, start + count)
        if not all(self.refs[holder, frame] for frame in frames):
            with refused(errno.EINVAL):
                self.tested.put(holder, BASE + start, count)
            return
        freed = self.as_set(self.tested.put(holder, BASE + start, count))
        freed_now = {f for f in frames if self.refs[holder, f].pop(0)[1]}
        assert freed == self.free(freed_now)

    @rule(holder=holders, runs=st.lists(runs, min_size=1, max_size=3))
    def put_all(self, holder: str, runs: list[tuple[int, int]]) -> None:
        wanted = Counter(
            frame for start, count in runs for frame in range(start, start + count)
        )
        extents = [(BASE + start, count) for start, count in runs]
        if any(len(self.refs[holder, f]) < wanted[f] for f in wanted):
            with refused(errno.EINVAL):
                put_all(self.tested, holder, *extents)
            return
        freed = self.as_set(put_all(self.tested, holder, *extents))
        freed_now = set()
        for frame, number in wanted.items():
            for _ in range(number):
                if self.refs[holder, frame].pop(0)[1]:
                    freed_now.add(frame)
        assert freed == self.free(freed_now)

    @rule(holder=holders)
    def drop(self, holder: str) -> None:
        freed = self.as_set(dropped(self.tested, holder))
        freed_now = set()
        for frame in range(PAGES):
            if any(punched for _, punched in self.refs.pop((holder, frame), [])):
                freed_now.add(frame)
        assert freed == self.free(freed_now)

    @rule()
    def move_on(self) -> None:
        self.shift += 1

    @rule(run=runs)
    def punch(self, run: tuple[int, int]) -> None:
        start, count = run
        free = self.as_set(
            self.tested.punched(pages(start + self.shift, BASE + start, count))
        )
        frames = range(start, start + count)
        for frame in frames:
            for holder in "ab":
                self.refs[holder, frame] = [
                    (at, punched or at == frame + self.shift)
                    for at, punched in self.refs[holder, frame]
                ]
        assert free == self.free(set(frames))

    @invariant()
    def describes_each_reference(self) -> None:
        by_place: dict[tuple[str, int], list[tuple[int, bool]]] = defaultdict(list)
        for one in described(self.tested):
            assert isinstance(one.holder, str)
            for at in range(one.count):
                place = (one.holder, one.pfn - BASE + at)
                by_place[place] += [(one.offset + at, one.punched)] * one.refs
        assert by_place == {key: value for key, value in self.refs.items() if value}
        for holder in "ab":
            held = [v for (h, _), v in self.refs.items() if h == holder]
            assert self.tested.total(holder) == sum(map(len, held))


TestEachPage = EachPage.TestCase
# tests/hard/test_models.py runs more of them.
TestEachPage.settings = settings(max_examples=40)
