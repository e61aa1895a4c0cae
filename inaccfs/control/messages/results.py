"""The results of commands.

A comment above a member says what it means, in docs/control-protocol.md, too.
"""

from __future__ import annotations

import msgspec

from inaccfs._version import __version__

# There can be thousands of rows at once, and they form no cycles: gc=False keeps the
# collector from looking at them.


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what commands return."""


class Nothing(Result, frozen=True, kw_only=True):
    """`{}`: it has been done."""


class VersionTriple(msgspec.Struct, frozen=True):
    """A version in numbers."""

    major: int
    minor: int
    micro: int


class VersionInfo(msgspec.Struct, frozen=True):
    """QMP's shape, inaccfs's numbers."""

    # Of inaccfs; the name is what clients expect.
    qemu: VersionTriple
    # "inaccfs".
    package: str


class CommandInfo(msgspec.Struct, frozen=True):
    """The name of a command."""

    # As in "execute".
    name: str


class Notifier(Result, frozen=True, kw_only=True):
    """The number of a notifier, unique in the mount."""

    # What INVALIDATE and unregister-notifier call it.
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
    # In a return of get-pfn: whether the pages are private, where the file says so.
    private: bool | msgspec.UnsetType = msgspec.UNSET


class Frames(Result, frozen=True, kw_only=True):
    """`pfn` and `order` without `count`, else `extents`."""

    # The frame of the page, which need not be the first of its folio.
    pfn: int | msgspec.UnsetType = msgspec.UNSET
    # Of the folio.
    order: int | msgspec.UnsetType = msgspec.UNSET
    # Whether the page is private, where the file says so.
    private: bool | msgspec.UnsetType = msgspec.UNSET
    # In order of offset; 1000 at most.
    extents: list[Extent] | msgspec.UnsetType = msgspec.UNSET
    # The page to go on with, if these are not all: to the rest there is no reference.
    next: int | msgspec.UnsetType = msgspec.UNSET


class FileInfo(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A file that is open, or has fetched or poisoned pages."""

    # A path from the root; "memfd:NAME"; or a description of one without a name.
    name: str
    # As stat(2) on the mount has it.
    ino: int
    # In bytes.
    size: int
    # In bytes. What the next four count.
    page_size: int
    # Pages that there is memory for.
    allocated: int
    # Pages that have been fetched and are still there.
    fetched: int
    # References to pages, those to punched pages included.
    referenced: int
    # Poisoned pages that have not been punched.
    poisoned: int
    # How many are registered.
    notifiers: int
    # How many opens there are, those of the control socket's peers included.
    opens: int
    # True if a peer has frozen it.
    frozen: bool | msgspec.UnsetType = msgspec.UNSET


class MemoryAttributes(msgspec.Struct, frozen=True, gc=False):
    """Pages of a file that are all private, or all shared."""

    # The first page.
    offset: int
    # In pages of the file.
    count: int
    # KVM_MEMORY_ATTRIBUTE_PRIVATE; else they are shared.
    private: bool


class Populated(Result, frozen=True, kw_only=True):
    """How far populate has come."""

    # How many pages, from the first on. If not all, populate the rest to learn why.
    count: int


class Data(Result, frozen=True, kw_only=True, omit_defaults=False):
    """Content of shared pages."""

    # In base64.
    data: str


