"""The numbers and names of KVM's ioctls and exits.

include/uapi/linux/kvm.h, and include/uapi/asm-generic/ioctl.h for the numbers.
"""

from __future__ import annotations

import ctypes
import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_KVMIO: Final = 0xAE
_WRITE: Final = 1
_READ: Final = 2


def _io(number: int, size: int = 0, direction: int = 0) -> int:
    return direction << 30 | size << 16 | _KVMIO << 8 | number


KVM_CREATE_VM: Final = _io(0x01)
KVM_CHECK_EXTENSION: Final = _io(0x03)
KVM_GET_VCPU_MMAP_SIZE: Final = _io(0x04)
KVM_GET_SUPPORTED_CPUID: Final = _io(0x05, 8, _READ | _WRITE)
KVM_CREATE_VCPU: Final = _io(0x41)
KVM_GET_DIRTY_LOG: Final = _io(0x42, 16, _WRITE)
KVM_SET_USER_MEMORY_REGION: Final = _io(0x46, 32, _WRITE)
KVM_SET_USER_MEMORY_REGION2: Final = _io(0x49, 160, _WRITE)
KVM_RUN: Final = _io(0x80)
KVM_SET_REGS: Final = _io(0x82, 144, _WRITE)
KVM_GET_SREGS: Final = _io(0x83, 312, _READ)
KVM_SET_SREGS: Final = _io(0x84, 312, _WRITE)
KVM_SET_CPUID2: Final = _io(0x90, 8, _WRITE)
KVM_ENABLE_CAP: Final = _io(0xA3, 104, _WRITE)
KVM_GET_STATS_FD: Final = _io(0xCE)
KVM_SET_MEMORY_ATTRIBUTES: Final = _io(0xD2, 32, _WRITE)
KVM_CREATE_GUEST_MEMFD: Final = _io(0xD4, 64, _READ | _WRITE)
KVM_PRE_FAULT_MEMORY: Final = _io(0xD5, 64, _READ | _WRITE)

KVM_EXIT_IO: Final = 2
KVM_EXIT_HYPERCALL: Final = 3
KVM_EXIT_HLT: Final = 5
KVM_EXIT_MMIO: Final = 6
KVM_EXIT_INTERNAL_ERROR: Final = 17
KVM_EXIT_MEMORY_FAULT: Final = 39

EXIT_NAMES: Final = {
    0: "KVM_EXIT_UNKNOWN",
    1: "KVM_EXIT_EXCEPTION",
    8: "KVM_EXIT_SHUTDOWN",
    9: "KVM_EXIT_FAIL_ENTRY",
    10: "KVM_EXIT_INTR",
    17: "KVM_EXIT_INTERNAL_ERROR",
}
"""The exits without a class of their own in `protocol`."""


def ioctl(fd: int, number: int, argument: int | bytes | bytearray) -> int:
    """ioctl(2); what it returns. The kernel changes only a bytearray."""
    if isinstance(argument, bytes):
        # With bytes Python would return the struct.
        argument = bytearray(argument)
    return fcntl.ioctl(fd, number, argument)


@contextmanager
def address(buffer: bytearray) -> Iterator[int]:
    """The address of a buffer, which is not moved during a with block."""
    exported = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    yield ctypes.addressof(exported)
