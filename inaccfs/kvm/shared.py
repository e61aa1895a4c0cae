"""The shared half of a slot: memory of the VMM, as a buffer or as an address.

A slot may have any address, as in KVM, which looks at userspace_addr when it is used.
So memory at an address is copied by process_vm_readv(2), which fails where a plain
access would kill this process.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Final, Protocol

from inaccfs.kvm.memory import WritableBuffer, address_of, resident, resident_at
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.syscalls import last_error

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [
        *(ctypes.c_int, ctypes.POINTER(_Iovec), ctypes.c_ulong),
        *(ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.c_ulong),
    ]


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
        buffer = ctypes.create_string_buffer(size)
        self._copy(_libc.process_vm_readv, buffer, offset, size)
        return buffer.raw

    def write(self, offset: int, data: memoryview) -> None:
        """See `SharedHalf.write`."""
        size = len(data)
        buffer = ctypes.create_string_buffer(bytes(data), size)
        self._copy(_libc.process_vm_writev, buffer, offset, size)

    def _copy(
        self,
        call: ctypes._NamedFuncPointer,
        buffer: ctypes.Array[ctypes.c_char],
        offset: int,
        size: int,
    ) -> None:
        own = _Iovec(ctypes.addressof(buffer), size)
        there = _Iovec(self._address + offset, size)
        done = call(os.getpid(), ctypes.byref(own), 1, ctypes.byref(there), 1, 0)
        if done != size:
            raise OSError(
                errno.EFAULT, f"nothing is mapped at {self._address + offset:#x}"
            )

    def is_same(self, other: WritableBuffer | int | None) -> bool:
        """See `SharedHalf.is_same`."""
        return other == self._address

    def resident(self, pages: int) -> bytes:
        """See `SharedHalf.resident`; none are where nothing is mapped."""
        try:
            return resident_at(self._address, pages)
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
    # MADV_REMOVE frees the memory of MAP_SHARED; private mappings get EINVAL.
    for advice in (mmap.MADV_REMOVE, mmap.MADV_DONTNEED):
        if not _libc.madvise(address, size, advice):
            return
    raise last_error()
