"""Real frames: found, pinned, and unpinned around a punch."""

from __future__ import annotations

import errno
import itertools
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from inaccfs import mmcalls, syscalls
from inaccfs.shim import pins
from inaccfs.shim.frames import Extent
from inaccfs.shim.proc_pages import ProcPages
from tests.unit.fakes import refused
from tests.unit.pagemap_files import (
    HUGE,
    MIB,
    PAGE,
    File,
    by_page,
    open_file,
    shuffle,
    unpinned,
)
from tests.unit.test_pins import pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CAP_SYS_ADMIN: Final = 21


@pytest.fixture
def file() -> Iterator[File]:
    with open_file() as made:
        yield made


@pytest.fixture
def narrow() -> Iterator[File]:
    """A file of which only 2 MiB are mapped at once."""
    with open_file(window_bytes=2 * MIB) as made:
        yield made


# --- fetching ---------------------------------------------------------------------


def test_the_frames_are_those_of_the_kernel(file: File) -> None:
    extents = file.fetch(0, 4096)
    assert list(by_page(extents).values()) == file.read()
    assert {one.order for one in extents} == {0}


def test_as_few_extents_as_the_frames_allow(file: File) -> None:
    # One page at a time, backwards, and all at once give the same frames.
    for page in reversed(range(1000, 1200)):
        file.fetch(page, page + 1)
    extents = file.fetch(0, 2048)
    assert extents == file.frames.extents() == file.frames.known(0, 2048)
    for one, other in itertools.pairwise(extents):
        assert one.offset + one.count == other.offset
        assert one.pfn + one.count != other.pfn


def test_a_hole_is_allocated_and_no_page_more(file: File) -> None:
    file.fetch(7, 8)
    assert file.allocated == 1
    file.fetch(1000, 1030)
    assert file.allocated == 31
    file.fetch(0, 4096)
    assert file.allocated == 4096


@pytest.mark.parametrize("beyond", [0, 100], ids=["", "and more past the end"])
@pytest.mark.parametrize("holes", [[], [0], [2000], [4095], [5, 6, 7]], ids=str)
def test_a_file_is_allocated_only_where_it_has_holes(
    file: File, monkeypatch: pytest.MonkeyPatch, holes: list[int], beyond: int
) -> None:
    keep_size = syscalls.FALLOC_FL_KEEP_SIZE
    syscalls.fallocate(file.fd, keep_size, 0, (4096 + beyond) * PAGE)
    for page in holes:
        file.bare_punch(page, page + 1)
    calls = []
    fallocate = syscalls.fallocate

    def counted(*arguments: int) -> None:
        calls.append(arguments)
        fallocate(*arguments)

    monkeypatch.setattr(syscalls, "fallocate", counted)
    file.fetch(0, 4096)
    assert bool(calls) == bool(holes)
    assert file.allocated == 4096 + beyond


def test_known_pages_need_no_system_call(file: File) -> None:
    fetched = file.fetch(100, 3000)
    file.fetch(3001, 3002)
    file.frames.fd = -1
    assert file.frames.known(100, 3000) == fetched
    assert file.frames.fetch(100, 3000).extents == fetched
    part = file.frames.known(700, 701)
    assert part == [Extent(700, by_page(fetched)[700], 1, 0)]
    assert file.frames.known(99, 101) is None
    assert file.frames.known(2999, 3002) is None
    assert file.frames.known(3000, 3001) is None


def test_pages_are_counted_once(file: File) -> None:
    assert file.frames.pages == 0
    file.fetch(10, 20)
    file.fetch(15, 30)
    assert file.frames.pages == 20
    file.punch(12, 14)
    assert file.frames.pages == 18
    file.frames.close()
    assert file.frames.pages == 0
    assert file.frames.extents() == []
    file.frames.close()


def test_a_file_longer_than_one_window(narrow: File) -> None:
    extents = narrow.fetch(0, 4096)
    assert list(by_page(extents).values()) == narrow.read()
    for one, other in itertools.pairwise(extents):
        assert one.pfn + one.count != other.pfn


