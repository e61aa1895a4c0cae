"""The checks of KVM_SET_USER_MEMORY_REGION, and what the call changes.

__kvm_set_memory_region() and check_memory_region_flags() of virt/kvm/kvm_main.c, and
kvm_arch_prepare_memory_region(). The file is looked at last, when the slot is made.
"""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.kvm.shared import is_aligned
from inaccfs.kvm.uapi import (
    KVM_MEM_MAX_NR_PAGES,
    KVM_MEM_PRIVATE,
    KVM_USER_MEM_SLOTS,
    MAX_GFNS,
    PAGE_SHIFT,
    PAGE_SIZE,
)
from inaccfs.kvmcalls import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

if TYPE_CHECKING:
    from inaccfs.kvm.memslots import MemorySlot, MemorySlots, Region
    from inaccfs.kvm.shim import ShimSemantics

_U64: Final = 1 << 64
_USER_SPACE: Final = 1 << 63


class Kind(enum.Enum):
    """enum kvm_mr_change, and NOTHING for a call that changes nothing."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags only"
    NOTHING = "nothing"


class Change(NamedTuple):
    """What a call changes, and the existing slot, if there is one."""

    kind: Kind
    old: MemorySlot | None


def check(
    region: Region, slots: MemorySlots, rules: ShimSemantics, *, protected: bool
) -> Change:
    """Check a region as KVM does. *protected*: the VM has private memory.

    Raises:
        OSError: EINVAL; EEXIST where it overlaps another slot. The file is not looked
            at yet.
    """
    _check_flags(region, rules, protected=protected)
    _check_numbers(region)
    _check_shared(region)
    _check_private(region)
    old = slots.by_id(region.slot)
    if not region.memory_size:
        if old is None:
            raise _invalid(f"there is no slot {region.slot} to delete")
        return Change(Kind.DELETE, old)
    if old is None:
        _check_unused(region, rules)
        kind = Kind.CREATE
    else:
        kind = _kind(region, old)
    if kind in (Kind.CREATE, Kind.MOVE):
        first = region.guest_phys_addr >> PAGE_SHIFT
        others = slots if old is None else slots.minus(old)
        if others.overlaps(first, first + (region.memory_size >> PAGE_SHIFT)):
            raise FileExistsError(errno.EEXIST, "the range overlaps another slot's")
    return Change(kind, old)


def check_gfns(region: Region) -> None:
    """kvm_arch_prepare_memory_region(), which comes after the checks of the file."""
    end = (region.guest_phys_addr + region.memory_size) >> PAGE_SHIFT
    if end > MAX_GFNS:
        raise _invalid(f"gpa {region.guest_phys_addr:#x}: no CPU has such addresses")


def check_range(gpa: int, size: int) -> None:
    """EINVAL unless these bytes are whole pages of guest memory; *size* may be 0."""
    if gpa < 0 or size < 0 or (gpa | size) % PAGE_SIZE:
        raise _invalid(f"gpa {gpa:#x}, size {size:#x}: not aligned to pages")
    # In 64 bits the end wraps, and so comes before the start.
    if gpa + size >= _U64:
        raise _invalid(f"gpa {gpa:#x}, size {size:#x}: wraps around")


def _invalid(text: str) -> OSError:
    return OSError(errno.EINVAL, text)


def _check_flags(region: Region, rules: ShimSemantics, *, protected: bool) -> None:
    """check_memory_region_flags(): a slot with a file has no other flag."""
    known = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
    if region.flags & KVM_MEM_PRIVATE and (
        protected or rules.kvm_default_vm != "refused"
    ):
        known = KVM_MEM_PRIVATE
    if region.flags & ~known:
        raise _invalid(f"flags {region.flags:#x}: not all of them can be given")


def _check_numbers(region: Region) -> None:
    if not 0 <= region.slot < KVM_USER_MEM_SLOTS:
        raise _invalid(f"slot {region.slot}: give 0 to {KVM_USER_MEM_SLOTS - 1}")
    check_range(region.guest_phys_addr, region.memory_size)
    if region.memory_size >> PAGE_SHIFT > KVM_MEM_MAX_NR_PAGES:
        raise _invalid(f"memory_size {region.memory_size:#x} is too large for a slot")


def _kind(region: Region, old: MemorySlot) -> Kind:
    """What changes in an existing slot."""
    if (region.flags | old.flags) & KVM_MEM_PRIVATE:
        raise _invalid(f"slot {old.id} has a file: delete it first")
    same = (
        region.shared is None
        if old.shared is None
        else old.shared.is_same(region.shared)
    )
    if (
        not same
        or region.memory_size >> PAGE_SHIFT != old.npages
        or (region.flags ^ old.flags) & KVM_MEM_READONLY
    ):
        raise _invalid(f"slot {old.id} exists with other memory: delete it first")
    if region.guest_phys_addr >> PAGE_SHIFT != old.base_gfn:
        return Kind.MOVE
    return Kind.NOTHING if region.flags == old.flags else Kind.FLAGS_ONLY


def _check_unused(region: Region, rules: ShimSemantics) -> None:
    unused = region.private_fd == -1 and not region.private_offset
    if not (unused or region.flags & KVM_MEM_PRIVATE or rules.kvm_ignores_unused):
        raise _invalid("private_fd and private_offset need KVM_MEM_PRIVATE")


def _check_private(region: Region) -> None:
    offset = region.private_offset
    if not region.flags & KVM_MEM_PRIVATE:
        return
    if offset < 0 or offset % PAGE_SIZE:
        raise _invalid(f"private_offset {offset:#x} is not aligned to pages")
    if offset + region.memory_size >= _U64:
        raise _invalid(f"private_offset {offset:#x} wraps around")


def _check_shared(region: Region) -> None:
    shared = region.shared
    if shared is None:
        return
    if not isinstance(shared, int):
        view = memoryview(shared)
        if view.readonly or not view.c_contiguous:
            raise _invalid("the shared memory must be writable and in one piece")
        if view.nbytes < region.memory_size:
            raise _invalid(
                f"the shared memory has {view.nbytes} of {region.memory_size} bytes"
            )
    elif not 0 <= shared <= _USER_SPACE - region.memory_size:
        # access_ok() of 6.12, which looks at the sign. Later ones know how long an
        # address is.
        raise _invalid(f"userspace_addr {shared:#x} is not an address of userspace")
    if not is_aligned(shared):
        raise _invalid("the shared memory does not begin at a page boundary")
