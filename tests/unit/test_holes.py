"""The holes of a file, while a guest accesses pages."""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING

import pytest

from inaccfs import mmcalls, syscalls
from inaccfs.backing.options import TmpfsOptions
from inaccfs.backing.private import private_tmpfs
from inaccfs.shim.holes import first_hole
from inaccfs.syscalls import PUNCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 4096
PAGES = 2048
GUEST = b"the guest's" + bytes(PAGE - 11)


@pytest.fixture
def fd() -> Iterator[int]:
    backing = private_tmpfs(TmpfsOptions(size="64m"), fallback_name="test")
    made = os.open("file", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=backing.root)
    os.ftruncate(made, PAGES * PAGE)
    yield made
    os.close(made)
    backing.close()


@pytest.fixture
def _uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cachestat(2), as on a hugetlbfs or on a kernel before 6.5."""

    def refuse(*_: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "no cachestat(2)")

    monkeypatch.setattr(mmcalls, "pages_there", refuse)


def touch(fd: int, *pages: int) -> None:
    for page in pages:
        os.pwrite(fd, GUEST, page * PAGE)


def is_touched(fd: int, page: int) -> bool:
    return os.pread(fd, PAGE, page * PAGE) == GUEST


def allocated(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512 // PAGE


@pytest.fixture
def before_allocating(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[], None]], list[int]]:
    """Runs a hook right before each allocation; returns a list of their offsets."""

    def arrange(happens: Callable[[], None]) -> list[int]:
        calls: list[int] = []
        real = syscalls.fallocate_now

        def allocate(fd: int, mode: int, offset: int, length: int) -> None:
            calls.append(offset)
            happens()
            real(fd, mode, offset, length)

        monkeypatch.setattr(syscalls, "fallocate_now", allocate)
        return calls

    return arrange


# --- with cachestat(2) ------------------------------------------------------------


def test_to_look_for_holes_writes_nothing(
    fd: int, before_allocating: Callable[[Callable[[], None]], list[int]]
) -> None:
    """The data that a guest writes meanwhile stays."""
    touch(fd, 0)
    calls = before_allocating(lambda: touch(fd, 9))
    assert first_hole(fd, PAGE, 1, 2) == 1
    assert first_hole(fd, PAGE, 0, PAGES) == 1
    assert calls == []
    assert is_touched(fd, 0)
    assert allocated(fd) == 1


def test_the_first_of_any_holes_is_found(fd: int) -> None:
    dice = random.Random(1)
    syscalls.fallocate(fd, 0, 0, PAGES * PAGE)
    assert first_hole(fd, PAGE, 0, PAGES) is None
    holes: set[int] = set()
    for _ in range(40):
        holes.add(page := dice.randrange(PAGES))
        syscalls.fallocate(fd, PUNCH, page * PAGE, PAGE)
        start = dice.randrange(PAGES)
        end = dice.randrange(start, PAGES + 1)
        wanted = min((one for one in holes if start <= one < end), default=None)
        assert first_hole(fd, PAGE, start, end) == wanted
    assert allocated(fd) == PAGES - len(holes)


def test_other_errors_are_raised(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(mmcalls, "pages_there", refuse)
    with pytest.raises(PermissionError):
        first_hole(fd, PAGE, 0, 1)


# --- without ----------------------------------------------------------------------


@pytest.mark.usefixtures("_uncounted")
def test_without_a_count_a_hole_is_found_and_stays_one(fd: int) -> None:
    syscalls.fallocate(fd, 0, 0, 3 * PAGE)
    touch(fd, 4)
    assert first_hole(fd, PAGE, 0, 3) is None
    assert first_hole(fd, PAGE, 0, 8) == 3
    assert first_hole(fd, PAGE, 4, 8) == 5
    assert allocated(fd) == 4


@pytest.mark.usefixtures("_uncounted")
def test_a_guest_that_touches_another_page_loses_nothing(
    fd: int, before_allocating: Callable[[Callable[[], None]], list[int]]
) -> None:
    """Neither that page, nor those beside the hole, nor an allocated one loses data."""
    touch(fd, 0, 1)
    fresh = iter(range(3, PAGES))
    before_allocating(lambda: touch(fd, next(fresh)))
    assert first_hole(fd, PAGE, 0, 8) == 2
    assert [page for page in range(6) if is_touched(fd, page)] == [0, 1, 3, 4, 5]
    assert allocated(fd) == 5


@pytest.mark.usefixtures("_uncounted")
def test_a_guest_that_touches_the_page_itself_keeps_it(
    fd: int, before_allocating: Callable[[Callable[[], None]], list[int]]
) -> None:
    before_allocating(lambda: touch(fd, 2))
    assert first_hole(fd, PAGE, 2, 3) is None
    assert is_touched(fd, 2)


@pytest.mark.usefixtures("_uncounted")
def test_pages_that_were_fetched_are_not_tried(
    fd: int, before_allocating: Callable[[Callable[[], None]], list[int]]
) -> None:
    """Not even if it is empty: it is pinned, and a peer has mapped it."""
    syscalls.fallocate(fd, 0, 0, 4 * PAGE)
    calls = before_allocating(lambda: None)

    def known(start: int, end: int) -> list[int] | None:
        return [] if start >= 1 and end <= 3 else None

    assert first_hole(fd, PAGE, 0, 4, known) is None
    assert calls == [0, 3 * PAGE]


@pytest.mark.usefixtures("_uncounted")
def test_where_there_is_no_room_for_a_page_there_is_a_hole() -> None:
    backing = private_tmpfs(TmpfsOptions(size=str(4 * PAGE)), fallback_name="test")
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=backing.root)
    os.ftruncate(fd, 8 * PAGE)
    syscalls.fallocate(fd, 0, 0, 4 * PAGE)
    assert first_hole(fd, PAGE, 0, 8) == 4
    os.close(fd)
    backing.close()