def test_a_sparse_file_of_a_tebibyte() -> None:
    with open_file(size=1 << 40) as file:
        last = (1 << 40) // PAGE - 1
        file.fetch(last, last + 1)
        file.fetch(0, 1)
        assert file.frames.known(last, last + 1) is not None
        assert len(file.punch(0, last + 1).removed) == 2
        assert file.allocated == 0


def test_a_page_at_a_time_takes_few_buffers(file: File) -> None:
    for page in range(HUGE):
        file.fetch(page, page + 1)
    assert len(file.frames._buffers.ranges) <= math.log2(HUGE)
    # In any order: 7 and 512 have no common divisor.
    for page in range(HUGE):
        at = HUGE + page * 7 % HUGE
        file.fetch(at, at + 1)
    assert file.frames._buffers.ranges.size == 2 * HUGE
    assert len(file.frames._buffers.ranges) < 100
    file.fetch(0, 2 * HUGE)
    assert list(by_page(file.frames.extents()).values()) == file.read()[: 2 * HUGE]


def test_pages_between_known_ones_are_pinned_with_them(file: File) -> None:
    before = pinned()
    for page in range(0, HUGE, 8):
        file.fetch(page, page + 1)
    file.fetch(0, HUGE)
    assert next(iter(file.frames._buffers.ranges))[:2] == (0, HUGE)
    assert pinned() - before == HUGE * PAGE


# --- nothing moves ----------------------------------------------------------------


def test_pages_that_have_moved_are_returned(file: File) -> None:
    with unpinned(file) as loose:
        before = by_page(loose.fetch(0, 256).extents)
        assert loose.known(0, 256) is None
        shuffle(file, 64, 192)
        fetched = loose.fetch(0, 256)
        now = by_page(fetched.extents)
        assert list(now.values()) == file.read()[:256]
        moved = {page: pfn for page, pfn in before.items() if now[page] != pfn}
        assert moved
        assert by_page(fetched.moved) == moved
        assert loose.fetch(0, 256).moved == []
        assert loose.pages == 256


def test_a_page_that_is_pinned_late_is_where_it_was_or_reported(file: File) -> None:
    """Pinning was refused once, and now succeeds."""
    pinning: pins.Pins = file.frames._buffers._pins
    refusing = pins.NoPins("a test")
    file.frames._buffers._pins = refusing  # type: ignore[misc]
    before = by_page(file.frames.fetch(0, 128).extents)
    assert file.frames.known(0, 1) is None
    assert file.frames.unpinned == 128
    shuffle(file, 0, 64)
    file.frames._buffers._pins = pinning  # type: ignore[misc]
    fetched = file.frames.fetch(0, 256)
    now = by_page(fetched.extents)
    assert by_page(fetched.moved) == {
        page: pfn for page, pfn in before.items() if now[page] != pfn
    }
    assert file.frames.known(0, 256) == fetched.extents
    assert file.frames.pages == 256
    assert file.frames.unpinned == 0


# --- punching ---------------------------------------------------------------------


def test_a_punch_returns_the_known_pages_of_the_range(file: File) -> None:
    extents = by_page(file.fetch(0, 600))
    file.fetch(700, 710)
    punched = file.punch(500, 705)
    assert punched.moved == []
    removed = by_page(punched.removed)
    assert removed.keys() == {*range(500, 600), *range(700, 705)}
    assert [removed[page] for page in range(500, 600)] == [
        extents[page] for page in range(500, 600)
    ]
    assert file.frames.known(0, 500) is not None
    assert file.frames.known(705, 710) is not None
    assert file.frames.known(499, 501) is None
    assert file.frames.pages == 505
    assert file.allocated == 505


def test_a_punch_frees_pinned_pages_at_once(file: File) -> None:
    before = pinned()
    file.fetch(0, 4096)
    assert pinned() - before == 4096 * PAGE
    file.punch(100, 101)
    assert pinned() - before == 4095 * PAGE
    file.punch(600, 3000)
    assert pinned() - before == (4095 - 2400) * PAGE
    assert file.allocated == 4095 - 2400
    file.punch(0, 4096)
    assert pinned() == before
    assert file.allocated == 0


