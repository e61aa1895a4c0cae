"""Conversions: first the checks, then the events and the store; pins refuse them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from inaccfs.errors import PageError, PinnedError
from inaccfs.semantics import (
    V7,
    V8,
    GuestMemfd,
    GuestMemfd72,
    GuestMemfdShared,
    HugetlbRfc,
    InPlaceNext,
    InPlaceV8,
    MigratableRfc,
    Semantics,
)
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.unit.conversion_worlds import PAGE, SIZE, world
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from inaccfs.inprocess import File

HUGE = 512

# --- what is converted --------------------------------------------------------------


@pytest.mark.parametrize("initial", ["private", "shared"])
def test_a_file_begins_as_one_kind_and_pages_become_the_other(initial: str) -> None:
    with world(initial=initial) as it:
        whole = [(0, SIZE)]
        assert it.private == (whole if initial == "private" else [])
        it.file.set_memory_attributes(4, 4, False)
        it.file.set_memory_attributes(0, 2, True)
        it.file.set_memory_attributes(6, 1, True)
        wanted = [(0, 4), (6, 7), (8, 16)] if initial == "private" else [(0, 2), (6, 7)]
        assert it.private == wanted


def test_the_ranges_cover_the_file_and_neighbours_are_merged() -> None:
    with world() as it:
        for page in (3, 4, 5):
            it.file.set_memory_attributes(page, 1, False)
        rows = it.file.query_memory_attributes()
        assert rows == [(0, 3, True), (3, 3, False), (6, 10, True)]


def test_a_punch_changes_no_attribute() -> None:
    with world() as it:
        it.file.set_memory_attributes(2, 3, False)
        it.mount.fallocate(it.fd, PUNCH, 0, SIZE * PAGE)
        assert it.private == [(0, 2), (5, 16)]


def test_every_vm_on_the_file_gets_the_events() -> None:
    with world(exclusive=False) as it:
        other = it.mount.connect()
        it.listen(0, 8)
        it.listen(4, 12, other.file(it.fd))
        other.file(it.fd).set_memory_attributes(6, 4, False)
        assert it.events == [
            ("start", 6, 8, "private"),
            ("start", 6, 10, "private"),
            ("end", 6, 8, "private"),
            ("end", 6, 10, "private"),
        ]
        other.close()


# --- the order ----------------------------------------------------------------------


def test_nobody_hears_of_what_is_so_already() -> None:
    with world() as it:
        it.listen(0, SIZE)
        it.file.set_memory_attributes(0, SIZE, True)
        assert it.events == []
        it.file.set_memory_attributes(0, 2, False)
        it.events.clear()
        # A mixed range is converted as a whole.
        it.file.set_memory_attributes(0, SIZE, True)
        assert it.events == [("start", 0, SIZE, "both"), ("end", 0, SIZE, "both")]


@pytest.mark.parametrize(
    ("stored", "at_end"), [("before the end", False), ("after the end", True)]
)
def test_the_attribute_is_stored_before_or_after_the_end(
    stored: str, at_end: bool
) -> None:
    """hugetlb-rfc sends the end first: a fault before the store finds the old one."""
    found: list[tuple[str, bool]] = []
    with world(stored=stored) as it:
        it.then = lambda event: found.append((event, it.private == [(0, SIZE)]))
        it.listen(0, SIZE)
        it.file.set_memory_attributes(0, SIZE, False)
    assert found == [("start", True), ("end", at_end)]


@pytest.mark.parametrize(
    ("rule", "to_private", "mixed", "to_shared"),
    [
        ("present", "shared", "both", "private"),
        ("opposite", "shared", "shared", "private"),
        ("both", "both", "both", "both"),
    ],
)
def test_events_carry_the_kinds_that_are_zapped(
    rule: str, to_private: str, mixed: str, to_shared: str
) -> None:
    with world(conversion_kinds=rule, initial="shared") as it:
        it.listen(0, SIZE)
        it.file.set_memory_attributes(0, 4, True)
        it.file.set_memory_attributes(0, 8, True)
        it.file.set_memory_attributes(0, 8, False)
        kinds = [kinds for event, _, _, kinds in it.events if event == "start"]
        assert kinds == [to_private, mixed, to_shared]
        assert [kinds for event, *_, kinds in it.events if event == "end"] == kinds


@pytest.mark.parametrize(
    ("rule", "kinds"),
    [
        ("none", [None, None]),
        ("initial", ["private", "private"]),
        ("present", ["both", "shared"]),
        ("both", ["both", "both"]),
    ],
)
def test_events_of_punches_carry_kinds_by_another_rule(
    rule: str, kinds: list[str | None]
) -> None:
    with world(kinds=rule) as it:
        it.file.set_memory_attributes(2, 2, False)
        it.listen(0, SIZE)
        it.mount.fallocate(it.fd, PUNCH, 0, 4 * PAGE)
        it.mount.fallocate(it.fd, PUNCH, 2 * PAGE, PAGE)
        it.file.get_pfn(3)
        it.file.memory_failure(3)
        found = [kinds for event, *_, kinds in it.events if event == "start"]
        assert found == [*kinds, kinds[1]]


@pytest.mark.parametrize(
    ("order", "names"),
    [("before", ["invalidate"]), ("after", ["invalidate"])],
)
def test_other_orders_go_with_conversions_too(order: str, names: list[str]) -> None:
    with world(order=order) as it:
        it.listen(0, SIZE)
        it.file.set_memory_attributes(0, 1, False)
        assert [event for event, *_ in it.events] == names


# --- references and pins ------------------------------------------------------------


def test_a_reference_refuses_a_conversion_to_private_and_nobody_hears_of_it() -> None:
    with world(initial="shared") as it:
        it.listen(0, SIZE)
        pfn = it.file.get_pfn(5).pfn
        for start, count in ((0, SIZE), (5, 1), (3, 4)):
            with pytest.raises(PinnedError) as caught:
                it.file.set_memory_attributes(start, count, True)
            assert (caught.value.errno, caught.value.offset) == (errno.EAGAIN, 5)
        assert (it.events, it.private) == ([], [])
        # All others can be converted, and then the whole range, once it is put.
        it.file.set_memory_attributes(0, 5, True)
        it.file.set_memory_attributes(6, 10, True)
        it.file.put_pfn(pfn)
        it.file.set_memory_attributes(0, SIZE, True)
        assert it.private == [(0, SIZE)]


def test_a_reference_to_a_private_page_does_not_refuse_to_share_it() -> None:
    with world() as it:
        it.listen(0, SIZE)
        it.file.get_pfn(5)
        it.file.set_memory_attributes(0, SIZE, False)
        assert it.private == []


def test_a_reference_to_a_punched_page_refuses_nothing() -> None:
    with world(initial="shared") as it:
        it.listen(0, SIZE)
        it.file.get_pfn(5)
        it.mount.fallocate(it.fd, PUNCH, 5 * PAGE, PAGE)
        it.file.set_memory_attributes(0, SIZE, True)


@pytest.mark.parametrize(("rule", "page"), [("references", 2), ("pins first", 9)])
def test_which_page_is_told_depends_on_what_is_looked_at_first(
    rule: str, page: int
) -> None:
    with world(initial="shared", pin_check=rule) as it:
        it.listen(0, SIZE)
        it.file.get_pfn(2)
        it.file.pin_pages(9)
        with pytest.raises(PinnedError) as caught:
            it.file.set_memory_attributes(0, SIZE, True)
        assert caught.value.offset == page


def test_where_nothing_is_looked_for_nothing_refuses() -> None:
    with world(initial="shared", pin_check="none") as it:
        it.file.pin_pages(9)
        it.file.set_memory_attributes(0, SIZE, True)


def test_without_references_a_pin_still_refuses() -> None:
    with world(InPlaceNext, initial="shared") as it:
        it.listen(0, SIZE)
        it.file.get_pfn(1)
        pinned = it.file.pin_pages(3, 2)
        with pytest.raises(PinnedError) as caught:
            it.file.set_memory_attributes(0, SIZE, True)
        assert caught.value.offset == 3
        it.file.unpin_pages(pinned)
        with refused(errno.EINVAL):
            it.file.unpin_pages(pinned)
        it.file.set_memory_attributes(0, SIZE, True)


def test_pins_go_with_their_client() -> None:
    with world(initial="shared") as it:
        other = it.mount.connect()
        other.file(it.fd).pin_pages(3)
        with refused(errno.EAGAIN):
            it.file.set_memory_attributes(0, SIZE, True)
        other.close()
        it.file.set_memory_attributes(0, SIZE, True)


def test_a_pin_locks_no_page_where_get_pfn_does() -> None:
    """A lock ends with put-pfn, and is waited for; a pin may never end."""
    with world(V7, mmap="shared", initial="shared") as it:
        pinned = it.file.pin_pages(3)
        got = it.file.get_pfn(3)
        with refused(errno.EAGAIN):
            it.file.get_pfn(3)
        it.file.put_pfn(got.pfn)
        # Nobody is waited for, and evicted.
        it.mount.fallocate(it.fd, PUNCH, 3 * PAGE, PAGE)
        it.file.unpin_pages(pinned)


# --- content ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kept"), [("unspecified", b"guest"), ("zeroed", bytes(5))]
)
def test_content_after_a_conversion_to_shared(content: str, kept: bytes) -> None:
    with world(content=content) as it:
        memory = it.file.get_memory()
        os.pwrite(memory, b"guest", 3 * PAGE)
        blocks = it.blocks
        it.file.set_memory_attributes(0, SIZE, False)
        assert os.pread(memory, 5, 3 * PAGE) == kept
        # No hole has been filled.
        assert it.blocks == blocks
        it.file.set_memory_attributes(0, SIZE, True)
        assert os.pread(memory, 5, 3 * PAGE) == kept
        os.close(memory)


def test_where_content_would_go_present_pages_are_not_converted() -> None:
    with world(content="refused") as it:
        it.listen(0, SIZE)
        it.mount.fallocate(it.fd, FALLOC_FL_KEEP_SIZE, 7 * PAGE, PAGE)
        with pytest.raises(PageError) as caught:
            it.file.set_memory_attributes(0, SIZE, False)
        assert (caught.value.errno, caught.value.offset) == (errno.EOPNOTSUPP, 7)
        assert it.events == []
        it.file.set_memory_attributes(0, 7, False)
        it.mount.fallocate(it.fd, PUNCH, 7 * PAGE, PAGE)
        it.file.set_memory_attributes(0, SIZE, False)


# --- get-pfn ------------------------------------------------------------------------


def test_get_pfn_tells_the_attribute() -> None:
    with world() as it:
        it.listen(0, SIZE)
        it.file.set_memory_attributes(2, 2, False)
        assert it.file.get_pfn(1).private is True
        assert it.file.get_pfn(2).private is False
        found = it.file.get_pfns(0, 8)
        assert [(one.offset, one.count, one.private) for one in found] == [
            (0, 2, True),
            (2, 2, False),
            (4, 4, True),
        ]


def test_in_other_versions_it_does_not() -> None:
    with world(GuestMemfd72) as it:
        it.listen(0, SIZE)
        assert it.file.get_pfn(1).private is None


# --- huge pages ---------------------------------------------------------------------


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
                *(start, end, print),
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


def test_a_punch_of_a_pinned_page_has_its_start_and_end_and_fails() -> None:
    with world(HugetlbRfc, 2 * HUGE) as it:
        it.listen(0, 2 * HUGE)
        pfn = it.file.get_pfn(3).pfn
        with refused(errno.EAGAIN):
            it.mount.fallocate(it.fd, PUNCH, 0, HUGE * PAGE)
        assert [event for event, *_ in it.events] == ["start", "end"]
        assert it.blocks == HUGE
        it.file.put_pfn(pfn)
        it.mount.fallocate(it.fd, PUNCH, 0, HUGE * PAGE)
        assert it.blocks == 0


def test_the_rule_of_pinned_punches_goes_with_any_order() -> None:
    with world(V8, pinned_punch="refused") as it:
        it.listen(0, SIZE)
        it.file.get_pfn(3)
        with refused(errno.EAGAIN):
            it.mount.fallocate(it.fd, PUNCH, 0, 8 * PAGE)
        assert it.blocks > 0


# --- a user's class -----------------------------------------------------------------


@pytest.mark.parametrize("base", [V8, GuestMemfd, GuestMemfdShared])
def test_attributes_can_be_added_to_any_version(base: type[Semantics]) -> None:
    with world(base, attributes="file") as it:
        it.listen(0, SIZE)
        was = it.file.query_memory_attributes()[0].private
        it.file.set_memory_attributes(0, 4, not was)
        assert len(it.file.query_memory_attributes()) == 2
        assert it.events


# --- migration ----------------------------------------------------------------------


def test_migrated_pages_have_other_frames_within_a_bracket() -> None:
    with world(MigratableRfc) as it:
        it.listen(0, SIZE)
        old = it.file.get_pfns(0, SIZE)
        for one in old:
            it.file.put_pfn(one.pfn, one.count)
        it.file.migrate(4, 2)
        assert it.events == [("start", 4, 6, "shared"), ("end", 4, 6, "shared")]
        before = {
            one.offset + at: one.pfn + at for one in old for at in range(one.count)
        }
        after = {
            one.offset + at: one.pfn + at
            for one in it.file.get_pfns(0, SIZE)
            for at in range(one.count)
        }
        moved = {page for page in before if before[page] != after[page]}
        assert moved == {4, 5}


@pytest.mark.parametrize("pinned", [False, True])
def test_pages_with_references_stay_and_the_bracket_is_closed(pinned: bool) -> None:
    with world(MigratableRfc) as it:
        it.listen(0, SIZE)
        if pinned:
            it.file.pin_pages(5)
        else:
            it.file.get_pfn(5)
        with pytest.raises(PinnedError) as caught:
            it.file.migrate(0, SIZE)
        assert caught.value.offset == 5
        assert [event for event, *_ in it.events] == ["start", "end"]


@pytest.mark.parametrize("base", [GuestMemfd72, InPlaceV8])
def test_elsewhere_nothing_migrates(base: type[Semantics]) -> None:
    with world(base) as it, refused(errno.EOPNOTSUPP):
        it.file.migrate(0, 1)


def test_private_pages_do_not_migrate() -> None:
    with world(InPlaceV8, migration="bracket") as it:
        it.file.set_memory_attributes(0, 2, False)
        it.file.migrate(0, 2)
        with refused(errno.EOPNOTSUPP):
            it.file.migrate(0, 3)
        with refused(errno.EINVAL):
            it.file.migrate(SIZE, 1)


# --- prepared bindings --------------------------------------------------------------


def test_a_binding_can_be_prepared_and_committed() -> None:
    with world(InPlaceNext) as it:
        place = (0, SIZE, lambda start, end: it.events.append(("x", start, end, None)))
        made = it.file.bind(*place, prepare=True)
        it.file.set_memory_attributes(0, 1, False)
        assert it.events == []
        made.commit()
        it.file.set_memory_attributes(1, 1, False)
        assert it.events == [("x", 1, 2, None)]
        with refused(errno.ENOENT):
            made.commit()
        late = it.file.bind(*place, prepare=True)
        with refused(errno.EEXIST):
            late.commit()
        assert not late.registered
        made.unregister()
    with world(InPlaceV8) as it, refused(errno.EOPNOTSUPP):
        it.file.bind(0, 1, print, prepare=True)
