"""The results of commands.

The comment above a member is its description in docs/control-protocol.md, too.
"""

from __future__ import annotations

import msgspec

from inaccfs._version import __version__
from inaccfs.semantics.derived import Derived

# There can be thousands of rows at once, without reference cycles: with gc=False the
# garbage collector does not visit them.


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what commands return."""


class Nothing(Result, frozen=True, kw_only=True):
    """`{}`: success."""


class VersionTriple(msgspec.Struct, frozen=True):
    """A version in numbers."""

    major: int
    minor: int
    micro: int


class VersionInfo(msgspec.Struct, frozen=True):
    """The version, in QMP's format."""

    # The version of inaccfs; clients expect this name.
    qemu: VersionTriple
    # "inaccfs".
    package: str


class CommandInfo(msgspec.Struct, frozen=True):
    """The name of a command."""

    # The value of "execute".
    name: str


class Notifier(Result, frozen=True, kw_only=True):
    """The number of a notifier, unique in the mount."""

    # The `notifier` of events and of unregister-notifier.
    notifier: int


class Extent(msgspec.Struct, frozen=True, gc=False):
    """Pages whose frames are contiguous and of folios of one order.

    It may begin in the middle of a folio.
    """

    # Of the first page.
    offset: int
    # Of the first page, in frames of 4 KiB.
    pfn: int
    # In pages of the file.
    count: int
    # Of the folios, in frames of 4 KiB: 0, or 9 for 2 MiB.
    order: int
    # In a return of get-pfn: whether the pages are private, if the file says so.
    private: bool | msgspec.UnsetType = msgspec.UNSET


class Frames(Result, frozen=True, kw_only=True):
    """The frames of pages: `pfn` and `order` without `count`, otherwise `extents`."""

    # The frame of the page, which need not be the first of its folio.
    pfn: int | msgspec.UnsetType = msgspec.UNSET
    # Of the folio.
    order: int | msgspec.UnsetType = msgspec.UNSET
    # Whether the page is private, if the file says so.
    private: bool | msgspec.UnsetType = msgspec.UNSET
    # In order of offset; at most 1000.
    extents: list[Extent] | msgspec.UnsetType = msgspec.UNSET
    # The page to continue with, if these are not all. The rest got no references.
    next: int | msgspec.UnsetType = msgspec.UNSET


