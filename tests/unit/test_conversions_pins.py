"""References and pins refuse conversions to private and, by some rules, punches."""

from __future__ import annotations

import errno

import pytest

from inaccfs.errors import PinnedError
from inaccfs.semantics import V7, V8, HugetlbRfc, InPlaceNext
from inaccfs.syscalls import PUNCH
from tests.unit.conversion_worlds import HUGE, PAGE, SIZE, world
from tests.unit.fakes import refused


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
