"""Files with made-up frames."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.shim.simulated import SimulatedFrames, SimulatedSource
from inaccfs.syscalls import PUNCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.backing.root import Backing
    from inaccfs.shim.frames import Extent, Punched

PAGE: Final = 4096
MIB: Final = 1 << 20
HUGE: Final = 512


class File:
    """A file and its frames."""

    def __init__(
        self, backing: Backing, source: SimulatedSource, pages: int, name: str = "file"
    ) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self.fd = os.open(name, flags, dir_fd=backing.root)
        os.ftruncate(self.fd, pages * PAGE)
        self.source = source
        self.frames: SimulatedFrames = source.open(self.fd, PAGE)

    def fetch(self, start: int, end: int) -> list[Extent]:
        fetched = self.frames.fetch(start, end)
        assert fetched.moved == []
        assert sum(one.count for one in fetched.extents) == end - start
        return fetched.extents

    def punch(self, start: int, end: int) -> Punched:
        def bare() -> None:
            syscalls.fallocate(self.fd, PUNCH, start * PAGE, (end - start) * PAGE)

        return self.frames.punch(start, end, bare)

    @property
    def allocated(self) -> int:
        return os.fstat(self.fd).st_blocks // 8


@contextmanager
def file_of(
    backing: Backing, pages: int, size: int = 64 * MIB, **options: int
) -> Iterator[File]:
    """A file of the only user of simulated memory; all frames come back at its end."""
    source = SimulatedSource(SimulatedMemory(size=size, **options))
    before = source.buddy.free_frames
    made = File(backing, source, pages)
    yield made
    made.frames.close()
    assert source.buddy.free_frames == before
    os.close(made.fd)
