"""The contents of the guest's pages, as this process can access them.

This process cannot access frames, so a guest's access to a frame is simulated by an
access to the file's page. So through a stale entry a guest reaches the page that the
file has there now; on hardware it would reach the frame, which may be another owner's
by then.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final, NamedTuple, Protocol, TypeAlias

from inaccfs import mmcalls
from inaccfs.kvm.uapi import PAGE_SIZE

# The types that the shared half of a slot can have.
WritableBuffer: TypeAlias = bytearray | memoryview | mmap.mmap


def address_of(buffer: WritableBuffer) -> int:
    """The address of a writable buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def resident(buffer: WritableBuffer, first: int, pages: int) -> bytes:
    """mincore(2): a byte for each page of *buffer* from *first* on, odd if resident.

    If the buffer is not page-aligned, its pages count from the one that it begins in.
    """
    start = address_of(buffer) // PAGE_SIZE * PAGE_SIZE + first * PAGE_SIZE
    return mmcalls.mincore(start, pages)


def _map(fd: int, size: int) -> mmap.mmap:
    """Map the first *size* bytes of a file, and the rest of the last page.

    The rest of the last page is the guest's, too, but mmap.mmap() maps nothing past
    the end of the file.
    """
    if size % PAGE_SIZE == 0:
        return mmap.mmap(fd, size)
    whole = -(-size // PAGE_SIZE) * PAGE_SIZE
    made = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmcalls.MAP_NORESERVE)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    # MAP_FIXED replaces the anonymous mapping.
    flags, address = mmap.MAP_SHARED | mmcalls.MAP_FIXED, address_of(made)
    mmcalls.mmap(fd, 0, whole, protection, flags, address)
    return made


class FileMemory:
    """A file's memory, mapped once for all slots of a VM that use the file.

    It takes over the fd.
    """

    def __init__(self, fd: int) -> None:
        self._fd: Final = fd
        # Every mapping so far: the file may grow while an access uses an older mapping.
        self._maps: Final[list[mmap.mmap]] = []

    def reach(self, size: int) -> mmap.mmap | None:
        """Return a mapping of at least *size* bytes, or of as much as the file has."""
        newest = self._maps[-1] if self._maps else None
        if newest is None or len(newest) < size:
            available = os.fstat(self._fd).st_size
            if available > (0 if newest is None else len(newest)):
                self._maps.append(_map(self._fd, available))
        return self._maps[-1] if self._maps else None

    def close(self) -> None:
        """Unmap and close. No access may be in progress any more."""
        for each in self._maps:
            each.close()
        os.close(self._fd)


class Place(NamedTuple):
    """The target of one vCPU access. It lies within one mapping."""

    # The file's memory, and the access's offset in it, in bytes.
    window: mmap.mmap
    position: int
    # The guest physical address, in bytes.
    gpa: int
    # The frame that the page at gpa is mapped to.
    pfn: int


class GuestMemory(Protocol):
    """Reads and writes the guest's bytes; the argument *memory* of a VM.

    Both methods are called in guest mode, so they must not block.
    """

    def read(self, place: Place, size: int) -> bytes:
        """Read *size* bytes."""

    def write(self, place: Place, data: memoryview) -> None:
        """Write *data*."""


class PlainMemory:
    """The guest's bytes are the bytes of the file's memory."""

    def read(self, place: Place, size: int) -> bytes:
        """See `GuestMemory.read`."""
        position = place.position
        return place.window[position : position + size]

    def write(self, place: Place, data: memoryview) -> None:
        """See `GuestMemory.write`."""
        position = place.position
        place.window[position : position + len(data)] = data