class FileInfo(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A file that is open, or has fetched or poisoned pages."""

    # A path from the mount's root; "memfd:NAME"; or a description, if it has no name.
    name: str
    # The inode number, as in stat(2) on the mount.
    ino: int
    # In bytes.
    size: int
    # In bytes: the unit of the next four.
    page_size: int
    # Pages that have memory.
    allocated: int
    # Fetched pages that are still in the file.
    fetched: int
    # References to pages, those to punched pages included.
    referenced: int
    # Poisoned pages that have not been punched.
    poisoned: int
    # Registered or bound notifiers.
    notifiers: int
    # The number of opens, including those by peers.
    opens: int
    # True if a peer has frozen it.
    frozen: bool | msgspec.UnsetType = msgspec.UNSET


class MemoryAttributes(msgspec.Struct, frozen=True, gc=False):
    """Pages of a file that are all private, or all shared."""

    # The first page.
    offset: int
    # In pages of the file.
    count: int
    # KVM_MEMORY_ATTRIBUTE_PRIVATE. If false, they are shared.
    private: bool


class Populated(Result, frozen=True, kw_only=True):
    """The progress of populate."""

    # The number of populated pages, from the first on. If it is not all, populate the
    # rest to get the error.
    count: int


class Data(Result, frozen=True, kw_only=True, omit_defaults=False):
    """Content of shared pages."""

    # In base64.
    data: str


class NotifierInfo(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One notifier, registered for a file or bound to a range of one."""

    # Its number.
    notifier: int
    # The name of the file, as in query-files.
    file: str
    # The inode number, as in stat(2) on the mount.
    ino: int
    # The peer's number.
    peer: int
    # The peer's process at the time of connect(2).
    pid: int
    # The first page of the range of its bind; null if it is for the whole file.
    start: int | None
    # The page after the last.
    end: int | None
    # Whether it gets events: not before commit-bind, if bind has only prepared it, and
    # not while its command waits for an invalidation.
    effective: bool
    # How many events it has been sent.
    events_sent: int
    # The sequence of the event that it has not answered yet, or that is still to be
    # sent to it.
    waiting: int | None


class Reference(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Pages that a peer has fetched and not put."""

    # The name of the file, as in query-files.
    file: str
    # The inode number, as in stat(2) on the mount.
    ino: int
    # The peer's number.
    peer: int
    # The peer's process at the time of connect(2).
    pid: int
    # Of the first page.
    offset: int
    # Of the first page.
    pfn: int
    # In pages of the file.
    count: int
    # The number of references to each of these pages.
    references: int
    # Whether the pages were punched since, so that the file has others there, or none.
    punched: bool
    # True if pin-pages has taken the references, and not get-pfn.
    pinned: bool | msgspec.UnsetType = msgspec.UNSET


class FetchedExtent(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Fetched pages of a file, which keep their frames."""

    # The name of the file, as in query-files.
    file: str
    # The inode number, as in stat(2) on the mount.
    ino: int
    # Of the first page.
    offset: int
    # Of the first page.
    pfn: int
    # In pages of the file.
    count: int
    # Of the folios.
    order: int


class Pins(Result, frozen=True, omit_defaults=False):
    """Fetched pages, and the references to them.

    Files are in order of `ino`: for each its extents, then the references to it.
    """

    # "io_uring", "mlock (...)", "none (...)" or "simulated".
    pinning: str
    # Fetched pages that are still in the file.
    extents: list[FetchedExtent]
    # Pages that peers have got and not put.
    references: list[Reference]
    # Where the next page begins, if there is more.
    next: str | msgspec.UnsetType = msgspec.UNSET


class Stats(Result, frozen=True, omit_defaults=False):
    """Counters since the mount was made, and present totals."""

    # Calls of fallocate(2) that the rules allowed.
    fallocates: int
    # Punches among these.
    punches: int
    # Events, each counted once for all notifiers of a file.
    invalidations: int
    # Events, counted for each notifier.
    events: int
    # Notifiers that did not answer in time.
    evictions: int
    # Pages that get-pfn returned, each counted every time.
    pages_got: int
    # References that put-pfn dropped, in pages.
    pages_put: int
    # Fetched pages whose frame changed while a punch had them unpinned.
    pages_moved: int
    # Pages that memory-failure poisoned; HardwareCorrupted of /proc/meminfo.
    pages_poisoned: int
    # Present connections.
    peers: int
    # Present notifiers.
    notifiers: int
    # Present references, in pages.
    references: int
    # Present fetched pages.
    fetched: int


class Semantics(Derived, Result, frozen=True, omit_defaults=False):
    """The rules of this mount. `inaccfs semantics` shows the rules of all versions."""

    # The name, such as "v8".
    name: str
    # The version, its date, and the file.
    source: str
    # The events that its notifiers get.
    events: list[str]
    # The commands that not all semantics have, such as bind and register-notifier.
    commands: list[str]
    # "once", "fixed" or "free": how truncate(2) sets the size.
    size: str
    # "every fallocate", "punches" or "nothing": what must be page aligned.
    aligned: str
    # Whether fallocate(2) must not change the size.
    keep_size_required: bool
    # "allocated" or "refused": what fallocate(2) past the size does.
    past_end: str
    # "undone" or "kept": what happens to allocated pages when a signal ends the call.
    on_interrupt: str
    # "before", "after" or "bracket": when events are sent, relative to the change.
    order: str
    # "every fallocate", "punches": which calls of fallocate(2) notify.
    notifies: str
    # Whether a fallocate(2) that failed notifies, too.
    notifies_failures: bool
    # "pages"; or "bytes", for versions that were posted with that bug.
    unit: str
    # "file" or "range": what a notifier is for.
    scope: str
    # Whether ranges must not overlap.
    exclusive: bool
    # "punched" or "clipped": which range of a punch a bound notifier gets.
    reported: str
    # "each walk" or "the whole call": how long the list of notifiers is locked.
    list_locked: str
    # Whether events list the frames that are removed.
    tells_frames: bool
    # Whether get-pfn fills holes.
    allocates: bool
    # "counted", "locked" or "none": what the caller of get-pfn has to put.
    references: str
    # Whether the kernel may move fetched pages without an event.
    movable: bool
    # What memory-failure does: "unknown", the command does not exist; "error", it sends
    # MEMORY_ERROR; "invalidate", it sends the events of a punch.
    memory_failure: str
    # "refused", "SIGBUS" or "shared": what mmap(2) does.
    mmap: str
    # "nowhere", "vm" or "file": where the attributes of pages are kept.
    attributes: str
    # "private" or "shared": the attribute of all pages of a new file.
    initial: str
    # "none", "initial", "present" or "both": the kinds that a punch's events carry.
    kinds: str
    # "present", "opposite" or "both": the kinds that a conversion's events carry.
    conversion_kinds: str
    # "before the end" or "after the end": when a conversion stores the attribute.
    stored: str
    # "range" or "huge page": what a conversion does as a whole or not at all.
    atomicity: str
    # "references", "pins first" or "none": what makes a conversion EAGAIN.
    pin_check: str
    # "unspecified", "zeroed", "preserved" or "refused": content after a conversion.
    content: str
    # Whether get-pfn waits for a punch or a conversion in progress.
    get_waits: bool
    # "page" or "huge page": the unit of a file's memory.
    granule: str
    # "done" or "refused": what happens to a punch of pages with references.
    pinned_punch: str
    # The errno of bind for pages that are already bound.
    overlap_errno: int
    # "at once" or "prepared": whether bind can leave a binding to commit-bind.
    binding: str
    # "none", "write", "populate" or "populate in place": how a VMM fills a file.
    population: str
    # "unknown", "before the checks" or "after the checks": when a fallocate(2) of a
    # frozen file is EPERM.
    frozen: str
    # "never" or "bracket": whether pages migrate.
    migration: str
    # The rules of a KVM, which the daemon does not use. "private" or "shared": the
    # attribute of a gfn that nobody has converted.
    kvm_default_attribute: str
    # "before get-pfn" or "with the page": when a fault reads the file's attribute.
    kvm_attribute_read: str
    # "file" or "file if mappable": where shared pages are, if the file keeps the
    # attributes; with `mmap` "refused", "file if mappable" is the VMM's memory.
    kvm_shared_source: str
    # "guest" or "attribute": what decides whether an access is private.
    kvm_access: str
    # "slots with a file" or "every gfn": where a mismatch of the two exits.
    kvm_mismatch: str
    # "exit" or "MMIO": what a private access gets where there is no slot.
    kvm_no_slot: str
    # Whether a gfn that had an MMIO exit keeps them when it is made private.
    kvm_keeps_mmio: bool
    # Whether private pages are mapped by more than 4 KiB.
    kvm_huge: bool
    # "1 << 0" or "1 << 3": the bit of the exit's flags that says private.
    kvm_exit_flag: str
    # "0" or "EFAULT": what KVM_RUN returns with a memory fault exit.
    kvm_exit_returns: str
    # Whether a slot keeps its file open.
    kvm_slot_holds_file: bool
    # Whether only the VM that has made a file can use it.
    kvm_file_of_one_vm: bool
    # "EINVAL" or "EBADF": the errno for a slot whose fd is not open.
    kvm_bad_fd: str
    # Whether a slot's file is ignored without KVM_MEM_PRIVATE.
    kvm_ignores_unused: bool
    # "refused", "ignored" or "served": a file in a slot of a VM without private memory.
    kvm_default_vm: str
    # "private" or "all": which pages KVM_PRE_FAULT_MEMORY maps.
    kvm_pre_fault: str
    # Whether its error after the first page is a success.
    kvm_pre_fault_partial: bool
    # "ENOENT" or "EFAULT": its errno for a private gfn that no file serves.
    kvm_pre_fault_error: str


def version() -> VersionInfo:
    """The version for query-version and the greeting."""
    major, minor, micro = (int(part) for part in __version__.split(".")[:3])
    return VersionInfo(VersionTriple(major, minor, micro), "inaccfs")
