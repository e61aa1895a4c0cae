"""KVM's interface to userspace: flags, levels, and the exits of a vCPU.

Names and values are those of include/uapi/linux/kvm.h with the v8 series applied.
"""

from __future__ import annotations

import errno as errno_
import os
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from inaccfs.kvmcalls import KVM_MEM_GUEST_MEMFD

if TYPE_CHECKING:
    from collections.abc import Callable

    Hook: TypeAlias = Callable[[str, int, int], object]

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT

KVM_MEM_PRIVATE: Final = KVM_MEM_GUEST_MEMFD
"""The flag of a slot that has a private half: its name in v8, patch 2/8."""

# The flag of an exit by a private access, in v8; patch 3/8. The rule kvm_exit_flag has
# each version's.
KVM_MEMORY_EXIT_FLAG_PRIVATE: Final = 1 << 0
EXIT_FLAGS: Final = {"1 << 0": KVM_MEMORY_EXIT_FLAG_PRIVATE, "1 << 3": 1 << 3}
"""The values of the rule kvm_exit_flag."""

# Bit 31 of disallow_lpage; patch 6/8.
KVM_LPAGE_PRIVATE_SHARED_MIXED: Final = 1 << 31

# As on x86, where the kernel keeps three of 32767 ids for itself.
KVM_USER_MEM_SLOTS: Final = 32764
KVM_MEM_MAX_NR_PAGES: Final = (1 << 31) - 1
# kvm_mmu_max_gfn(), plus one, of a CPU with 52 address bits.
MAX_GFNS: Final = 1 << 52 - PAGE_SHIFT

# The three sizes of a mapping; see `pages_of_level`.
PG_LEVEL_4K: Final = 1
PG_LEVEL_2M: Final = 2
PG_LEVEL_1G: Final = 3

# log2 of the number of entries in a table.
TABLE_SHIFT: Final = 9


def pages_of_level(level: int) -> int:
    """How many pages of 4 KiB a mapping of that level covers."""
    return 1 << TABLE_SHIFT * (level - 1)


def level_of_order(order: int) -> int:
    """The largest level that a folio of 2**order frames allows; patch 7/8."""
    return min(PG_LEVEL_4K + order // TABLE_SHIFT, PG_LEVEL_1G)


def order_of_level(level: int) -> int:
    """The order of a folio that is as large as a mapping of *level*."""
    return TABLE_SHIFT * (level - 1)


class Spte(NamedTuple):
    """A gfn's entry in the secondary MMU."""

    # The frame of this gfn, also in the middle of a huge mapping.
    pfn: int
    # PG_LEVEL_4K, _2M or _1G.
    level: int


class VcpuExit(Exception):
    """A vCPU cannot continue until its VMM has handled the exit."""


class MemoryFaultExit(VcpuExit):
    """KVM_EXIT_MEMORY_FAULT: the page is not private, or shared, as the access was.

    `flags` is the bit of the rule kvm_exit_flag for a private access, else 0. `gpa` and
    `size` are the page that was touched, in bytes. `errno` is what KVM_RUN fails with:
    where a conversion by the VMM may help, 0 or EFAULT by the rule kvm_exit_returns;
    else the errno of get-pfn, as in mainline, and the cause is that exception.
    """

    def __init__(self, flags: int, gpa: int, size: int, errno: int = 0) -> None:
        self.flags = flags
        self.gpa = gpa
        self.size = size
        self.errno = errno
        super().__init__(flags, gpa, size, errno)

    @property
    def private(self) -> bool:
        """Whether the access was a private one."""
        return self.flags != 0

    @property
    def asks(self) -> bool:
        """Whether it asks for a conversion: the page was not looked up yet."""
        return self.errno in (0, errno_.EFAULT) and self.__cause__ is None

    def __str__(self) -> str:
        kind = "private" if self.private else "shared"
        why = f": {os.strerror(self.errno)}" if self.errno else ""
        return f"{kind} access to {self.size} bytes at gpa {self.gpa:#x}{why}"


class MmioExit(VcpuExit):
    """KVM_EXIT_MMIO: an access where there is no slot, or a write to a read-only one.

    `gpa` is in bytes.
    """

    def __init__(self, gpa: int) -> None:
        self.gpa = gpa
        super().__init__(gpa)

    def __str__(self) -> str:
        return f"no memory at gpa {self.gpa:#x}"


def no_hook(point: str, start: int, end: int) -> None:
    """The default hook: does nothing."""
