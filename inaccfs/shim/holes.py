"""Which pages of a file have no memory, for rules by which a get fills no hole.

A guest that maps the file may touch pages at any time, and must find what it has put
there: so where there is a way nothing is written, and nothing is ever freed that may
be the guest's.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from inaccfs import mmcalls, syscalls
from inaccfs.shim.frames import allocate

if TYPE_CHECKING:
    from collections.abc import Callable

# How much is looked at in one read, in bytes.
_READ_BYTES: Final = 1 << 20


def first_hole(
    fd: int,
    page_size: int,
    start: int,
    end: int,
    known: Callable[[int, int], object] = lambda start, end: None,
) -> int | None:
    """The first page from *start* to *end* that has no memory; None if all have.

    *known* gives None for a range that has not been fetched as a whole. Blocks.
    """
    # lseek(2) and mincore(2) take memory for a hole that fallocate(2) has put there and
    # nobody touched; cachestat(2) does not.
    try:
        return _by_count(fd, page_size, start, end)
    except OSError as exc:
        # A hugetlbfs, or a kernel before 6.5.
        if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    unknown = (page for page in range(start, end) if known(page, page + 1) is None)
    return next((page for page in unknown if _is_hole(fd, page_size, page)), None)


def _by_count(fd: int, page_size: int, start: int, end: int) -> int | None:
    def is_full(first: int, stop: int) -> bool:
        length = (stop - first) * page_size
        there = mmcalls.pages_there(fd, first * page_size, length)
        return there >= stop - first

    if is_full(start, end):
        return None
    # A hole is in [start, end), and none before it.
    while end - start > 1:
        middle = (start + end) // 2
        if is_full(start, middle):
            start = middle
        else:
            end = middle
    return start


def _is_hole(fd: int, page_size: int, page: int) -> bool:
    """Whether a page has cost blocks when it was allocated; they are given back.

    The blocks may be of other pages, which a guest has touched meanwhile, and this one
    may have been there. Then it is known by what is in it: only a page of zeros is
    punched, for which a guest gets another.
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
    mode = syscalls.PUNCH
    syscalls.fallocate(fd, mode, offset, page_size)
    return True


def _is_blank(fd: int, offset: int, length: int) -> bool:
    size = min(length, _READ_BYTES)
    return not any(
        os.pread(fd, size, at).strip(b"\0")
        for at in range(offset, offset + length, size)
    )
