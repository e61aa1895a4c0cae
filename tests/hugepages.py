"""Huge pages for a test, from the one pool that all tests of the machine share."""

from __future__ import annotations

import fcntl
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB: Final = 1 << 20


def default_size() -> int:
    """The size of a huge page where a hugetlbfs is mounted without one, in bytes."""
    found = re.search(r"^Hugepagesize: +(\d+) kB$", _meminfo(), re.MULTILINE)
    if found is None:
        pytest.skip("this kernel has no hugetlbfs")
    return int(found[1]) << 10


def _meminfo() -> str:
    return Path("/proc/meminfo").read_text(encoding="ascii")


@contextmanager
def reserved(count: int, size: int = 2 * MIB) -> Iterator[None]:
    """*count* more huge pages of *size* bytes in the pool, during a with block.

    One test at a time, in whatever process: who restores the number takes away the
    pages of another who has read it before.
    """
    pool = Path(f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB/nr_hugepages")
    try:
        file = pool.open("r+", encoding="ascii")
    except OSError as exc:
        pytest.skip(f"no huge pages of {size >> 20} MiB: {exc.strerror}")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = int(pool.read_text())
        try:
            try:
                pool.write_text(str(before + count))
            except OSError as exc:
                pytest.skip(f"no huge pages of {size >> 20} MiB: {exc.strerror}")
            if int(pool.read_text()) < before + count:
                pytest.skip(f"{count} huge pages of {size >> 20} MiB cannot be had")
            yield
        finally:
            pool.write_text(str(before))
