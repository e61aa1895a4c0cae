"""Finds holes of a file, and pages that have memory, for rules that need it.

A guest that maps the file may write to pages at any time, and must find its data there
later. So this changes the file only if it must, and never frees a page that the guest
may have written to.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from inaccfs import mmcalls, syscalls
from inaccfs.shim.frames import allocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How many bytes of a page one read(2) compares with zeros.
_READ_BYTES: Final = 1 << 20


def first_hole(
    fd: int,
    page_size: int,
    start: int,
    end: int,
    known: Callable[[int, int], object] = lambda start, end: None,
) -> int | None:
    """The first page of [start, end) without memory; None if all have it. Blocks.

    *known* returns None for a range unless all of it has been fetched. Such pages are
    not looked at.
    """
    # lseek(2) and mincore(2) report a page as a hole if fallocate(2) allocated it and
    # nobody has touched it. cachestat(2) does not.
    try:
        return _by_count(fd, page_size, start, end)
    except OSError as exc:
        if not mmcalls.cannot_count(exc):
            raise
    unknown = (page for page in range(start, end) if known(page, page + 1) is None)
    return next((page for page in unknown if _is_hole(fd, page_size, page)), None)


def _by_count(fd: int, page_size: int, start: int, end: int) -> int | None:
    def is_full(first: int, stop: int) -> bool:
        length = (stop - first) * page_size
        there = mmcalls.pages_there(fd, first * page_size, length)
        return there >= stop - first

    return first_outside(is_full, start, end)


def first_present(fd: int, page_size: int, start: int, end: int) -> int | None:
    """The first of some pages of *page_size* bytes that has memory, if there is one."""

    def is_empty(first: int, stop: int) -> bool:
        return not mmcalls.pages_there(
            fd, first * page_size, (stop - first) * page_size
        )

    try:
        return first_outside(is_empty, start, end)
    except OSError as exc:
        if not mmcalls.cannot_count(exc):
            raise
    # Pages that nobody has written to may be missed.
    for offset, _ in data(fd, start * page_size, end * page_size):
        return offset // page_size
    return None


def first_outside(
    has_all: Callable[[int, int], bool], start: int, end: int
) -> int | None:
    """The first page of [start, end) that is not in a set; None if all are.

    *has_all* says of a range whether all its pages are in the set.
    """
    if has_all(start, end):
        return None
    # One page of [start, end) is not in the set, and all before it are.
    while end - start > 1:
        middle = (start + end) // 2
        if has_all(start, middle):
            start = middle
        else:
            end = middle
    return start


def _is_hole(fd: int, page_size: int, page: int) -> bool:
    """Whether allocating the page takes blocks. If it does, the page is punched again.

    st_blocks counts the whole file, so a guest that touched another page meanwhile may
    have caused the difference. So only a page of zeros is punched: if it was the
    guest's, the guest gets another one with the same content.
    """
    offset = page * page_size
    before = os.fstat(fd).st_blocks
    try:
        allocate(fd, offset, page_size)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.ENOMEM):
            return True
        raise
    if os.fstat(fd).st_blocks <= before or not _is_blank(fd, offset, page_size):
        return False
    syscalls.fallocate(fd, syscalls.PUNCH, offset, page_size)
    return True


def _is_blank(fd: int, offset: int, length: int) -> bool:
    size = min(length, _READ_BYTES)
    return not any(
        os.pread(fd, size, at).strip(b"\0")
        for at in range(offset, offset + length, size)
    )


def data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range, in bytes, that lseek(2) does not report as holes."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            raise
        if start >= end:
            return
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        yield start, stop
        start = stop
