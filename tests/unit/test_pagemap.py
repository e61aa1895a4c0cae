"""Real frames: found, pinned, and unpinned around a punch."""

from __future__ import annotations

import errno
import itertools
import math
import os
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inaccfs import mmcalls, syscalls, uring
from inaccfs.backing.options import TmpfsOptions
from inaccfs.backing.private import private_tmpfs
from inaccfs.errors import OptionError
from inaccfs.shim import frames, framesource, pagemap, pins
from inaccfs.shim.buffers import WINDOW_BYTES
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.shim.frames import Extent
from inaccfs.shim.pagemap import PagemapFrames, PagemapSource
from inaccfs.shim.proc_pages import ProcPages
from inaccfs.syscalls import PUNCH
from tests import hugepages
from tests.unit.fakes import refused
from tests.unit.test_pins import locked_memory, pinned, without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PAGE: Final = 4096
MIB: Final = 1 << 20
HUGE: Final = 512
CAP_SYS_ADMIN: Final = 21


def make_source(huge: str = "never", window_bytes: int = WINDOW_BYTES) -> PagemapSource:
    try:
        return pagemap.make_source(
            large_folios=huge != "never", window_bytes=window_bytes
        )
    except OSError as exc:
        pytest.skip(f"no real page frames: {exc.strerror}")


class File:
    """A sparse file on its own tmpfs, and its frames."""

    def __init__(self, source: PagemapSource, fd: int, page_size: int) -> None:
        self.source = source
        self.fd = fd
        self.page_size = page_size
        self.frames = source.open(fd, page_size)

    def fetch(self, start: int, end: int) -> list[Extent]:
        """Fetch pages, none of which has moved."""
        fetched = self.frames.fetch(start, end)
        assert fetched.moved == []
        assert sum(one.count for one in fetched.extents) == end - start
        return fetched.extents

    def bare_punch(self, start: int, end: int) -> None:
        """fallocate(2) alone."""
        length = (end - start) * self.page_size
        syscalls.fallocate(self.fd, PUNCH, start * self.page_size, length)

    def punch(self, start: int, end: int) -> frames.Punched:
        return self.frames.punch(start, end, lambda: self.bare_punch(start, end))

    @property
    def allocated(self) -> int:
        """The number of allocated pages of 4 KiB."""
        return os.fstat(self.fd).st_blocks // 8

    def read(self) -> list[int]:
        """The frames of all pages, found page by page; fills holes."""
        proc = ProcPages()
        size = os.fstat(self.fd).st_size
        address = mmcalls.mmap(self.fd, 0, size)
        found = []
        for page in range(size // PAGE):
            with suppress(OSError):
                mmcalls.populate(address + page * PAGE, PAGE)
            one = proc.base_pages(address + page * PAGE, page, 1)
            assert one is not None
            found.append(one[0].pfn)
        mmcalls.munmap(address, size)
        proc.close()
        return found


@contextmanager
def open_file(
    huge: str = "never",
    size: int = 16 * MIB,
    room: str = "64m",
    window_bytes: int = WINDOW_BYTES,
) -> Iterator[File]:
    source = make_source(huge, window_bytes)
    backing = private_tmpfs(TmpfsOptions(size=room, huge=huge), fallback_name="test")
    before = pinned()
    fd = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=backing.root)
    os.ftruncate(fd, size)
    made = File(source, fd, PAGE)
    yield made
    made.frames.close()
    assert pinned() == before
    os.close(fd)
    source.close()
    backing.close()


@pytest.fixture
def file() -> Iterator[File]:
    with open_file() as made:
        yield made


@pytest.fixture
def narrow() -> Iterator[File]:
    """A file of which only 2 MiB are mapped at once."""
    with open_file(window_bytes=2 * MIB) as made:
        yield made


@pytest.fixture
def huge() -> Iterator[File]:
    """A file on a tmpfs with huge folios."""
    with open_file("always") as made:
        if made.fetch(0, 1)[0].order != 9:
            pytest.skip("no huge page of 2 MiB is to be had for a tmpfs")
        yield made


def by_page(extents: list[Extent]) -> dict[int, int]:
    """The frame of each page."""
    return {one.offset + at: one.pfn + at for one in extents for at in range(one.count)}


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


