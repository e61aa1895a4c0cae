"""The messages of the control socket: commands, what they return, and events.

The one definition for the server, the clients, `query-qmp-schema` and
docs/control-protocol.md. How they travel is qmp.py's matter; no I/O here.

Offsets, starts, ends and counts are pages of the file's page size, ends exclusive;
sizes are bytes; a pfn is a page frame number, of 4 KiB frames.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from inaccfs._version import __version__
from inaccfs.status import Status

# Bytes of an offset are a loff_t: 2**63 of them, in pages of 4 KiB.
_LAST_PAGE: Final = (1 << 51) - 1

File = Annotated[
    str,
    Meta(
        min_length=1,
        description="a path from the mount's root that begins with `/` (for root and "
        "the owner), or an fdname",
    ),
]
FdName = Annotated[
    str,
    Meta(min_length=1, max_length=255, pattern="^[^/]", description="a name for an fd"),
]
Pgoff = Annotated[int, Meta(ge=0, le=_LAST_PAGE, description="a page of the file")]
FirstPage = Annotated[int, Meta(ge=0, le=_LAST_PAGE, description="the first page")]
EndPage = Annotated[
    int, Meta(ge=1, le=_LAST_PAGE + 1, description="the page behind the last")
]
# In bytes where the semantics have that bug.
Start = Annotated[int, Meta(ge=0, description="the first page")]
End = Annotated[int, Meta(ge=0, description="the page behind the last")]
PageCount = Annotated[int, Meta(ge=1, le=_LAST_PAGE, description="how many pages")]
Pfn = Annotated[int, Meta(ge=0, le=(1 << 52) - 1, description="a page frame number")]
NotifierId = Annotated[int, Meta(ge=0, description="as it was returned")]
Sequence = Annotated[int, Meta(ge=0, description="as the event gave it")]


Row = Annotated[
    int, Meta(ge=0, description="the number to begin at: `next` of the page before")
]
PinsRow = Annotated[
    int | str, Meta(description="0, or `next` of the page before, to go on there")
]
Limit = Annotated[
    int, Meta(ge=1, description="how many to tell at most, 1000 being the most")
]


# --- what commands return -------------------------------------------------------------


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


class Extent(msgspec.Struct, frozen=True):
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


class Frames(Result, frozen=True, kw_only=True):
    """`pfn` and `order` without `count`, else `extents`."""

    # The frame of the page, which need not be the first of its folio.
    pfn: int | msgspec.UnsetType = msgspec.UNSET
    # Of the folio.
    order: int | msgspec.UnsetType = msgspec.UNSET
    # In order of offset; 1000 at most.
    extents: list[Extent] | msgspec.UnsetType = msgspec.UNSET
    # The page to go on with, if these are not all: to the rest there is no reference.
    next: int | msgspec.UnsetType = msgspec.UNSET


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is open, or has fetched or poisoned pages."""

    # A path from the root; "memfd:NAME"; or what is known of one without a name.
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


class NotifierInfo(msgspec.Struct, frozen=True, kw_only=True):
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
    # The page behind the last.
    end: int | None
    # How many events it has been sent.
    told: int
    # The event that it has not answered yet.
    waiting: int | None


class Reference(msgspec.Struct, frozen=True, kw_only=True):
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


