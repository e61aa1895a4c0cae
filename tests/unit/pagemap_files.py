"""Files with real frames, and what moves them."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import pytest

from inaccfs import mmcalls, syscalls
from inaccfs.backing.options import TmpfsOptions
from inaccfs.backing.private import private_tmpfs
from inaccfs.shim import frames, pagemap, pins
from inaccfs.shim.buffers import WINDOW_BYTES
from inaccfs.shim.pagemap import PagemapFrames, PagemapSource
from inaccfs.shim.proc_pages import ProcPages
from inaccfs.syscalls import PUNCH
from tests.unit.test_pins import pinned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.shim.frames import Extent

PAGE: Final = 4096
MIB: Final = 1 << 20
HUGE: Final = 512


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


def by_page(extents: list[Extent]) -> dict[int, int]:
    """The frame of each page."""
    return {one.offset + at: one.pfn + at for one in extents for at in range(one.count)}


@contextmanager
def unpinned(file: File) -> Iterator[PagemapFrames]:
    """The frames of the same file, whose pages are not pinned."""
    source = PagemapSource(ProcPages(), pins.NoPins("a test"), large_folios=False)
    yield source.open(file.fd, PAGE)
    source.close()


def shuffle(file: File, start: int, end: int) -> None:
    """Put pages into other frames, except where the kernel gives the same frame again.

    The kernel first gives the frames that were freed last.
    """
    file.bare_punch(start, end)
    for page in range(start, end):
        os.posix_fallocate(file.fd, page * PAGE, PAGE)
