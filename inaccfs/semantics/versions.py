"""The semantics of the versions up to Linux 6.18; `proposals` has what came later.

Each class inherits from its predecessor, and sets the rules that differ. The sources
are mails to the kernel's lists and the kernel's own files; docs/semantics.md lists
them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs.semantics.kvm import MainlineKvm, V8Kvm
from inaccfs.semantics.rules import Semantics
from inaccfs.syscalls import TMPFS_MAGIC

if TYPE_CHECKING:
    from inaccfs.semantics.attributes import (
        Atomicity,
        Attributes,
        Binding,
        Content,
        ConversionKinds,
        EventKinds,
        Frozen,
        Granule,
        Initial,
        Migration,
        PinCheck,
        PinnedPunch,
        Population,
        Stored,
    )
    from inaccfs.semantics.kvm import KvmDefaultVm
    from inaccfs.semantics.rules import (
        Aligned,
        Calls,
        ListLocked,
        MemoryFailure,
        Mmap,
        OnInterrupt,
        Order,
        PastEnd,
        References,
        Reported,
        Scope,
        Size,
        Unit,
    )

INACCESSIBLE_MAGIC: Final = 0x494E4143
RESTRICTEDMEM_MAGIC: Final = 0x5245534D
ANON_INODE_FS_MAGIC: Final = 0x09041934


class V8(V8Kvm, Semantics):
    """memfd_inaccessible, as v8 was meant."""

    name: ClassVar[str] = "v8"
    source: ClassVar[str] = "v8 1/8, 15 September 2022, mm/memfd_inaccessible.c"
    magic: ClassVar[int] = INACCESSIBLE_MAGIC

    size: ClassVar[Size] = "once"
    # As posted: a plain allocation may be unaligned.
    aligned: ClassVar[Aligned] = "punches"
    keep_size_required: ClassVar[bool] = False
    past_end: ClassVar[PastEnd] = "allocated"
    # shmem_fallocate() does the work, and undoes it.
    on_interrupt: ClassVar[OnInterrupt] = "undone"
    read_errno: ClassVar[int] = errno.EINVAL
    mmap: ClassVar[Mmap] = "refused"

    # As posted: every mode sends events, even if the backing refuses the call.
    notifies: ClassVar[Calls] = "every fallocate"
    notifies_failures: ClassVar[bool] = True
    populates: ClassVar[bool] = False
    order: ClassVar[Order] = "after"
    unit: ClassVar[Unit] = "pages"
    scope: ClassVar[Scope] = "file"
    exclusive: ClassVar[bool] = False
    reported: ClassVar[Reported] = "punched"
    tells_frames: ClassVar[bool] = False
    list_locked: ClassVar[ListLocked] = "each walk"

    allocates: ClassVar[bool] = True
    references: ClassVar[References] = "counted"
    unbound_errno: ClassVar[int] = errno.EINVAL
    # v8 promises that pages do not move, without ensuring it; here they do not.
    movable: ClassVar[bool] = False
    memory_failure: ClassVar[MemoryFailure] = "unknown"

    # KVM_MEMORY_ENCRYPT_REG_REGION, and later KVM_SET_MEMORY_ATTRIBUTES, of a VM.
    attributes: ClassVar[Attributes] = "vm"
    initial: ClassVar[Initial] = "private"
    kinds: ClassVar[EventKinds] = "none"
    granule: ClassVar[Granule] = "page"
    pinned_punch: ClassVar[PinnedPunch] = "done"
    overlap_errno: ClassVar[int] = errno.EINVAL
    binding: ClassVar[Binding] = "at once"
    population: ClassVar[Population] = "none"
    frozen: ClassVar[Frozen] = "unknown"
    migration: ClassVar[Migration] = "never"
    get_waits: ClassVar[bool] = False
    # Used only where the attributes are kept in the file.
    conversion_kinds: ClassVar[ConversionKinds] = "present"
    stored: ClassVar[Stored] = "before the end"
    atomicity: ClassVar[Atomicity] = "range"
    pin_check: ClassVar[PinCheck] = "references"
    content: ClassVar[Content] = "unspecified"


class V7(V8):
    """memfile_notifier: shmem itself notifies of populated and of invalidated pages.

    v6 has populate, which v7 dropped; v5 and v6 lock a page between get and put. In all
    of them the invalidation precedes the removal of each folio, here the removal of the
    range.
    """

    name = "v7"
    source = "v5 to v7, March to July 2022, mm/memfile_notifier.c, mm/shmem.c"
    magic = TMPFS_MAGIC
    read_errno = errno.EPERM
    notifies = "punches"
    notifies_failures = False
    populates = True
    order = "before"
    references = "locked"


class V8AsPosted(V8):
    """v8 with its bugs: events in bytes instead of pages, and pages that move."""

    name = "v8-as-posted"
    unit = "bytes"
    movable = True


class V9(V8):
    """memfd_restricted: a removal has a start and an end."""

    name = "v9"
    source = "v9 1/8, 25 October 2022, mm/restrictedmem.c"
    magic = RESTRICTEDMEM_MAGIC
    order = "bracket"
    # Bytes again: Michael Roth found this bug on 29 November 2022.
    unit: ClassVar[Unit] = "bytes"
    movable = True


class V10(V9):
    """memfd_restricted: events in pages, for punches only, and for memory errors."""

    name = "v10"
    source = "v10 1/9, 2 December 2022, mm/restrictedmem.c"
    notifies = "punches"
    unit = "pages"
    movable = False
    memory_failure: ClassVar[MemoryFailure] = "error"


class Bind(V10):
    """restrictedmem_bind(): a range has one user; the whole call locks the list."""

    name = "bind"
    source = "13 January 2023, restrictedmem_bind(), mm/restrictedmem.c"
    scope = "range"
    exclusive = True
    list_locked = "the whole call"


class GuestMemfd68(MainlineKvm, Bind):
    """guest_memfd as it was merged."""

    name = "guest_memfd-6.8"
    source = "Linux 6.8, virt/kvm/guest_memfd.c"
    magic = ANON_INODE_FS_MAGIC
    size = "fixed"
    aligned = "every fallocate"
    keep_size_required = True
    past_end = "refused"
    # kvm_gmem_allocate() checks signal_pending() before each folio.
    on_interrupt = "kept"
    reported = "clipped"
    unbound_errno = errno.EIO
    memory_failure = "invalidate"


class GuestMemfd612(GuestMemfd68):
    """guest_memfd with KVM_PRE_FAULT_MEMORY, populate and a prepare hook.

    None of them changes a rule: 6.8 has no pre-fault, and populate and the hook are
    only for CPUs that encrypt memory.
    """

    name = "guest_memfd-6.12"
    source = "Linux 6.12, virt/kvm/guest_memfd.c"


class GuestMemfd(GuestMemfd612):
    """guest_memfd with GUEST_MEMFD_FLAG_MMAP off."""

    name = "guest_memfd"
    source = "Linux 6.18, virt/kvm/guest_memfd.c"
    # Any VM takes a file since 6.18.
    kvm_default_vm: ClassVar[KvmDefaultVm] = "ignored"


class GuestMemfdMmap(GuestMemfd):
    """GUEST_MEMFD_FLAG_MMAP: mmap(2) works, but pages are private: SIGBUS."""

    name = "guest_memfd:mmap"
    mmap = "SIGBUS"
    # KVM_MEMSLOT_GMEM_ONLY.
    kvm_default_vm = "served"


class GuestMemfdShared(GuestMemfd):
    """GUEST_MEMFD_FLAG_MMAP and _INIT_SHARED: the host can access all pages."""

    name = "guest_memfd:mmap+init_shared"
    mmap = "shared"
    attributes: ClassVar[Attributes] = "nowhere"
    initial = "shared"
    kvm_default_vm = "served"