class PinnedExtent(msgspec.Struct, frozen=True, kw_only=True):
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
    """What has been fetched, and who still refers to it.

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
    # Those of them that punch.
    punches: int
    # How often notifiers of a file have been told something.
    invalidations: int
    # The events sent for that.
    events: int
    # Notifiers that have not answered in time.
    evictions: int
    # By get-pfn, in pages.
    pages_got: int
    # By put-pfn, in pages.
    pages_put: int
    # Fetched pages whose frame changed when pins came off for a punch.
    pages_moved: int
    # By memory-failure. HardwareCorrupted of /proc/meminfo.
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
    # The commands that not all semantics have: bind, unbind, register-notifier,
    # unregister-notifier, put-pfn, memory-failure.
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
    # "pages"; or "bytes", for what has been posted with that mistake.
    unit: str
    # "file", or "range" where notifiers are bound to one.
    scope: str
    # Whether ranges must not overlap.
    exclusive: bool
    # "punched" or "clipped": the range of a punch that a bound notifier is told.
    reported: str
    # "each walk" or "the whole call": how long the list of notifiers is locked.
    list_locked: str
    # Whether events carry the frames that go.
    tells_frames: bool
    # Whether get-pfn fills holes.
    allocates: bool
    # "counted", "locked" or "none": what get-pfn leaves the peer.
    references: str
    # Whether the kernel may move fetched pages, and nobody is told.
    movable: bool
    # "unknown", "error" or "invalidate": who hears of a poisoned page.
    memory_failure: str
    # "refused", "SIGBUS" or "shared": what becomes of mmap(2).
    mmap: str

    @property
    def keeps_references(self) -> bool:
        """Whether there is anything to put of what has been got."""
        return self.references != "none"


# --- commands -----------------------------------------------------------------------


class Command(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    kw_only=True,
):
    """Base of the commands. An unknown argument is an error, as in QMP."""

    name: ClassVar[str]
    returns: ClassVar[Any] = Nothing
    # Whether root and the mount's owner only may use it.
    owner_only: ClassVar[bool] = False
    # Whether an fd goes with the command, or with its return, as SCM_RIGHTS.
    takes_fd: ClassVar[bool] = False
    gives_fd: ClassVar[bool] = False


class QmpCapabilities(Command, frozen=True, kw_only=True):
    """Ends the negotiation. No capabilities are offered."""

    name: ClassVar[str] = "qmp_capabilities"

    enable: Annotated[list[str], Meta(max_length=0, description="must be empty")] = []


class QueryVersion(Command, frozen=True, kw_only=True):
    """Tells which inaccfs this is."""

    name: ClassVar[str] = "query-version"
    returns: ClassVar[Any] = VersionInfo


class QueryCommands(Command, frozen=True, kw_only=True):
    """Lists the commands."""

    name: ClassVar[str] = "query-commands"
    returns: ClassVar[Any] = list[CommandInfo]


class QueryQmpSchema(Command, frozen=True, kw_only=True):
    """Tells the types of all commands and events, as QEMU does."""

    name: ClassVar[str] = "query-qmp-schema"
    returns: ClassVar[Any] = list[dict[str, Any]]


class QueryStatus(Command, frozen=True, kw_only=True):
    """Tells what `inaccfs status` shows."""

    name: ClassVar[str] = "query-status"
    returns: ClassVar[Any] = Status


class GetFd(Command, frozen=True, kw_only=True):
    """Names an open fd of a file of this mount, sent with this message.

    The fd must be open for writing. The daemon keeps the file open until closefd or
    the end of the connection. EINVAL if it is no file of this mount; a name that is
    taken gets the new file.
    """

    name: ClassVar[str] = "getfd"
    takes_fd: ClassVar[bool] = True

    fdname: FdName


class CloseFd(Command, frozen=True, kw_only=True):
    """Forgets a name; ENOENT if there is none. Notifiers and references stay."""

    name: ClassVar[str] = "closefd"

    fdname: FdName


class MemfdCreate(Command, frozen=True, kw_only=True):
    """memfd_create(2) with MFD_INACCESSIBLE: makes a file without a name.

    Returns an O_RDWR fd of it, and keeps it as `fdname`, too. MFD_ALLOW_SEALING and
    MFD_HUGETLB are EINVAL, as in the patch.
    """

    name: ClassVar[str] = "memfd-create"
    gives_fd: ClassVar[bool] = True

    memfd: Annotated[
        str, Meta(max_length=249, description="what query-files calls it")
    ] = msgspec.field(name="name")
    flags: Annotated[
        int, Meta(ge=0, le=(1 << 32) - 1, description="MFD_CLOEXEC, MFD_INACCESSIBLE")
    ] = 0
    fdname: FdName
    size: (
        Annotated[int, Meta(ge=0, le=(1 << 63) - 1, description="bytes to truncate to")]
        | None
    ) = None


class RegisterNotifier(Command, frozen=True, kw_only=True):
    """inaccessible_register_notifier(): tell this peer of invalidations of a file.

    Waits while an invalidation of the file is under way. The file stays open until the
    notifier goes. EOPNOTSUPP in semantics whose notifiers are bound to ranges.
    """

    name: ClassVar[str] = "register-notifier"
    returns: ClassVar[Any] = Notifier

    file: File


class Bind(Command, frozen=True, kw_only=True):
    """restrictedmem_bind(): the same for a range of a file.

    EINVAL where ranges are exclusive and this one overlaps another, or is not asked to
    be; EOPNOTSUPP in semantics whose notifiers are registered for files.
    """

    name: ClassVar[str] = "bind"
    returns: ClassVar[Any] = Notifier

    file: File
    start: FirstPage
    end: EndPage
    exclusive: (
        Annotated[bool, Meta(description="that no other may overlap it")] | None
    ) = None


class Unbind(Command, frozen=True, kw_only=True):
    """restrictedmem_unbind(): unregister-notifier for what bind has returned.

    ENOENT if this peer has no such notifier; EOPNOTSUPP in semantics whose notifiers
    are registered for files.
    """

    name: ClassVar[str] = "unbind"

    notifier: NotifierId


class UnregisterNotifier(Command, frozen=True, kw_only=True):
    """inaccessible_unregister_notifier(): after it returns no event follows.

    Answers what the notifier has not answered, and waits while an invalidation of the
    file is under way. ENOENT if this peer has no such notifier; EOPNOTSUPP in semantics
    whose notifiers are bound to ranges.
    """

    name: ClassVar[str] = "unregister-notifier"

    notifier: NotifierId


class InvalidateDone(Command, frozen=True, kw_only=True):
    """The callback of a notifier has returned; the answer to an event.

    EINVAL if no such event waits for an answer. It overtakes commands that wait.
    """

    name: ClassVar[str] = "invalidate-done"

    notifier: NotifierId
    sequence: Sequence


class GetPfn(Command, frozen=True, kw_only=True):
    """inaccessible_get_pfn(): where pages are, and a reference to each.

    Allocates, as SGP_WRITE does; but EINVAL past the end, where the patch would
    allocate, too. The pages stay where they are until they are punched or the file has
    gone. With `count` the return has extents, as few as the frames allow; and `next`,
    where there are more than 1000. Semantics may refuse holes (ENOENT), pages that
    nobody is bound to, and poisoned ones (EHWPOISON). Where they lock pages it is
    EAGAIN until they are put.
    """

    name: ClassVar[str] = "get-pfn"
    returns: ClassVar[Any] = Frames

    file: File
    offset: Pgoff
    count: PageCount | None = None


class PutExtent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Pages to be put. It may have the other members of an Extent, too."""

    # Of the first page.
    pfn: Pfn
    # In pages of the file.
    count: PageCount = 1