def test_pages_beside_a_punched_one_stay_pinned(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that shared a buffer with a punched one is never unpinned."""
    file.fetch(0, HUGE)
    expected = [pinned() - PAGE]
    seen = []

    def punch() -> None:
        seen.append(pinned())
        file.bare_punch(100, 101)

    file.frames.punch(100, 101, punch)
    assert seen == expected


def test_a_punch_where_nothing_is_known_is_left_alone(file: File) -> None:
    os.posix_fallocate(file.fd, 0, MIB)
    file.fetch(200, 201)
    assert file.punch(0, 200) == ([], [])
    assert file.allocated == 56


def test_a_page_that_comes_back_is_fetched_anew(file: File) -> None:
    file.fetch(0, HUGE)
    file.punch(10, 20)
    assert file.frames.known(10, 20) is None
    file.fetch(10, 20)
    assert file.frames.known(0, HUGE) == file.frames.extents()
    assert list(by_page(file.frames.extents()).values()) == file.read()[:HUGE]


@pytest.mark.parametrize("kind", ["never", "always"])
def test_a_punch_that_fails_leaves_all_as_it_was(kind: str) -> None:
    def fail() -> None:
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    with open_file(kind) as file:
        before = pinned()
        extents = file.fetch(0, 2048)
        number = pinned() - before
        with refused(errno.EINTR):
            file.frames.punch(100, 1500, fail)
        assert file.frames.known(0, 2048) == extents
        assert file.frames.pages == 2048
        assert pinned() - before == number
        assert file.fetch(0, 2048) == extents


def test_pages_that_move_during_a_failed_punch_are_reported_next(file: File) -> None:
    before = by_page(file.fetch(0, HUGE))

    def move_and_fail() -> None:
        shuffle(file, 100, 200)
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    with refused(errno.EINTR):
        file.frames.punch(100, 200, move_and_fail)
    now = file.read()
    moved = {page: pfn for page, pfn in before.items() if now[page] != pfn}
    assert moved
    # Until then they are in the reported frames, and no page next to them can move.
    assert by_page(file.frames.extents()) == before
    for page in range(HUGE):
        assert (file.frames.known(page, page + 1) is None) == (page in moved)
    assert by_page(file.frames.fetch(50, HUGE).moved) == moved
    assert file.fetch(0, HUGE) == file.frames.known(0, HUGE)
    assert list(by_page(file.frames.extents()).values()) == file.read()[:HUGE]


# --- errors -----------------------------------------------------------------------


def test_no_space_is_enospc_and_changes_nothing() -> None:
    with open_file(room="4m") as file:
        file.fetch(0, 512)
        before = pinned()
        with refused(errno.ENOSPC):
            file.frames.fetch(256, 2048)
        assert file.allocated == 512
        assert file.frames.pages == 512
        assert file.frames.known(0, 512) is not None
        assert file.frames.known(0, 513) is None
        assert pinned() == before
        with refused(errno.ENOSPC):
            for page in range(512, 2048):
                file.frames.fetch(page, page + 1)
        assert file.frames.pages == 1024


def test_an_error_in_the_middle_leaves_nothing(
    narrow: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = narrow
    before = pinned()
    maps = Path("/proc/self/maps")
    mappings = len(maps.read_text().splitlines())
    calls: list[int] = []
    populate: Callable[[int, int], None] = mmcalls.populate

    def fails_at_last(address: int, length: int) -> None:
        calls.append(address)
        if len(calls) == 4:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        populate(address, length)

    monkeypatch.setattr(mmcalls, "populate", fails_at_last)
    with refused(errno.ENOMEM):
        file.frames.fetch(100, 4096)
    assert pinned() == before
    assert file.frames.pages == 0
    assert len(maps.read_text().splitlines()) == mappings
    file.fetch(100, 4096)


def test_a_page_on_the_move_is_waited_for(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = file.source.proc
    answers = [None, None]
    found = ProcPages.base_pages

    def is_away(*arguments: int) -> list[Extent] | None:
        return answers.pop() if answers else found(proc, *arguments)

    monkeypatch.setattr(proc, "base_pages", is_away)
    assert len(file.fetch(0, 10)) > 0
    assert not answers
    monkeypatch.setattr(proc, "base_pages", lambda *_: None)
    with refused(errno.EAGAIN):
        file.frames.fetch(10, 20)