@contextmanager
def unpinned(file: File) -> Iterator[PagemapFrames]:
    """The frames of the same file, whose pages are not pinned."""
    source = PagemapSource(ProcPages(), pins.NoPins("a test"), large_folios=False)
    yield source.open(file.fd, PAGE)
    source.close()


def test_compaction_moves_no_frame_that_was_fetched() -> None:
    with (
        open_file() as other,
        unpinned(other) as control,
        open_file(size=32 * MIB) as file,
    ):
        fetched = by_page(file.fetch(0, 4096))
        # Also fetched one by one.
        for page in range(5000, 5600):
            fetched.update(by_page(file.fetch(page, page + 1)))
        control.fetch(0, 4096)
        # Work for the compactor: every other page of some memory is free.
        with tempfile.TemporaryFile(dir="/dev/shm") as checkered:
            os.posix_fallocate(checkered.fileno(), 0, 256 * MIB)
            for offset in range(0, 256 * MIB, 2 * PAGE):
                syscalls.fallocate_now(checkered.fileno(), PUNCH, offset, PAGE)
            with open("/proc/sys/vm/compact_memory", "w", encoding="ascii") as trigger:
                trigger.write("1")
        now = file.read()
        assert {page: now[page] for page in fetched} == fetched
        assert file.frames.fetch(0, 4096).moved == []
        moved = sum(one.count for one in control.fetch(0, 4096).moved)
        print(f"of 4096 pages that nothing held {moved} have moved")


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


def shuffle(file: File, start: int, end: int) -> None:
    """Put pages into other frames, except where the kernel gives the same frame again.

    The kernel first gives the frames that were freed last.
    """
    file.bare_punch(start, end)
    for page in range(start, end):
        os.posix_fallocate(file.fd, page * PAGE, PAGE)


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


def test_locked_pages_are_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_permitted() -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(uring, "setup", not_permitted)
    with open_file() as file:
        assert file.source.pinning == "mlock (io_uring: Operation not permitted)"
        extents = file.fetch(0, 1024)
        assert file.frames.known(0, 1024) is None
        assert file.fetch(0, 1024) == extents
        assert file.frames.unpinned == 0
        assert file.frames.pages == 1024
        # A locked page is removed by a punch, too.
        assert by_page(file.punch(100, 200).removed).keys() == set(range(100, 200))
        assert file.allocated == 924
        assert file.frames.unpinned == 0
        assert file.frames.pages == 924
        assert len(file.fetch(0, 1024)) > 0


def test_pages_that_cannot_be_pinned_are_reported() -> None:
    with locked_memory(2 * MIB), open_file() as file:
        if not file.source.pins.stays:
            pytest.skip(f"no io_uring: {file.source.pinning}")
        assert file.source.pinning == "io_uring"
        file.fetch(0, 1024)
        loose = file.frames.unpinned
        assert 0 < loose <= 1024
        assert file.source.pinning == (
            f"io_uring; {loose} pages can move (Cannot allocate memory: raise the "
            "limit of locked memory, RLIMIT_MEMLOCK)"
        )
        assert file.frames.known(0, 1024) is None
        assert list(by_page(file.frames.extents()).values()) == file.read()[:1024]
        # They can be pinned when there is room again.
        file.punch(0, 1000)
        assert file.allocated == 3096
        file.fetch(1000, 1024)
        assert file.frames.unpinned == 0
        assert file.source.pinning == "io_uring"


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


# --- folios -----------------------------------------------------------------------


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


# --- choosing ---------------------------------------------------------------------


def test_frames_are_real_where_they_are_shown() -> None:
    make_source().close()
    for wanted in ("auto", "pagemap"):
        source = framesource.choose(wanted, SimulatedMemory(), large_folios=False)
        assert source.name == "pagemap"
        source.close()
    made = framesource.choose("simulated", SimulatedMemory(), large_folios=False)
    assert made.name == "simulated"


