"""Real frames of huge pages, and of folios of other sizes."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from inaccfs.shim import frames
from inaccfs.shim.frames import Extent
from tests import hugepages
from tests.unit.fakes import refused
from tests.unit.pagemap_files import HUGE, MIB, File, by_page, make_source, open_file
from tests.unit.test_pins import pinned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def huge() -> Iterator[File]:
    """A file on a tmpfs with huge folios."""
    with open_file("always") as made:
        if made.fetch(0, 1)[0].order != 9:
            pytest.skip("no huge page of 2 MiB is to be had for a tmpfs")
        yield made


def test_a_huge_page_is_of_order_9(huge: File) -> None:
    assert huge.allocated == HUGE
    (one,) = huge.fetch(0, HUGE)
    assert one.pfn % HUGE == 0
    assert one.order == 9
    # In the middle of a folio an extent begins with the frame of that page.
    (part,) = huge.fetch(100, 103)
    assert part == Extent(100, one.pfn + 100, 3, 9)


def test_orders_of_many_folios_and_of_none(huge: File) -> None:
    extents = huge.fetch(0, 8 * HUGE)
    assert sum(one.count for one in extents if one.order == 9) >= HUGE
    for one in extents:
        if one.order == 9:
            assert one.pfn % HUGE == one.offset % HUGE


@pytest.mark.parametrize(("start", "end"), [(1, 2), (0, 1), (511, 512), (100, 300)])
def test_a_part_of_a_huge_page_is_freed_at_once(
    huge: File, start: int, end: int
) -> None:
    (one,) = huge.fetch(0, HUGE)
    assert huge.punch(start, end).removed == [
        Extent(start, one.pfn + start, end - start, 9)
    ]
    assert huge.allocated == HUGE - (end - start)
    # The remaining pages are in their frames, in smaller folios, and pinned.
    rest = [*range(start), *range(end, HUGE)]
    found = huge.frames.extents()
    assert by_page(found) == {page: one.pfn + page for page in rest}
    assert all(folio.order < 9 for folio in found)
    now = huge.read()
    assert [now[page] for page in rest] == [one.pfn + page for page in rest]
    for page in rest:
        assert huge.frames.known(page, page + 1) is not None


def test_a_page_of_a_huge_one_is_in_the_way_of_others(huge: File) -> None:
    """Only page 0 was ever fetched, and other pages are punched."""
    assert huge.frames.pages == 1
    huge.punch(200, 300)
    assert huge.allocated == HUGE - 100
    assert huge.frames.known(0, 1) is not None


def test_a_punch_across_huge_pages_frees_its_range(huge: File) -> None:
    before = by_page(huge.fetch(0, 4 * HUGE))
    punched = huge.punch(HUGE // 2, 3 * HUGE + 1)
    assert len(by_page(punched.removed)) == 2 * HUGE + HUGE // 2 + 1
    assert huge.allocated == 4 * HUGE - (2 * HUGE + HUGE // 2 + 1)
    moved = by_page(punched.moved)
    for page, pfn in by_page(huge.frames.extents()).items():
        assert before[page] == pfn or page in moved


def test_folios_of_several_sizes_are_distinguished(huge: File) -> None:
    """The folios of a punched huge page, against the flags of each page."""
    huge.fetch(0, HUGE)
    huge.punch(37, 38)
    huge.frames.close()
    extents = huge.fetch(0, 37) + huge.fetch(38, HUGE)
    assert len(extents) > 2 or {one.order for one in extents} == {0}
    proc = huge.source.proc
    for one in extents:
        for at in range(one.count):
            (single,) = proc.with_orders([Extent(one.offset + at, one.pfn + at, 1, 0)])
            assert single.order == one.order
            assert by_flags(one.pfn + at) == one.order


def by_flags(pfn: int) -> int:
    """The order of a frame's folio, from its head and the number of tails."""
    with open("/proc/kpageflags", "rb", buffering=0) as file:

        def flags(frame: int) -> int:
            return int.from_bytes(os.pread(file.fileno(), 8, 8 * frame), "little")

        head, tail = 1 << 15, 1 << 16
        if not flags(pfn) & (head | tail):
            return 0
        while not flags(pfn) & head:
            pfn -= 1
        count = 1
        while flags(pfn + count) & tail:
            count += 1
        return count.bit_length() - 1


def test_huge_pages_of_a_hugetlbfs(tmp_path: Path) -> None:
    page = 2 * MIB
    with hugepages.reserved(6):
        path = tmp_path / "huge"
        path.mkdir()
        options = f"pagesize=2M,size={5 * page}"
        mount = ["mount", "-t", "hugetlbfs", "-o", options, "none", str(path)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("no hugetlbfs")
        source = make_source()
        fd = os.open(path / "file", os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(fd, 8 * page)
            file = File(source, fd, page)
            before = pinned()
            extents = file.fetch(0, 4)
            assert {one.order for one in extents} == {9}
            assert [one.pfn % HUGE for one in extents] == [0] * len(extents)
            assert pinned() - before == 4 * page
            assert file.frames.known(0, 4) == extents
            with refused(errno.ENOSPC):
                file.frames.fetch(3, 8)
            assert file.frames.pages == 4
            assert file.punch(1, 3).removed == file_part(extents, 1, 3)
            # And the page that was allocated before the error: unlike a tmpfs, a
            # hugetlbfs does not free the pages of a failed call.
            assert os.fstat(fd).st_blocks * 512 == 3 * page
            assert pinned() - before == 2 * page
            file.fetch(4, 6)
            file.frames.close()
            assert pinned() == before
        finally:
            os.close(fd)
            source.close()
            subprocess.run(["umount", "-l", path], check=True)


def file_part(extents: list[Extent], start: int, end: int) -> list[Extent]:
    """The parts of huge pages in [start, end)."""
    table = frames.Table(HUGE)
    for one in extents:
        table.record(one.offset, one.offset + one.count, [one])
    return table.look(start, end)
