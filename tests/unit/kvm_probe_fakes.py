"""A KVM that knows memslots only, for tests of the code that runs the rows."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from inaccfs.errors import InaccfsError
from inaccfs.kvm.probe.protocol import AbsentError, Region
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.kvmcalls import KVM_MEM_GUEST_MEMFD

if TYPE_CHECKING:
    import mmap

    from inaccfs.kvm.probe.protocol import Kvm, Vcpu

_PAGES: Final = 1 << 31


class FakeVm:
    """Its files are memfds; a file's pages are in one slot."""

    fd = -1

    def __init__(self, error: str) -> None:
        self._error: Final = error
        self._slots: Final[dict[int, Region]] = {}

    def check_extension(self, capability: int) -> int:
        return capability

    def enable_cap(self, capability: int, argument: int) -> None:
        raise AbsentError("KVM_ENABLE_CAP")

    def create_guest_memfd(self, size: int, flags: int, reserved: int = 0) -> int:
        if size <= 0 or size % PAGE_SIZE or flags:
            raise OSError(errno.EINVAL, "size, flags")
        fd = os.memfd_create("fake")
        os.ftruncate(fd, size)
        return fd

    def set_user_memory_region(self, region: Region) -> None:
        raise AbsentError("KVM_SET_USER_MEMORY_REGION")

    def set_user_memory_region2(self, region: Region) -> None:
        offset = region.guest_memfd_offset
        wrong = offset == 1 and region.memory_size and region.guest_memfd >= 0
        if offset % PAGE_SIZE and not (wrong and self._error == "region-offset-1"):
            raise OSError(errno.EINVAL, "offset")
        if not region.memory_size:
            if self._slots.pop(region.slot, None) is None:
                raise OSError(errno.EINVAL, "no such slot")
            return
        if region.slot in self._slots:
            raise OSError(errno.EINVAL, "slot")
        for other in self._slots.values():
            if _overlap(region.guest_phys_addr, other.guest_phys_addr, region, other):
                raise OSError(errno.EEXIST, "gfns")
            if not region.flags & other.flags & KVM_MEM_GUEST_MEMFD:
                continue
            if (
                os.path.sameopenfile(region.guest_memfd, other.guest_memfd)
                and _overlap(offset, other.guest_memfd_offset, region, other)
                and not (
                    self._error == "slot-file-one-page" and offset == 7 * PAGE_SIZE
                )
            ):
                raise OSError(errno.EINVAL, "file")
        self._slots[region.slot] = region

    def set_memory_attributes(
        self, gpa: int, size: int, attributes: int, flags: int = 0
    ) -> None:
        """Accept any attributes."""

    def get_dirty_log(self, slot: int) -> None:
        raise AbsentError("KVM_GET_DIRTY_LOG")

    def create_vcpu(self, low: mmap.mmap) -> Vcpu:
        raise AbsentError("KVM_CREATE_VCPU")

    def stat(self, name: str) -> int:
        raise AbsentError(name)

    def close(self) -> None:
        """Close nothing."""


def _overlap(start: int, other_start: int, one: Region, other: Region) -> bool:
    return (
        start < other_start + other.memory_size
        and other_start < start + one.memory_size
    )


class FakeKvm:
    """Makes such VMs. In the row *error* it returns a wrong outcome."""

    vm_type = 1
    file_flags = 0

    def __init__(self, *, private: bool = True, error: str = "") -> None:
        self.private = private
        self._error: Final = error

    def check_extension(self, capability: int) -> int:
        return capability

    def create_vm(self, kind: int) -> FakeVm:
        return FakeVm(self._error)

    def cached(self, fd: int) -> int:
        return os.fstat(fd).st_blocks * 512 // PAGE_SIZE


class FakeOpponent:
    """The other side of a comparison, with such a KVM."""

    name = "fake"
    origin = ""

    def __init__(self, kvm: FakeKvm | None = None, trouble: str = "") -> None:
        self._kvm: Final = kvm or FakeKvm()
        self._trouble: Final = trouble

    def kvm(self) -> Kvm:
        if self._trouble:
            raise InaccfsError(self._trouble)
        return self._kvm