class PutPfn(Command, frozen=True, kw_only=True):
    """inaccessible_put_pfn(): gives references back, of `pfn` or of `extents`.

    EINVAL, and nothing is put, if this peer holds no reference to one of the pages;
    EOPNOTSUPP in semantics without references.
    """

    name: ClassVar[str] = "put-pfn"

    file: File
    pfn: Pfn | None = None
    count: PageCount = 1
    extents: (
        Annotated[
            list[PutExtent],
            Meta(min_length=1, description="instead of `pfn`, as get-pfn returns them"),
        ]
        | None
    ) = None


class GetMemory(Command, frozen=True, kw_only=True):
    """Gives an fd of the backing memory, for the simulated guest's own access.

    EPERM on a mount with --no-guest-access.
    """

    name: ClassVar[str] = "get-memory"
    owner_only: ClassVar[bool] = True
    gives_fd: ClassVar[bool] = True

    file: File


class QueryFiles(Command, frozen=True, kw_only=True):
    """Lists the files that are open, or have fetched or poisoned pages.

    In order of `ino`. Where there are more, the reply has `next` beside `return`.
    """

    name: ClassVar[str] = "query-files"
    returns: ClassVar[Any] = list[FileInfo]

    start: Row = 0
    limit: Limit | None = None


class QueryFile(Command, frozen=True, kw_only=True):
    """Tells of one file."""

    name: ClassVar[str] = "query-file"
    returns: ClassVar[Any] = FileInfo

    file: File


class QueryNotifiers(Command, frozen=True, kw_only=True):
    """Lists the notifiers of all peers.

    In order of their numbers. Where there are more, the reply has `next` beside
    `return`.
    """

    name: ClassVar[str] = "query-notifiers"
    returns: ClassVar[Any] = list[NotifierInfo]

    start: Row = 0
    limit: Limit | None = None


