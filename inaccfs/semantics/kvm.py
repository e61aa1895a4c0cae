"""The rules of KVM: how versions differ in what KVM does with a file of the shim.

`V8Kvm` has them as the v8 series says (patches 2 to 8), `MainlineKvm` as Linux does
since 6.8 (virt/kvm/kvm_main.c, virt/kvm/guest_memfd.c, arch/x86/kvm/mmu/mmu.c). The
daemon only reports them: a KVM that is its client follows them.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

KvmAttribute: TypeAlias = Literal["private", "shared"]
KvmAccess: TypeAlias = Literal["guest", "attribute"]
KvmReturns: TypeAlias = Literal["0", "EFAULT"]
KvmMismatch: TypeAlias = Literal["slots with a file", "every gfn"]
KvmNoSlot: TypeAlias = Literal["exit", "MMIO"]
KvmDefaultVm: TypeAlias = Literal["refused", "ignored", "served"]
KvmExitFlag: TypeAlias = Literal["1 << 0", "1 << 3"]
KvmBadFd: TypeAlias = Literal["EINVAL", "EBADF"]
KvmPreFaultError: TypeAlias = Literal["ENOENT", "EFAULT"]
KvmPreFault: TypeAlias = Literal["private", "all"]
KvmAttributeRead: TypeAlias = Literal["before get-pfn", "with the page"]
KvmSharedSource: TypeAlias = Literal["file", "file if mappable"]


class KvmRules:
    """Base of the rules of KVM: a part of `Semantics`."""

    # --- attributes and faults --------------------------------------------------------

    # The attribute of a gfn that nobody has converted.
    kvm_default_attribute: ClassVar[KvmAttribute]
    # When a fault reads an attribute that is kept in the file: "before get-pfn", by a
    # command of its own, which takes no lock, like kvm_mem_is_private(); or "with the
    # page", from the return of get-pfn.
    kvm_attribute_read: ClassVar[KvmAttributeRead]
    # Where the shared pages of a slot are, if the file keeps the attributes: in the
    # "file"; or in the "file if mappable", and with `mmap` "refused" in the memory that
    # the VMM gave for the slot.
    kvm_shared_source: ClassVar[KvmSharedSource]
    # What decides whether an access is private where the guest does not say so: the
    # "guest", whose accesses are private unless it says shared (the C-bit of SEV-SNP,
    # the shared bit of TDX); or the "attribute" (KVM_X86_SW_PROTECTED_VM).
    kvm_access: ClassVar[KvmAccess]
    # Where an access that differs from the attribute exits: in "slots with a file", or
    # at "every gfn", before KVM looks at the slot.
    kvm_mismatch: ClassVar[KvmMismatch]
    # What a private access gets where there is no slot: a memory fault "exit", or
    # "MMIO".
    kvm_no_slot: ClassVar[KvmNoSlot]
    # Whether a gfn that had an MMIO exit goes on to have them after it was made
    # private, until a slot is changed: conversions zap only what is in slots.
    kvm_keeps_mmio: ClassVar[bool]
    # Whether private pages are mapped by 2 MiB and 1 GiB where the folio allows it.
    kvm_huge: ClassVar[bool]

    # --- exits ------------------------------------------------------------------------

    # The bit of KVM_EXIT_MEMORY_FAULT's flags that says that the access was private.
    kvm_exit_flag: ClassVar[KvmExitFlag]
    # What KVM_RUN returns with KVM_EXIT_MEMORY_FAULT: "0", or -1 and "EFAULT".
    kvm_exit_returns: ClassVar[KvmReturns]

    # --- slots ------------------------------------------------------------------------

    # Whether a slot keeps its file open. If not, the last close(2) zaps the slot's
    # pages, and private accesses fail.
    kvm_slot_holds_file: ClassVar[bool]
    # Whether only the VM that has made a file can have it in slots: EINVAL for others.
    kvm_file_of_one_vm: ClassVar[bool]
    # The errno for a number that is not an open file descriptor.
    kvm_bad_fd: ClassVar[KvmBadFd]
    # Whether the file and the offset are ignored without KVM_MEM_PRIVATE. If not, it is
    # EINVAL to pass them.
    kvm_ignores_unused: ClassVar[bool]
    # What happens to a file in a slot of a VM without private memory: "refused" with
    # EINVAL; "ignored", the guest gets the memory at userspace_addr; or "served", the
    # guest gets the file's memory.
    kvm_default_vm: ClassVar[KvmDefaultVm]

    # --- KVM_PRE_FAULT_MEMORY ---------------------------------------------------------

    # Which pages are mapped: "private" ones, or "all".
    kvm_pre_fault: ClassVar[KvmPreFault]
    # Whether an error after the first page is a success that leaves a rest.
    kvm_pre_fault_partial: ClassVar[bool]
    # The errno for a private gfn that no file serves.
    kvm_pre_fault_error: ClassVar[KvmPreFaultError]


class V8Kvm(KvmRules):
    """KVM in the v8 series."""

    kvm_default_attribute: ClassVar[KvmAttribute] = "private"
    kvm_attribute_read: ClassVar[KvmAttributeRead] = "with the page"
    # Used only where the attributes are kept in the file.
    kvm_shared_source: ClassVar[KvmSharedSource] = "file if mappable"
    kvm_access: ClassVar[KvmAccess] = "guest"
    kvm_mismatch: ClassVar[KvmMismatch] = "slots with a file"
    kvm_no_slot: ClassVar[KvmNoSlot] = "exit"
    kvm_keeps_mmio: ClassVar[bool] = False
    kvm_huge: ClassVar[bool] = True
    kvm_exit_flag: ClassVar[KvmExitFlag] = "1 << 0"
    kvm_exit_returns: ClassVar[KvmReturns] = "0"
    kvm_slot_holds_file: ClassVar[bool] = True
    kvm_file_of_one_vm: ClassVar[bool] = False
    kvm_bad_fd: ClassVar[KvmBadFd] = "EINVAL"
    kvm_ignores_unused: ClassVar[bool] = False
    kvm_default_vm: ClassVar[KvmDefaultVm] = "refused"
    kvm_pre_fault: ClassVar[KvmPreFault] = "private"
    kvm_pre_fault_partial: ClassVar[bool] = False
    kvm_pre_fault_error: ClassVar[KvmPreFaultError] = "ENOENT"


class MainlineKvm(V8Kvm):
    """KVM since Linux 6.8, for a VM of the type KVM_X86_SW_PROTECTED_VM."""

    kvm_default_attribute: ClassVar[KvmAttribute] = "shared"
    kvm_access: ClassVar[KvmAccess] = "attribute"
    kvm_mismatch: ClassVar[KvmMismatch] = "every gfn"
    kvm_keeps_mmio: ClassVar[bool] = True
    # kvm_gmem_get_pfn() reports order 0.
    kvm_huge: ClassVar[bool] = False
    kvm_exit_flag: ClassVar[KvmExitFlag] = "1 << 3"
    kvm_exit_returns: ClassVar[KvmReturns] = "EFAULT"
    kvm_slot_holds_file: ClassVar[bool] = False
    kvm_file_of_one_vm: ClassVar[bool] = True
    kvm_bad_fd: ClassVar[KvmBadFd] = "EBADF"
    kvm_ignores_unused: ClassVar[bool] = True
    # The ioctl came with Linux 6.11.
    kvm_pre_fault: ClassVar[KvmPreFault] = "all"
    kvm_pre_fault_partial: ClassVar[bool] = True
    kvm_pre_fault_error: ClassVar[KvmPreFaultError] = "EFAULT"
