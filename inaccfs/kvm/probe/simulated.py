"""The simulated KVM: the calls of `protocol` on a `VM` whose files are on a mount.

The checks of an ioctl's struct are here, in the order of virt/kvm/kvm_main.c and
arch/x86/kvm/x86.c; all else is in the VM. Guests run the same machine code as on a real
KVM, in long mode. There is one mount, and each row has a connection of its own.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from inaccfs import launch
from inaccfs.client import MFD_INACCESSIBLE, connect
from inaccfs.kvm.cpu import Cpu, GuestUnavailableError, check_available
from inaccfs.kvm.cpubase import GuestLimitError
from inaccfs.kvm.probe import assembler
from inaccfs.kvm.probe.protocol import U64, AbsentError, OtherExit
from inaccfs.kvm.smallcpu import SmallCpu
from inaccfs.kvm.uapi import KVM_USER_MEM_SLOTS, PAGE_SIZE
from inaccfs.kvm.vm import VM
from inaccfs.kvmcalls import (
    CAPABILITIES,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
)

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Sequence

    from inaccfs.client import Client
    from inaccfs.kvm.cpubase import CpuBase
    from inaccfs.kvm.probe.guest import Operation
    from inaccfs.kvm.probe.protocol import Exit, Opponent, Region
    from inaccfs.kvm.vcpu import Vcpu

# Addresses in slot 0.
_CODE: Final = 0x1000
_STACK: Final = 0x8000

# In seconds: a guest that runs for so long is taken to be endless, if this process has
# had so much CPU time. On a busy machine it may have had little: then the guest runs
# on, at most _TIMES times as long in all, which is less than `table.LIMIT`. Rows wait
# less long for spinning guests (`machine.PATIENCE`).
_ENDLESS: Final = 8.0
_ENDLESS_CPU: Final = 2.0
_TIMES: Final = 3

_S64: Final = 1 << 63
_BLOCK: Final = 512

# The file flags that stand for each value of the rule `mmap`.
_FILE_FLAGS: Final = {
    "refused": 0,
    "SIGBUS": GUEST_MEMFD_FLAG_MMAP,
    "shared": GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
}
_ALL_FILE_FLAGS: Final = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED


def _invalid(text: str) -> OSError:
    return OSError(errno.EINVAL, text)


class SimulatedVcpu:
    """A vCPU in long mode, in the process of its VM."""

    def __init__(self, vm: SimulatedVm, low: mmap.mmap) -> None:
        self._vm: Final = vm
        self._low: Final = low
        self._cpu: Final = _cpu(vm.vm.create_vcpu())
        self._cpu.hypercalls = vm.hypercalls

    def code(self, program: Sequence[Operation]) -> bytes:
        return assembler.assemble(program, assembler.LONG)

    def load(self, program: Sequence[Operation]) -> None:
        code = self.code(program)
        self._low[_CODE : _CODE + len(code)] = code
        self._cpu.start(_CODE)
        self._cpu["rsp"] = _STACK

    def run(self) -> Exit:
        self._vm.settle()
        enough = time.process_time() + _ENDLESS_CPU
        for _ in range(_TIMES):
            with suppress(GuestLimitError):
                return self._cpu.run(instructions=None, seconds=_ENDLESS)
            if time.process_time() > enough:
                break
        return OtherExit(0, "no exit")

    def answer(self, data: bytes) -> None:
        self._cpu.answer(data)

    def pre_fault_memory(self, gpa: int, size: int, flags: int) -> tuple[int, int, int]:
        self._vm.settle()
        gpa, size = gpa & U64, size & U64
        if flags:
            return errno.EINVAL, gpa, size
        try:
            gpa, size = self._vm.vm.pre_fault_memory(gpa, size)
        except ConnectionError:
            raise
        except OSError as exc:
            return exc.errno or errno.EIO, gpa, size
        return 0, gpa, size


def _cpu(vcpu: Vcpu) -> CpuBase:
    """A CPU for a vCPU: unicorn's, if it is installed."""
    try:
        return Cpu(vcpu, mode="long")
    except GuestUnavailableError:
        return SmallCpu(vcpu)


