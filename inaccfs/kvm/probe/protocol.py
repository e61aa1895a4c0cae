"""The interface of a KVM, real or simulated, that rows use.

Calls are named after the ioctls of Documentation/virt/kvm/api.rst and take the members
of their structs: bytes, addresses of this process, file descriptors. Rows pass any
value that fits into the struct. Each call raises the `OSError` of the ioctl. File
descriptors are real ones: rows use fallocate(2), dup(2), close(2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

    from inaccfs.kvm.probe.guest import Operation

U64: Final = (1 << 64) - 1
"""The values that a member of an ioctl's struct can have."""


class AbsentError(Exception):
    """This KVM lacks what a row asks about. The message says what it is."""


class Region(NamedTuple):
    """struct kvm_userspace_memory_region2. Sizes and offsets are bytes."""

    slot: int
    flags: int = 0
    guest_phys_addr: int = 0
    memory_size: int = 0
    userspace_addr: int = 0
    guest_memfd_offset: int = 0
    # -1 and other invalid descriptors are passed to the ioctl, too.
    guest_memfd: int = 0
    # Every reserved word of the struct.
    padding: int = 0


class Halt(NamedTuple):
    """The guest has completed its program."""


class PortOut(NamedTuple):
    """KVM_EXIT_IO, out: the guest continues at the next KVM_RUN."""

    port: int
    data: bytes


class PortIn(NamedTuple):
    """KVM_EXIT_IO, in: `Vcpu.answer` gives the data."""

    port: int
    width: int


class MmioRead(NamedTuple):
    """KVM_EXIT_MMIO: `Vcpu.answer` gives the data."""

    gpa: int
    width: int


class MmioWrite(NamedTuple):
    """KVM_EXIT_MMIO, is_write."""

    gpa: int
    data: bytes


class MemoryFault(NamedTuple):
    """KVM_EXIT_MEMORY_FAULT, with the errno of KVM_RUN (0 if that returns 0)."""

    errno: int
    flags: int
    gpa: int
    size: int


class Hypercall(NamedTuple):
    """KVM_EXIT_HYPERCALL: `Vcpu.answer` gives ret, eight bytes."""

    number: int
    arguments: tuple[int, ...]


class OtherExit(NamedTuple):
    """Any other end of KVM_RUN: its errno, or 0, and exit_reason in words."""

    errno: int
    reason: str


Exit: TypeAlias = (
    Halt | PortOut | PortIn | MmioRead | MmioWrite | MemoryFault | Hypercall | OtherExit
)


class Vcpu(Protocol):
    """A vCPU, for one thread at a time."""

    def load(self, program: Sequence[Operation]) -> None:
        """Make the guest begin *program* at its next `run`."""

    def code(self, program: Sequence[Operation]) -> bytes:
        """Machine code of a program and its end, for a guest to write and to jump to.

        Raises:
            AbsentError: this vCPU runs no machine code.
        """

    def run(self) -> Exit:
        """KVM_RUN: run until the next exit."""

    def answer(self, data: bytes) -> None:
        """What a PortIn, MmioRead or Hypercall gives the guest at the next `run`."""

    def pre_fault_memory(self, gpa: int, size: int, flags: int) -> tuple[int, int, int]:
        """KVM_PRE_FAULT_MEMORY: the errno or 0, and the gpa and size that it leaves."""


class Vm(Protocol):
    """A VM."""

    fd: int
    """Its file descriptor; -1 if this KVM has none."""

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION of this VM."""

    def enable_cap(self, capability: int, argument: int) -> None:
        """KVM_ENABLE_CAP with args[0]."""

    def create_guest_memfd(self, size: int, flags: int, reserved: int = 0) -> int:
        """KVM_CREATE_GUEST_MEMFD; a file descriptor. *size* is bytes."""

    def set_user_memory_region(self, region: Region) -> None:
        """KVM_SET_USER_MEMORY_REGION: the first five members of *region*."""

    def set_user_memory_region2(self, region: Region) -> None:
        """KVM_SET_USER_MEMORY_REGION2."""

    def set_memory_attributes(
        self, gpa: int, size: int, attributes: int, flags: int = 0
    ) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES."""

    def get_dirty_log(self, slot: int) -> None:
        """KVM_GET_DIRTY_LOG, into a bitmap of 4 KiB."""

    def create_vcpu(self, low: mmap.mmap) -> Vcpu:
        """KVM_CREATE_VCPU. *low* is the memory of slot 0, 64 KiB at gpa 0.

        The vCPU's code and page tables may be there.
        """

    def stat(self, name: str) -> int:
        """A counter of KVM_GET_STATS_FD: `pages_4k`, `pages_2m`.

        Raises:
            AbsentError: this KVM does not count that.
        """

    def close(self) -> None:
        """Close the descriptors of the VM and of its vCPUs."""


class Kvm(Protocol):
    """A KVM. An object serves one row, in the process that has made the object."""

    private: bool
    """Whether gfns can be made private: KVM_SET_MEMORY_ATTRIBUTES has bit 3."""

    vm_type: int
    """The argument of `create_vm` for a VM whose slots can have a guest_memfd."""

    file_flags: int
    """GUEST_MEMFD_FLAG_* of a file for such a slot."""

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION of /dev/kvm."""

    def create_vm(self, kind: int) -> Vm:
        """KVM_CREATE_VM."""

    def cached(self, fd: int) -> int:
        """How many pages of 4 KiB a guest_memfd has: cachestat(2), for a real one."""


class Opponent(Protocol):
    """Makes a KVM for each row."""

    name: str
    """The name by which the user has chosen it, or "simulated"."""

    origin: str
    """Its kernel; empty if it is not a kernel's."""

    def kvm(self) -> Kvm:
        """A KVM for one row; called in the row's own child process.

        Raises:
            InaccfsError: it is not available any more.
        """
