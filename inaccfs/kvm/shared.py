"""The shared half of a slot: memory of the VMM, as a buffer or as an address.

A slot may have any address, as in KVM, which looks at userspace_addr when it is used.
So memory at an address is copied by process_vm_readv(2), which fails where a plain
access would kill this process.
"""

from __future__ import annotations

import errno
import mmap
from typing import Final, Protocol

from inaccfs import mmcalls
from inaccfs.kvm.memory import WritableBuffer, address_of, resident
from inaccfs.kvm.uapi import PAGE_SIZE


class SharedHalf(Protocol):
    """Offsets and sizes are bytes, unless said otherwise."""

    def read(self, offset: int, size: int) -> bytes:
        """Read. EFAULT where nothing is mapped."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write. EFAULT where nothing is mapped, or only for reading."""

    def is_same(self, other: WritableBuffer | int | None) -> bool:
        """Whether *other*, an argument of the ioctl, is this memory."""

    def resident(self, pages: int) -> bytes:
        """mincore(2) of the first *pages*: a byte for each, odd if resident."""

    def discard(self, offset: int, size: int) -> None:
        """Free whole pages, or zero them where they cannot be freed."""

    def release(self) -> None:
        """The slot was deleted."""


class BufferHalf:
    """A writable buffer of the caller's, which is exported until `release`."""

    def __init__(self, buffer: WritableBuffer) -> None:
        # The buffer itself is not kept: it would be exported for as long as this lives.
        self._view: Final = memoryview(buffer).cast("B")
        self._address: Final = address_of(self._view)

    def read(self, offset: int, size: int) -> bytes:
        """See `SharedHalf.read`."""
        return bytes(self._view[offset : offset + size])

    def write(self, offset: int, data: memoryview) -> None:
        """See `SharedHalf.write`."""
        self._view[offset : offset + len(data)] = data

    def is_same(self, other: WritableBuffer | int | None) -> bool:
        """See `SharedHalf.is_same`."""
        if other is None or isinstance(other, int):
            return False
        return address_of(memoryview(other).cast("B")) == self._address

    def resident(self, pages: int) -> bytes:
        """See `SharedHalf.resident`."""
        return resident(self._view, 0, pages)

    def discard(self, offset: int, size: int) -> None:
        """See `SharedHalf.discard`."""
        if isinstance(self._view.obj, mmap.mmap):
            _discard(self._address + offset, size)
        else:
            self._view[offset : offset + size] = bytes(size)

    def release(self) -> None:
        """See `SharedHalf.release`."""
        self._view.release()


class AddressHalf:
    """The memory at an address of this process, whatever is mapped there."""

    def __init__(self, address: int) -> None:
        self._address: Final = address

    def read(self, offset: int, size: int) -> bytes:
        """See `SharedHalf.read`."""
        try:
            found = mmcalls.read_memory(self._address + offset, size)
        except OSError as exc:
            raise self._fault(offset) from exc
        if len(found) < size:
            raise self._fault(offset)
        return found

    def write(self, offset: int, data: memoryview) -> None:
        """See `SharedHalf.write`."""
        try:
            written = mmcalls.write_memory(self._address + offset, bytes(data))
        except OSError as exc:
            raise self._fault(offset) from exc
        if written < len(data):
            raise self._fault(offset)

    def _fault(self, offset: int) -> OSError:
        where = self._address + offset
        return OSError(errno.EFAULT, f"nothing is mapped at {where:#x}")

    def is_same(self, other: WritableBuffer | int | None) -> bool:
        """See `SharedHalf.is_same`."""
        return other == self._address

    def resident(self, pages: int) -> bytes:
        """See `SharedHalf.resident`; none are where nothing is mapped."""
        try:
            return mmcalls.mincore(self._address, pages)
        except OSError:
            return bytes(pages)

    def discard(self, offset: int, size: int) -> None:
        """See `SharedHalf.discard`."""
        _discard(self._address + offset, size)

    def release(self) -> None:
        """See `SharedHalf.release`."""


def half_of(shared: WritableBuffer | int | None) -> SharedHalf | None:
    """The half of a slot that was given a buffer, an address, or none."""
    if shared is None:
        return None
    return AddressHalf(shared) if isinstance(shared, int) else BufferHalf(shared)


def is_aligned(shared: WritableBuffer | int) -> bool:
    """Whether it begins at a page boundary, if its type can."""
    if isinstance(shared, int):
        return shared % PAGE_SIZE == 0
    view = memoryview(shared)
    # Memory that Python allocates is not page-aligned, and shares its pages.
    return not isinstance(view.obj, mmap.mmap) or address_of(view) % PAGE_SIZE == 0


def _discard(address: int, size: int) -> None:
    try:
        # This frees the memory of MAP_SHARED; private mappings get EINVAL.
        mmcalls.madvise(address, size, mmap.MADV_REMOVE)
    except OSError:
        mmcalls.madvise(address, size, mmap.MADV_DONTNEED)