class SimulatedVm:
    """A VM. It has no file descriptor; `fd` is one of a file outside of the mount."""

    def __init__(self, kvm: SimulatedKvm, kind: int) -> None:
        self._kvm: Final = kvm
        self._protected: Final = kind == KVM_X86_SW_PROTECTED_VM
        self.fd: int = os.eventfd(0, os.EFD_CLOEXEC)
        self.vm: Final = VM(kvm.shim, protected=self._protected)
        # The hypercalls that exit, by KVM_CAP_EXIT_HYPERCALL.
        self.hypercalls: Final[set[int]] = set()

    def check_extension(self, capability: int) -> int:
        return self._kvm.extension(capability, protected=self._protected)

    def enable_cap(self, capability: int, argument: int) -> None:
        known = 1 << KVM_HC_MAP_GPA_RANGE
        if capability != CAPABILITIES["KVM_CAP_EXIT_HYPERCALL"] or argument & ~known:
            raise _invalid(f"capability {capability}, {argument:#x}")
        self.hypercalls.clear()
        if argument:
            self.hypercalls.add(KVM_HC_MAP_GPA_RANGE)

    def create_guest_memfd(self, size: int, flags: int, reserved: int = 0) -> int:
        size &= U64
        if flags & U64 & ~self._kvm.all_file_flags or not 0 < size < _S64:
            raise _invalid(f"size {size:#x}, flags {flags:#x}")
        fd = self._kvm.shim.memfd_create("probe", MFD_INACCESSIBLE, size)
        self.vm.own(fd)
        return fd

    def set_user_memory_region(self, region: Region) -> None:
        if region.flags & KVM_MEM_GUEST_MEMFD:
            raise _invalid("this ioctl has no file")
        self._set(region)

    def set_user_memory_region2(self, region: Region) -> None:
        self._set(region)

    def _set(self, region: Region) -> None:
        self.settle()
        has_file = bool(region.flags & KVM_MEM_GUEST_MEMFD)
        offset = region.guest_memfd_offset & U64
        self.vm.set_user_memory_region(
            region.slot,
            region.guest_phys_addr & U64,
            region.memory_size & U64,
            private_fd=region.guest_memfd if has_file else -1,
            private_offset=offset if has_file else 0,
            shared=region.userspace_addr & U64,
            flags=region.flags,
        )

    def set_memory_attributes(
        self, gpa: int, size: int, attributes: int, flags: int = 0
    ) -> None:
        known = KVM_MEMORY_ATTRIBUTE_PRIVATE if self._protected else 0
        if flags or attributes & ~known:
            raise _invalid(f"attributes {attributes:#x}, flags {flags:#x}")
        self.vm.set_memory_attributes(gpa & U64, size & U64, private=bool(attributes))

    def get_dirty_log(self, slot: int) -> None:
        if not 0 <= slot < KVM_USER_MEM_SLOTS:
            raise _invalid(f"slot {slot}")
        found = next((each for each in self.vm.slots if each.id == slot), None)
        if found is None or not found.flags & KVM_MEM_LOG_DIRTY_PAGES:
            raise OSError(errno.ENOENT, f"slot {slot} has no dirty log")

    def create_vcpu(self, low: mmap.mmap) -> SimulatedVcpu:
        return SimulatedVcpu(self, low)

    def stat(self, name: str) -> int:
        self.settle()
        stats = self.vm.stats
        if name == "pages_4k":
            return stats.mapped.pages_4k + stats.mapped_shared
        if name == "pages_2m":
            return stats.mapped.pages_2m
        raise AbsentError(f"the counter {name}")

    def settle(self) -> None:
        """Wait until the VM has noticed each close(2): see `VM.notice_closed_files`."""
        if not self.vm.rules.kvm_slot_holds_file:
            # The daemon answers this after the RELEASEs that the kernel has sent before
            # it.
            os.statvfs(self._kvm.mountpoint)
            self.vm.notice_closed_files()

    def close(self) -> None:
        self.vm.close()
        os.close(self.fd)


