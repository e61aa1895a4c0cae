"""The commands of the control socket.

Docstrings are in docs/control-protocol.md, and the errnos that they name are the errors
of a command there.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from inaccfs.control.messages.fields import (
    EndPage,
    FdName,
    File,
    FirstPage,
    Limit,
    NotifierId,
    PageCount,
    Pfn,
    Pgoff,
    PinsRow,
    Row,
    Sequence,
)
from inaccfs.control.messages.results import (
    CommandInfo,
    FileInfo,
    Frames,
    Nothing,
    Notifier,
    NotifierInfo,
    Pins,
    Semantics,
    Stats,
    VersionInfo,
)
from inaccfs.status import Status

# memfd_create(2); the last is the patch's.
MFD_CLOEXEC: Final = 0x1
MFD_ALLOW_SEALING: Final = 0x2
MFD_HUGETLB: Final = 0x4
MFD_INACCESSIBLE: Final = 0x8


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
    the end of the connection. EINVAL if it is not a file of this mount; a name that is
    taken gets the new file.

    A `weak` name does not keep it open, nor do notifiers that are registered by it:
    when all others have closed a file without a name in the file system, its notifiers
    get the events of a punch of all of it, and get-pfn is EFAULT from then on. Its
    memory stays until the weak names go, too.
    """

    name: ClassVar[str] = "getfd"
    takes_fd: ClassVar[bool] = True

    fdname: FdName
    weak: Annotated[bool, Meta(description="whether it does not keep the file")] = False


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
    """inaccessible_register_notifier(): send this peer the invalidations of a file.

    Waits while an invalidation of the file is under way. The file stays open until the
    notifier goes. EOPNOTSUPP in semantics whose notifiers are bound to ranges.
    """

    name: ClassVar[str] = "register-notifier"
    returns: ClassVar[Any] = Notifier

    file: File


class Bind(Command, frozen=True, kw_only=True):
    """restrictedmem_bind(): the same for a range of a file.

    EINVAL where ranges are exclusive and this one is not asked to be, or overlaps
    another; that is EEXIST in some semantics. EOPNOTSUPP in semantics whose notifiers
    are registered for files, and with `prepare` where bindings are not prepared.
    """

    name: ClassVar[str] = "bind"
    returns: ClassVar[Any] = Notifier

    file: File
    start: FirstPage
    end: EndPage
    exclusive: (
        Annotated[bool, Meta(description="that no other may overlap it")] | None
    ) = None
    prepare: Annotated[
        bool, Meta(description="leave it to commit-bind to put it into effect")
    ] = False


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
