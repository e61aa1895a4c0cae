"""KVM's interface to userspace: flags, levels, and the exits of a vCPU.

Names and values are those of include/uapi/linux/kvm.h with the v8 series applied.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    Hook: TypeAlias = Callable[[str, int, int], object]

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT

# The flag of a slot that has a private half; patch 2/8.
KVM_MEM_PRIVATE: Final = 1 << 2

# The flag of an exit by a private access; patch 3/8. (Mainline has 1 << 3.)
KVM_MEMORY_EXIT_FLAG_PRIVATE: Final = 1 << 0

# Bit 31 of disallow_lpage; patch 6/8.
KVM_LPAGE_PRIVATE_SHARED_MIXED: Final = 1 << 31

# As on x86. There are as many ids; the kernel keeps a few for itself.
KVM_MEM_SLOTS_NUM: Final = 32767
KVM_MEM_MAX_NR_PAGES: Final = (1 << 31) - 1

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

    `flags` is KVM_MEMORY_EXIT_FLAG_PRIVATE for a private access, else 0. `gpa` and
    `size` are the page that was touched, in bytes. `errno` is 0 where a conversion by
    the VMM may help (KVM_RUN returns 0 in v8); else it is the errno of get-pfn, as in
    mainline, and the cause is that exception.
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
        return bool(self.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE)

    def __str__(self) -> str:
        kind = "private" if self.private else "shared"
        why = f": {os.strerror(self.errno)}" if self.errno else ""
        return f"{kind} access to {self.size} bytes at gpa {self.gpa:#x}{why}"


class MmioExit(VcpuExit):
    """KVM_EXIT_MMIO: a shared access where there is no slot. `gpa` is in bytes."""

    def __init__(self, gpa: int) -> None:
        self.gpa = gpa
        super().__init__(gpa)

    def __str__(self) -> str:
        return f"no memory at gpa {self.gpa:#x}"


def no_hook(point: str, start: int, end: int) -> None:
    """The default hook: does nothing."""
