"""The semantics that were merged or proposed after Linux 6.18.

Each class inherits from its predecessor, and sets the rules that differ. A fact that
rests on the code of a development tree alone, or on no source at all, says so.
docs/semantics.md lists the sources.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs.semantics.versions import GuestMemfd, GuestMemfdShared

if TYPE_CHECKING:
    from inaccfs.semantics.attributes import EventKinds, Population
    from inaccfs.semantics.kvm import KvmSharedSource
    from inaccfs.semantics.rules import Mmap

GUEST_MEMFD_MAGIC: Final = 0x474D454D


class WriteV7(GuestMemfdShared):
    """write(2) fills pages: GUEST_MEMFD_FLAG_WRITE, for files that begin as shared."""

    name = "write-v7"
    source = "KVM: guest_memfd: use write for population, v7, November 2025"
    population: ClassVar[Population] = "write"


class GuestMemfd72(GuestMemfd):
    """guest_memfd with its own inode and file system.

    Unverified: that the source that was read is of 7.2, which was inferred from its
        names; and which of its differences from 6.18 came earlier.
    """

    name = "guest_memfd-7.2"
    source = "Linux 7.2 or shortly before it, virt/kvm/guest_memfd.c"
    magic = GUEST_MEMFD_MAGIC
    # kvm_gmem_get_invalidate_filter(): by GUEST_MEMFD_FLAG_INIT_SHARED.
    kinds: ClassVar[EventKinds] = "initial"
    overlap_errno = errno.EEXIST
    population: ClassVar[Population] = "populate"


class InPlaceV8(GuestMemfd72):
    """Conversion in place: attributes per inode, KVM_SET_MEMORY_ATTRIBUTES2.

    A file without GUEST_MEMFD_FLAG_INIT_SHARED; with it `initial` is "shared".
    Unverified: what happens to the range's user mappings after EAGAIN. As we read the
        patches, they stay unmapped.
    """

    name = "in-place-v8"
    source = "KVM: guest_memfd: in-place conversion, v8, 46 patches, 18 June 2026"
    # With GUEST_MEMFD_FLAG_MMAP; without it "refused".
    mmap: ClassVar[Mmap] = "SIGBUS"
    kvm_default_vm = "served"
    attributes = "file"
    kinds: ClassVar[EventKinds] = "present"
    # kvm_gmem_get_pfn() takes the invalidate_lock, shared.
    get_waits = True
    population = "populate in place"


class InPlaceNext(InPlaceV8):
    """The tree in which in-place conversion went on after the review of v8.

    Unverified: the tree's date and owner, and that any of it will be posted so.
    """

    name = "in-place-next"
    source = "a development tree after 22 June 2026, virt/kvm/guest_memfd.c"
    # An answer to Suzuki Poulose: a conversion to private must not zap private
    # populated pages, because on CCA and TDX that would destroy their content.
    conversion_kinds = "opposite"
    kinds = "both"
    pin_check = "pins first"
    # KVM_MEMSLOT_GMEM_ONLY is set for every file whose pages are converted in place.
    kvm_shared_source: ClassVar[KvmSharedSource] = "file"
    # get_pfn returns only the pfn, which is valid until the next invalidation.
    references = "none"
    binding = "prepared"


class HugetlbRfc(InPlaceV8):
    """Huge pages that split at the first shared page, and merge when all are private.

    Unverified: all of it is from a prototype whose posting was not found. The order of
        the end and the store is our reading of it.
    """

    name = "hugetlb-rfc"
    source = "a prototype of guest_memfd with HugeTLB, early 2026"
    granule = "huge page"
    atomicity = "huge page"
    stored = "after the end"
    pinned_punch = "refused"
    # As in all of these versions; here it makes a difference, because of `stored`.
    kvm_attribute_read = "before get-pfn"
    # kvm_gmem_get_pfn() reports the folio's order.
    kvm_huge = True


class MigratableRfc(GuestMemfd72):
    """Pages of a VM without private memory can be migrated.

    Unverified: that extra references make it fail with EAGAIN, as for any file.
    """

    name = "migratable-rfc"
    source = "RFC of 11 June 2026, migration of guest_memfd folios"
    mmap = "shared"
    kvm_default_vm = "served"
    attributes = "nowhere"
    initial = "shared"
    migration = "bracket"


class LiveUpdate(GuestMemfd72):
    """A file that the live update orchestrator preserves is frozen.

    Unverified: the merge of the series; and how a freeze affects conversions, which the
        series does not mention. Here they are EPERM, too.
    """

    name = "live-update"
    source = "KVM: guest_memfd: live update, v3, 22 June 2026"
    mmap = "shared"
    kvm_default_vm = "served"
    attributes = "nowhere"
    initial = "shared"
    frozen = "before the checks"
