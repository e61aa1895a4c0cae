"""Conversions: first the checks, then the events and the store."""

from __future__ import annotations

import errno
import os

import pytest

from inaccfs.errors import PageError, PinnedError
from inaccfs.semantics import (
    V8,
    GuestMemfd,
    GuestMemfd72,
    GuestMemfdShared,
    InPlaceNext,
    InPlaceV8,
    MigratableRfc,
    Semantics,
)
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.unit.conversion_worlds import PAGE, SIZE, world
from tests.unit.fakes import refused

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