class SimulatedKvm:
    """A connection to the mount, for one row."""

    def __init__(self, mountpoint: str, control: str) -> None:
        self.mountpoint: Final = mountpoint
        self.shim: Final[Client] = connect(control)
        rules = self.shim.query_semantics()
        # Whether VMs that have only file-backed memory get private memory, too.
        self._flags = rules.kvm_default_vm != "refused"
        self.all_file_flags: Final = _ALL_FILE_FLAGS if self._flags else 0
        self.file_flags = _FILE_FLAGS[rules.mmap]
        # A file that can be mapped is for VMs without private memory.
        self.private = not self.file_flags
        self.vm_type = KVM_X86_SW_PROTECTED_VM if self.private else KVM_X86_DEFAULT_VM

    def check_extension(self, capability: int) -> int:
        return self.extension(capability, protected=None)

    def extension(self, capability: int, *, protected: bool | None) -> int:
        """KVM_CHECK_EXTENSION of a VM; *protected* is None for /dev/kvm."""
        attributes = self.private and protected is not False
        files = self._flags or attributes
        values = {
            "KVM_CAP_NR_MEMSLOTS": KVM_USER_MEM_SLOTS,
            "KVM_CAP_READONLY_MEM": 1,
            # System management mode has an address space of its own, where it exists.
            "KVM_CAP_MULTI_ADDRESS_SPACE": 1 if protected else 2,
            "KVM_CAP_EXIT_HYPERCALL": 1 << KVM_HC_MAP_GPA_RANGE,
            "KVM_CAP_USER_MEMORY2": 1,
            "KVM_CAP_MEMORY_FAULT_INFO": 1,
            "KVM_CAP_MEMORY_ATTRIBUTES": KVM_MEMORY_ATTRIBUTE_PRIVATE * attributes,
            "KVM_CAP_GUEST_MEMFD": int(files),
            "KVM_CAP_VM_TYPES": 1 << KVM_X86_DEFAULT_VM | self.private << 1,
            "KVM_CAP_PRE_FAULT_MEMORY": 1,
            "KVM_CAP_GUEST_MEMFD_FLAGS": self.all_file_flags,
        }
        names = {number: name for name, number in CAPABILITIES.items()}
        return values.get(names.get(capability, ""), 0)

    def create_vm(self, kind: int) -> SimulatedVm:
        kinds = (KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM)
        if kind not in kinds[: 1 + self.private]:
            raise _invalid(f"no VM has type {kind}")
        return SimulatedVm(self, kind)

    def cached(self, fd: int) -> int:
        """A mount tells by st_blocks what a guest_memfd tells only by cachestat(2)."""
        return os.fstat(fd).st_blocks * _BLOCK // PAGE_SIZE


class _Simulated:
    name = "simulated"
    origin = ""

    def __init__(self, mount: launch.Mount) -> None:
        self._mount: Final = mount

    def kvm(self) -> SimulatedKvm:
        return SimulatedKvm(str(self._mount.path), str(self._mount.control))


@contextmanager
def opponent(semantics: str | None = None) -> Iterator[Opponent]:
    """The simulated KVM on a private mount with these semantics, for a with block.

    Raises:
        InaccfsError: nothing can be mounted.
    """
    with suppress(GuestUnavailableError):
        # Loaded once here, and not in the child process of each row.
        check_available()
    # Frames of order 0, as guest_memfd has them. A user who may not read pagemap would
    # get larger ones, and touching a page would allocate its neighbours.
    with launch.mounted(
        semantics=semantics,
        pfn_source="simulated",
        options=["simulated-order=0"],
    ) as mount:
        yield _Simulated(mount)
