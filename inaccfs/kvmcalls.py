"""KVM's interface: the numbers of its ioctls, capabilities, flags and exits.

include/uapi/linux/kvm.h, for x86 arch/x86/include/uapi/asm/kvm.h, and for the numbers
of ioctls include/uapi/asm-generic/ioctl.h. This project's own KVM has the same ones.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE: Final = "/dev/kvm"

_KVMIO: Final = 0xAE
_WRITE: Final = 1
_READ: Final = 2


def _io(number: int, size: int = 0, direction: int = 0) -> int:
    return direction << 30 | size << 16 | _KVMIO << 8 | number


KVM_GET_API_VERSION: Final = _io(0x00)
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

KVM_X86_DEFAULT_VM: Final = 0
KVM_X86_SW_PROTECTED_VM: Final = 1
KVM_MEM_LOG_DIRTY_PAGES: Final = 1 << 0
KVM_MEM_READONLY: Final = 1 << 1
KVM_MEM_GUEST_MEMFD: Final = 1 << 2
KVM_MEMORY_ATTRIBUTE_PRIVATE: Final = 1 << 3
GUEST_MEMFD_FLAG_MMAP: Final = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED: Final = 1 << 1

CAPABILITIES: Final = {
    "KVM_CAP_NR_MEMSLOTS": 10,
    "KVM_CAP_READONLY_MEM": 81,
    "KVM_CAP_MULTI_ADDRESS_SPACE": 118,
    "KVM_CAP_EXIT_HYPERCALL": 201,
    "KVM_CAP_USER_MEMORY2": 231,
    "KVM_CAP_MEMORY_FAULT_INFO": 232,
    "KVM_CAP_MEMORY_ATTRIBUTES": 233,
    "KVM_CAP_GUEST_MEMFD": 234,
    "KVM_CAP_VM_TYPES": 235,
    "KVM_CAP_PRE_FAULT_MEMORY": 236,
    "KVM_CAP_GUEST_MEMFD_FLAGS": 244,
}

# include/uapi/linux/kvm_para.h
KVM_HC_MAP_GPA_RANGE: Final = 12

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
"""The names of some exits."""

# struct kvm_create_guest_memfd: size, flags, reserved[6]
_guest_memfd = struct.Struct("=QQ6Q")
_U64: Final = (1 << 64) - 1


def ioctl(fd: int, number: int, argument: int | bytes | bytearray) -> int:
    """ioctl(2); what it returns. The kernel changes only a bytearray."""
    if isinstance(argument, bytes):
        # With bytes Python would return the struct.
        argument = bytearray(argument)
    return fcntl.ioctl(fd, number, argument)


def create_guest_memfd(vm: int, size: int, flags: int, reserved: int = 0) -> int:
    """KVM_CREATE_GUEST_MEMFD; a new fd. *size* is bytes."""
    request = _guest_memfd.pack(size & _U64, flags & _U64, *[reserved] * 6)
    return ioctl(vm, KVM_CREATE_GUEST_MEMFD, request)


def vm_with_files(kvm: int) -> int | None:
    """A new VM that can have guest_memfd, as an fd; None if none can.

    *kvm* is an fd of /dev/kvm. That fd itself does not know: from Linux 6.8 to 6.17 it
    has KVM_CAP_GUEST_MEMFD wherever KVM was built with it, even if only VMs of a type
    that this KVM does not have can use it. On x86 a VM of the default type can since
    6.18; before that, only one with private memory.
    """
    for kind in (KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM):
        try:
            vm = ioctl(kvm, KVM_CREATE_VM, kind)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            # This KVM has no VMs of this type.
            continue
        if ioctl(vm, KVM_CHECK_EXTENSION, CAPABILITIES["KVM_CAP_GUEST_MEMFD"]) > 0:
            return vm
        os.close(vm)
    return None


@contextmanager
def address(buffer: bytearray) -> Iterator[int]:
    """The address of a buffer, which is not moved during a with block."""
    exported = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    yield ctypes.addressof(exported)
