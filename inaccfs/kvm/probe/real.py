"""A real KVM: the calls of `protocol` as ioctls of /dev/kvm, on x86-64.

Numbers and structs are those of include/uapi/linux/kvm.h and its part for x86,
arch/x86/include/uapi/asm/kvm.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from inaccfs import mmcalls
from inaccfs.kvm.probe.protocol import U64, AbsentError, Region
from inaccfs.kvm.probe.realvcpu import RealVcpu
from inaccfs.kvmcalls import (
    CAPABILITIES,
    DEVICE,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_ENABLE_CAP,
    KVM_GET_DIRTY_LOG,
    KVM_GET_STATS_FD,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_SET_MEMORY_ATTRIBUTES,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
    address,
    create_guest_memfd,
    ioctl,
)

if TYPE_CHECKING:
    import mmap

    from inaccfs.kvm.probe.assembler import Mode

_U32: Final = (1 << 32) - 1

# slot, flags, guest_phys_addr, memory_size, userspace_addr
_region = struct.Struct("=IIQQQ")
# ..., guest_memfd_offset, guest_memfd, pad1, pad2[14]
_region2 = struct.Struct("=IIQQQQII14Q")
# struct kvm_memory_attributes: address, size, attributes, flags
_attributes = struct.Struct("=QQQQ")
# struct kvm_enable_cap: cap, flags, args[4], pad[64]
_enable_cap = struct.Struct("=II4Q64x")
# struct kvm_dirty_log: slot, padding, dirty_bitmap
_dirty_log = struct.Struct("=IIQ")
# struct kvm_stats_header: flags, name_size, num_desc, id_, desc_ and data_offset
_stats_header = struct.Struct("=6I")
# struct kvm_stats_desc: flags, exponent, size, offset, bucket_size; name follows
_stats_desc = struct.Struct("=IhHII")


class RealVm:
    """A VM of /dev/kvm."""

    def __init__(self, kvm: int, kind: int, mode: Mode) -> None:
        self._kvm: Final = kvm
        self._mode: Final = mode
        self.fd: int = fcntl.ioctl(kvm, KVM_CREATE_VM, kind)
        self._vcpus: Final[list[RealVcpu]] = []

    def check_extension(self, capability: int) -> int:
        return ioctl(self.fd, KVM_CHECK_EXTENSION, capability)

    def enable_cap(self, capability: int, argument: int) -> None:
        ioctl(
            self.fd, KVM_ENABLE_CAP, _enable_cap.pack(capability, 0, argument, 0, 0, 0)
        )

    def create_guest_memfd(self, size: int, flags: int, reserved: int = 0) -> int:
        return create_guest_memfd(self.fd, size, flags, reserved)

    def set_user_memory_region(self, region: Region) -> None:
        ioctl(self.fd, KVM_SET_USER_MEMORY_REGION, _region.pack(*_first_five(region)))

    def set_user_memory_region2(self, region: Region) -> None:
        request = _region2.pack(
            *_first_five(region),
            region.guest_memfd_offset & U64,
            region.guest_memfd & _U32,
            region.padding,
            *[region.padding] * 14,
        )
        ioctl(self.fd, KVM_SET_USER_MEMORY_REGION2, request)

    def set_memory_attributes(
        self, gpa: int, size: int, attributes: int, flags: int = 0
    ) -> None:
        request = _attributes.pack(gpa & U64, size & U64, attributes, flags)
        ioctl(self.fd, KVM_SET_MEMORY_ATTRIBUTES, request)

    def get_dirty_log(self, slot: int) -> None:
        bitmap = bytearray(4096)
        with address(bitmap) as at:
            ioctl(self.fd, KVM_GET_DIRTY_LOG, _dirty_log.pack(slot, 0, at))

    def create_vcpu(self, low: mmap.mmap) -> RealVcpu:
        fd = ioctl(self.fd, KVM_CREATE_VCPU, len(self._vcpus))
        self._vcpus.append(RealVcpu(self._kvm, fd, low, self._mode))
        return self._vcpus[-1]

    def stat(self, name: str) -> int:
        try:
            fd = ioctl(self.fd, KVM_GET_STATS_FD, 0)
        except OSError as exc:
            if exc.errno != errno.ENOTTY:
                raise
            raise AbsentError("KVM_GET_STATS_FD") from exc
        try:
            return _stat(fd, name)
        finally:
            os.close(fd)

    def close(self) -> None:
        for vcpu in self._vcpus:
            vcpu.close()
        os.close(self.fd)


class RealKvm:
    """/dev/kvm, opened for one row."""

    def __init__(self, mode: Mode) -> None:
        """*mode* is the CPU mode of the guests.

        Raises:
            OSError: it cannot be opened.
        """
        self._mode: Final = mode
        self.fd: Final = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        types = self.check_extension(CAPABILITIES["KVM_CAP_VM_TYPES"])
        protected = types >> KVM_X86_SW_PROTECTED_VM & 1
        self.vm_type = KVM_X86_SW_PROTECTED_VM if protected else KVM_X86_DEFAULT_VM
        attributes = self.check_extension(CAPABILITIES["KVM_CAP_MEMORY_ATTRIBUTES"])
        self.private = bool(protected and attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE)
        flags = self.check_extension(CAPABILITIES["KVM_CAP_GUEST_MEMFD_FLAGS"])
        self.file_flags = 0 if self.private else flags & 3

    def check_extension(self, capability: int) -> int:
        return ioctl(self.fd, KVM_CHECK_EXTENSION, capability)

    def create_vm(self, kind: int) -> RealVm:
        return RealVm(self.fd, kind, self._mode)

    def cached(self, fd: int) -> int:
        try:
            return mmcalls.cachestat(fd)[0]
        except OSError as exc:
            if exc.errno != errno.ENOSYS:
                raise
            raise AbsentError("cachestat(2)") from exc


class RealOpponent:
    """/dev/kvm of this machine, or of the emulated one."""

    name = DEVICE

    def __init__(self, mode: Mode) -> None:
        self.origin = f"Linux {os.uname().release}"
        self._mode: Final = mode

    def kvm(self) -> RealKvm:
        return RealKvm(self._mode)


def _first_five(region: Region) -> tuple[int, int, int, int, int]:
    return (
        region.slot,
        region.flags,
        region.guest_phys_addr & U64,
        region.memory_size & U64,
        region.userspace_addr & U64,
    )


def _stat(fd: int, name: str) -> int:
    _, name_size, count, _, descs, data = _stats_header.unpack(
        os.pread(fd, _stats_header.size, 0)
    )
    step = _stats_desc.size + name_size
    for index in range(count):
        desc = os.pread(fd, step, descs + index * step)
        if desc[_stats_desc.size :].split(b"\0")[0].decode() == name:
            _, _, _, offset, _ = _stats_desc.unpack_from(desc)
            return int.from_bytes(os.pread(fd, 8, data + offset), "little")
    raise AbsentError(f"the counter {name}")