class NotifierInfo(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One registered notifier."""

    # Its number.
    notifier: int
    # As query-files calls it.
    file: str
    # As stat(2) on the mount has it.
    ino: int
    # The peer's number.
    peer: int
    # The peer's process, when it connected.
    pid: int
    # The first page that it is bound to; null if it is registered for the file.
    start: int | None
    # The page after the last.
    end: int | None
    # How many events it has been sent.
    told: int
    # The event that it has not answered yet.
    waiting: int | None


class Reference(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Pages that a peer has fetched and not put."""

    # As query-files calls it.
    file: str
    # As stat(2) on the mount has it.
    ino: int
    # The peer's number.
    peer: int
    # The peer's process, when it connected.
    pid: int
    # Of the first page.
    offset: int
    # Of the first page.
    pfn: int
    # In pages of the file.
    count: int
    # How often each of these pages has been fetched and not put.
    references: int
    # Whether the file has other pages there by now, or none.
    punched: bool
    # True if pin-pages has got them, and not get-pfn.
    pinned: bool | msgspec.UnsetType = msgspec.UNSET


class PinnedExtent(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Pages of a file that have been fetched and stay where they are."""

    # As query-files calls it.
    file: str
    # As stat(2) on the mount has it.
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

    Files are in order of `ino`; of each its extents, then the references to it.
    """

    # "io_uring", "mlock (...)", "none (...)" or "simulated".
    pinning: str
    # What has been fetched and is still there.
    extents: list[PinnedExtent]
    # What peers have got and not put.
    references: list[Reference]
    # Where the next page begins, if there is more.
    next: str | msgspec.UnsetType = msgspec.UNSET


class Stats(Result, frozen=True, omit_defaults=False):
    """Counters since the mount was made, and totals of now."""

    # Calls of fallocate(2) that the rules have let through.
    fallocates: int
    # Those calls of fallocate(2) that punch.
    punches: int
    # Events, each counted once for all notifiers of a file.
    invalidations: int
    # Events, each counted once for each notifier that it was sent to.
    events: int
    # Notifiers that have not answered in time.
    evictions: int
    # Pages that get-pfn has returned.
    pages_got: int
    # Pages that put-pfn has given back.
    pages_put: int
    # Fetched pages whose frame changed when pins came off for a punch.
    pages_moved: int
    # Pages that memory-failure has reported; HardwareCorrupted of /proc/meminfo.
    pages_poisoned: int
    # Connections of now.
    peers: int
    # Notifiers of now.
    notifiers: int
    # References of now, in pages.
    references: int
    # Fetched pages of now.
    fetched: int


class Semantics(Result, frozen=True, omit_defaults=False):
    """The rules of this mount. `inaccfs semantics` shows those of all versions."""

    # "v8".
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
    # Whether fallocate(2) must not move the size.
    keep_size_required: bool
    # "allocated" or "refused": what becomes of fallocate(2) past the size.
    past_end: str
    # "undone" or "kept": what becomes of an allocation's pages when a signal ends it.
    on_interrupt: str
    # When, as against the backing's change of the file: "before", "after", "bracket".
    order: str
    # "every fallocate", "punches": which calls of fallocate(2) notify.
    notifies: str
    # Whether a fallocate(2) that failed notifies, too.
    notifies_failures: bool
    # "pages"; or "bytes", for versions that were posted with that bug.
    unit: str
    # "file", or "range" where notifiers are bound to one.
    scope: str
    # Whether ranges must not overlap.
    exclusive: bool
    # "punched" or "clipped": which range of a punch a bound notifier gets.
    reported: str
    # "each walk" or "the whole call": how long the list of notifiers is locked.
    list_locked: str
    # Whether events carry the frames that go.
    tells_frames: bool
    # Whether get-pfn fills holes.
    allocates: bool
    # "counted", "locked" or "none": what get-pfn leaves the peer.
    references: str
    # Whether the kernel may move fetched pages without an event.
    movable: bool
    # "unknown", "error" or "invalidate": which event a poisoned page causes.
    memory_failure: str
    # "refused", "SIGBUS" or "shared": what becomes of mmap(2).
    mmap: str
    # "nowhere", "vm" or "file": where it is kept which pages are private.
    attributes: str
    # "private" or "shared": what all pages of a new file are.
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
    # Whether get-pfn waits for a punch or a conversion that is under way.
    get_waits: bool
    # "page" or "huge page": what the file consists of.
    granule: str
    # "done" or "refused": what becomes of a punch of pages with references.
    pinned_punch: str
    # Of bind, for pages that are bound already.
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
    # The rules of a KVM; the daemon does not use them. "private" or "shared": the
    # attribute of a gfn that nobody has converted.
    kvm_default_attribute: str
    # "before get-pfn" or "with the page": when a fault reads the file's attribute.
    kvm_attribute_read: str
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
    # Whether a file is for the VM that has made it only.
    kvm_file_of_one_vm: bool
    # "EINVAL" or "EBADF": for a slot with a number that is no file descriptor.
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

    @property
    def keeps_references(self) -> bool:
        """Whether pages that were got have to be put."""
        return self.references != "none"

    @property
    def locks_pages(self) -> bool:
        """Whether get-pfn leaves a page locked until put-pfn."""
        return self.references == "locked"


def version() -> VersionInfo:
    """What query-version returns, and the greeting."""
    major, minor, micro = (int(part) for part in __version__.split(".")[:3])
    return VersionInfo(VersionTriple(major, minor, micro), "inaccfs")
