"""Reads and changes the content of a file's pages, for rules that need it."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING, Final

from inaccfs.errnos import os_error
from inaccfs.shim.holes import data, first_hole
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from inaccfs.shim.filestate import FileState

SLICE_BYTES: Final = 256 << 10
"""How much is read or written at once. It takes some 50 µs of the loop."""


def read(file: FileState, offset: int, length: int) -> bytes:
    """Read content of the backing file, in bytes; holes are zeros, and stay holes."""
    return os.pread(file.fd, length, offset)


def write(file: FileState, offset: int, data: bytes) -> None:
    """Set content of the backing file. *offset* and the end lie inside of it.

    Raises:
        OSError: ENOSPC, the backing is full.
    """
    try:
        if os.pwrite(file.fd, data, offset) == len(data):
            return
    except OSError as exc:
        # A hugetlbfs has no write(2).
        if exc.errno != errno.EINVAL or file.page_size == mmap.PAGESIZE:
            raise
    else:
        raise os_error(errno.ENOSPC)
    start = offset // file.page_size * file.page_size
    end = -(-(offset + len(data)) // file.page_size) * file.page_size
    with mmap.mmap(file.fd, end - start, offset=start) as mapped:
        mapped[offset - start : offset - start + len(data)] = data


def first_hole_of(file: FileState, start: int, end: int) -> int | None:
    """The first of some pages that has no memory, if there is one."""
    memory = file.pages.memory
    if memory is None:
        return first_hole(file.fd, file.page_size, start, end)
    return first_hole(file.fd, file.page_size, start, end, memory.frames.known)


async def clear(file: FileState, start: int, end: int) -> None:
    """Zero those of these pages that have memory. The cost grows with the data."""
    slices = Slices(file.superblock.loop)
    for offset, stop in data(file.fd, start * file.page_size, end * file.page_size):
        for at in range(offset, stop, SLICE_BYTES):
            length = min(SLICE_BYTES, stop - at)
            if any(read(file, at, length)):
                write(file, at, bytes(length))
            await slices.give()