class QueryPins(Command, frozen=True, kw_only=True):
    """Lists fetched pages and the references to them, also to those punched since.

    EINVAL if `start` is none.
    """

    name: ClassVar[str] = "query-pins"
    returns: ClassVar[Any] = Pins

    start: PinsRow = 0
    limit: Limit | None = None


class QueryStats(Command, frozen=True, kw_only=True):
    """Counts."""

    name: ClassVar[str] = "query-stats"
    returns: ClassVar[Any] = Stats


class QuerySemantics(Command, frozen=True, kw_only=True):
    """Tells the rules of this mount."""

    name: ClassVar[str] = "query-semantics"
    returns: ClassVar[Any] = Semantics


class MemoryFailure(Command, frozen=True, kw_only=True):
    """Simulates a poisoned page; EOPNOTSUPP in semantics without an error callback.

    Until it is punched get-pfn is EHWPOISON for it, and so is this command. Its frame
    does not come back after that. EINVAL past the end; ENXIO for a hole, which has no
    memory that could fail: so says memory_failure() where there is no page.
    """

    name: ClassVar[str] = "memory-failure"

    file: File
    offset: Pgoff


class Quit(Command, frozen=True, kw_only=True):
    """Ends the daemon and unmounts."""

    name: ClassVar[str] = "quit"
    owner_only: ClassVar[bool] = True


COMMANDS: Final[dict[str, type[Command]]] = {
    command.name: command
    for command in (
        *(QmpCapabilities, QueryVersion, QueryCommands, QueryQmpSchema),
        *(GetFd, CloseFd, MemfdCreate),
        *(RegisterNotifier, UnregisterNotifier, Bind, Unbind, InvalidateDone),
        *(GetPfn, PutPfn, GetMemory),
        *(QueryFiles, QueryFile, QueryNotifiers, QueryPins, QueryStats),
        *(QueryStatus, QuerySemantics, MemoryFailure, Quit),
    )
}


# --- events ---------------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the events: what a peer is told unasked."""

    name: ClassVar[str]
    # The command that answers it.
    answer: ClassVar[type[Command] | None] = None


class Answered(Event, frozen=True, kw_only=True):
    """Base of the events of a notifier whose call waits for the peer's answer."""

    answer: ClassVar[type[Command] | None] = InvalidateDone

    notifier: NotifierId
    start: Start
    end: End
    sequence: Sequence
    # The fetched pages that go, where the semantics tell them.
    frames: list[Extent] | msgspec.UnsetType = msgspec.UNSET


class Invalidate(Answered, frozen=True, kw_only=True):
    """Pages from `start` to `end` may have gone: stop using them, then answer."""

    name: ClassVar[str] = "INVALIDATE"


class InvalidateStart(Answered, frozen=True, kw_only=True):
    """Pages are about to go, in semantics that bracket the removal."""

    name: ClassVar[str] = "INVALIDATE_START"


class InvalidateEnd(Answered, frozen=True, kw_only=True):
    """The removal that INVALIDATE_START announced is over."""

    name: ClassVar[str] = "INVALIDATE_END"


class Populate(Answered, frozen=True, kw_only=True):
    """Pages from `start` to `end` have been allocated, in semantics that tell it."""

    name: ClassVar[str] = "POPULATE"


class MemoryError(Event, frozen=True, kw_only=True):  # noqa: A001 - the contract's name
    """Pages are poisoned."""

    name: ClassVar[str] = "MEMORY_ERROR"

    notifier: NotifierId
    start: Start
    end: End


class Shutdown(Event, frozen=True, kw_only=True):
    """The daemon ends."""

    name: ClassVar[str] = "SHUTDOWN"

    # "quit", "unmounted", or the signal's name.
    reason: str


EVENTS: Final[dict[str, type[Event]]] = {
    event.name: event
    for event in (
        *(Invalidate, InvalidateStart, InvalidateEnd, Populate),
        *(MemoryError, Shutdown),
    )
}


def version() -> VersionInfo:
    """What query-version returns, and the greeting."""
    major, minor, micro = (int(part) for part in __version__.split(".")[:3])
    return VersionInfo(VersionTriple(major, minor, micro), "inaccfs")