def test_frames_are_made_up_where_they_are_not_shown() -> None:
    fds = len(os.listdir("/proc/self/fd"))
    with without(CAP_SYS_ADMIN):
        made = framesource.choose("auto", SimulatedMemory(), large_folios=False)
        assert made.name == made.pinning == "simulated"
        with pytest.raises(OptionError, match="CAP_SYS_ADMIN") as caught:
            framesource.choose("pagemap", SimulatedMemory(), large_folios=False)
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_frames_are_made_up_without_kpageflags(monkeypatch: pytest.MonkeyPatch) -> None:
    make_source().close()
    opened = os.open

    def no_kpageflags(path: str, flags: int) -> int:
        if path == "/proc/kpageflags":
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return opened(path, flags)

    fds = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", no_kpageflags)
    made = framesource.choose("auto", SimulatedMemory(), large_folios=False)
    assert made.name == "simulated"
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_source_leaves_nothing_open() -> None:
    make_source().close()
    fds = len(os.listdir("/proc/self/fd"))
    with open_file() as file:
        file.fetch(0, 1000)
        file.punch(10, 20)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_pages_that_cannot_be_found_after_a_punch_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are reported as moved, and none of them stays mlocked."""

    def refuse(*_: int) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(uring, "setup", refuse)
    with open_file() as file:
        before = by_page(file.fetch(0, HUGE))

        def punch() -> None:
            file.bare_punch(100, 200)
            monkeypatch.setattr(mmcalls, "populate", refuse)

        punched = file.frames.punch(100, 200, punch)
        assert by_page(punched.removed) | by_page(punched.moved) == before
        assert by_page(punched.removed).keys() == set(range(100, 200))
        assert file.frames.extents() == []
        assert not file.frames._buffers.ranges


# --- any history ------------------------------------------------------------------


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


class Moody:
    """Pins that fail at times, as near RLIMIT_MEMLOCK."""

    def __init__(self, real: pins.Pins) -> None:
        self.allows = True
        self.description = real.description
        self.stays = real.stays
        self.refusal = ""
        self._real = real

    def hold(self, buffers: list[pins.Buffer]) -> list[int | None]:
        return self._real.hold(buffers) if self.allows else [None] * len(buffers)

    def release(self, tokens: Iterable[int]) -> None:
        self._real.release(tokens)

    def close(self) -> None:
        self._real.close()


LENGTH: Final = 200

spans = st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 60)).map(
    lambda one: (one[0], min(one[0] + one[1], LENGTH))
)
steps = st.tuples(
    st.sampled_from(["fetch", "punch", "punch and fail", "move and fail", "move"]),
    spans,
    # Whether the kernel lets pages be pinned.
    st.sampled_from([True, True, True, False]),
)


@settings(max_examples=40)
@given(st.lists(steps, min_size=1, max_size=12))
def test_each_page_is_where_it_was_reported(
    done: list[tuple[str, tuple[int, int], bool]],
) -> None:
    """A pinned page has not moved; the next call reports any other that has."""
    with open_file(size=LENGTH * PAGE) as file:
        pinning = Moody(file.frames._buffers._pins)
        file.frames._buffers._pins = pinning  # type: ignore[misc]
        known: dict[int, int] = {}
        for what, (start, end), pinning.allows in done:
            _do(file, known, what, start, end)
            assert by_page(file.frames.extents()) == known
            assert file.frames.pages == len(known)
            now = file.read()
            for page, pfn in known.items():
                if file.frames.known(page, page + 1) is not None:
                    assert now[page] == pfn


def _do(file: File, known: dict[int, int], what: str, start: int, end: int) -> None:
    """Do a step on a file, and on *known*, the frames that its user knows."""

    def fail() -> None:
        if what == "move and fail":
            shuffle(file, start, end)
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    match what:
        case "fetch":
            fetched = file.frames.fetch(start, end)
            found = by_page(fetched.extents)
            assert found == dict(enumerate(file.read()[start:end], start))
            # It may pin and read more than was asked for, up to a chunk.
            moved = by_page(fetched.moved)
            assert moved.items() <= known.items()
            assert {
                page: pfn for page, pfn in known.items() if found.get(page, pfn) != pfn
            }.items() <= moved.items()
            known.update(found)
        case "punch":
            punched = file.punch(start, end)
            removed = by_page(punched.removed)
            assert removed == {p: pfn for p, pfn in known.items() if start <= p < end}
            for page in removed:
                del known[page]
            for page in by_page(punched.moved):
                now = by_page(file.frames.extents()).get(page)
                if now is None:
                    del known[page]
                else:
                    known[page] = now
        case "punch and fail" | "move and fail":
            with refused(errno.EINTR):
                file.frames.punch(start, end, fail)
        case "move":
            for page in range(start, end):
                if file.frames.known(page, page + 1) is None:
                    shuffle(file, page, page + 1)
