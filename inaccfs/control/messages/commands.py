"""The commands of the control socket.

docs/control-protocol.md has a copy of the docstrings, and lists the errnos that they
name as the errors of the command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Final, TypeAlias

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
from inaccfs.semantics.rules import Semantics as Rules
from inaccfs.status import Status

Exists: TypeAlias = Callable[[Rules], bool] | None
"""Whether semantics have a command; None if all have it."""

# Flags of memfd_create(2); the last one is the patch's.
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
    # Whether only root and the mount's owner may use it.
    owner_only: ClassVar[bool] = False
    exists: ClassVar[Exists] = None
    # Whether the command, or its return, carries an fd as SCM_RIGHTS.
    takes_fd: ClassVar[bool] = False
    gives_fd: ClassVar[bool] = False


class QmpCapabilities(Command, frozen=True, kw_only=True):
    """Ends the negotiation. No capabilities are offered."""

    name: ClassVar[str] = "qmp_capabilities"

    enable: Annotated[list[str], Meta(max_length=0, description="must be empty")] = []


class QueryVersion(Command, frozen=True, kw_only=True):
    """Returns the version of inaccfs."""

    name: ClassVar[str] = "query-version"
    returns: ClassVar[Any] = VersionInfo


class QueryCommands(Command, frozen=True, kw_only=True):
    """Lists the commands."""

    name: ClassVar[str] = "query-commands"
    returns: ClassVar[Any] = list[CommandInfo]


class QueryQmpSchema(Command, frozen=True, kw_only=True):
    """Returns the types of all commands and events, in QEMU's format."""

    name: ClassVar[str] = "query-qmp-schema"
    returns: ClassVar[Any] = list[dict[str, Any]]


class QueryStatus(Command, frozen=True, kw_only=True):
    """Returns what `inaccfs status` shows."""

    name: ClassVar[str] = "query-status"
    returns: ClassVar[Any] = Status


class GetFd(Command, frozen=True, kw_only=True):
    """Names an open fd of a file of this mount, sent with this message.

    The fd must be open for writing. The daemon keeps the file open until closefd or the
    end of the connection. EINVAL if it is not a file of this mount. A name that is in
    use changes to the new file.

    A `weak` name does not keep the file open, and neither do notifiers that are
    registered by it: when all others have closed a file without a name in the file
    system, its notifiers get the events of a punch of the whole file, and get-pfn and
    commands about its attributes are EFAULT from then on. Its memory stays until the
    weak names are closed, too.
    """

    name: ClassVar[str] = "getfd"
    takes_fd: ClassVar[bool] = True

    fdname: FdName
    weak: Annotated[
        bool, Meta(description="whether the name does not keep it open")
    ] = False


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
        str, Meta(max_length=249, description="its name in query-files")
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
    """inaccessible_register_notifier(): sends this peer the invalidations of a file.

    Waits while an invalidation of the file is in progress. The file stays open until
    the notifier is unregistered. EOPNOTSUPP in semantics whose notifiers are bound to
    ranges.
    """

    name: ClassVar[str] = "register-notifier"
    returns: ClassVar[Any] = Notifier
    exists: ClassVar[Exists] = lambda rules: not rules.by_range

    file: File


class Bind(Command, frozen=True, kw_only=True):
    """restrictedmem_bind(): as register-notifier, for a range of a file.

    EINVAL if the semantics have exclusive ranges and `exclusive` is false, or if the
    range overlaps another exclusively; some semantics have EEXIST for an overlap.
    EOPNOTSUPP in semantics whose notifiers are registered for files, and for `prepare`
    in semantics without prepared bindings.
    """

    name: ClassVar[str] = "bind"
    returns: ClassVar[Any] = Notifier
    exists: ClassVar[Exists] = lambda rules: rules.by_range

    file: File
    start: FirstPage
    end: EndPage
    exclusive: (
        Annotated[bool, Meta(description="whether no other may overlap")] | None
    ) = None
    prepare: Annotated[
        bool, Meta(description="whether only commit-bind makes it effective")
    ] = False


class Unbind(Command, frozen=True, kw_only=True):
    """restrictedmem_unbind(): as unregister-notifier, for a notifier of bind.

    ENOENT if this peer has no such notifier; EOPNOTSUPP in semantics whose notifiers
    are registered for files.
    """

    name: ClassVar[str] = "unbind"
    exists: ClassVar[Exists] = lambda rules: rules.by_range

    notifier: NotifierId


class UnregisterNotifier(Command, frozen=True, kw_only=True):
    """inaccessible_unregister_notifier(): no event follows its return.

    It counts as the answer to an unanswered event, and waits while an invalidation of
    the file is in progress. ENOENT if this peer has no such notifier; EOPNOTSUPP in
    semantics whose notifiers are bound to ranges.
    """

    name: ClassVar[str] = "unregister-notifier"
    exists: ClassVar[Exists] = lambda rules: not rules.by_range

    notifier: NotifierId


class InvalidateDone(Command, frozen=True, kw_only=True):
    """Answers an event: the callback of the notifier has returned.

    EINVAL if no such event waits for an answer. It overtakes commands that wait.
    """

    name: ClassVar[str] = "invalidate-done"

    notifier: NotifierId
    sequence: Sequence


class GetPfn(Command, frozen=True, kw_only=True):
    """inaccessible_get_pfn(): returns the frames of pages, and takes references.

    It allocates, as SGP_WRITE does, but is EINVAL past the end, where the patch would
    allocate, too. The pages keep their frames until they are punched or the file is
    freed. With `count` the return has extents, as few as the frames allow; and `next`,
    if there are more than 1000. Semantics may refuse holes (ENOENT), pages that no
    notifier is bound to, and poisoned ones (EHWPOISON). In semantics that lock pages, a
    locked page is EAGAIN until it is put.
    """

    name: ClassVar[str] = "get-pfn"
    returns: ClassVar[Any] = Frames

    file: File
    offset: Pgoff
    count: PageCount | None = None


class PutExtent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Pages to put. It may have the other members of an Extent, too."""

    # The frame of the first page.
    pfn: Pfn
    # In pages of the file.
    count: PageCount = 1


class PutPfn(Command, frozen=True, kw_only=True):
    """inaccessible_put_pfn(): gives references back, of `pfn` or of `extents`.

    EINVAL, and nothing is put, if this peer lacks a reference to one of the pages;
    EOPNOTSUPP in semantics without references.
    """

    name: ClassVar[str] = "put-pfn"
    exists: ClassVar[Exists] = lambda rules: rules.keeps_references

    file: File
    pfn: Pfn | None = None
    count: PageCount = 1
    extents: (
        Annotated[
            list[PutExtent],
            Meta(min_length=1, description="instead of `pfn`: extents of get-pfn"),
        ]
        | None
    ) = None


class GetMemory(Command, frozen=True, kw_only=True):
    """Returns an fd of the backing memory, for the simulated guest's own access.

    EPERM on a mount with --no-guest-access.
    """

    name: ClassVar[str] = "get-memory"
    owner_only: ClassVar[bool] = True
    gives_fd: ClassVar[bool] = True

    file: File


class QueryFiles(Command, frozen=True, kw_only=True):
    """Lists the files that are open, or have fetched or poisoned pages.

    They are in order of `ino`. If there are more, the reply has `next` beside `return`.
    """

    name: ClassVar[str] = "query-files"
    returns: ClassVar[Any] = list[FileInfo]

    start: Row = 0
    limit: Limit | None = None


class QueryFile(Command, frozen=True, kw_only=True):
    """Describes one file."""

    name: ClassVar[str] = "query-file"
    returns: ClassVar[Any] = FileInfo

    file: File


class QueryNotifiers(Command, frozen=True, kw_only=True):
    """Lists the notifiers of all peers.

    They are in order of their numbers. If there are more, the reply has `next` beside
    `return`.
    """

    name: ClassVar[str] = "query-notifiers"
    returns: ClassVar[Any] = list[NotifierInfo]

    start: Row = 0
    limit: Limit | None = None


class QueryPins(Command, frozen=True, kw_only=True):
    """Lists fetched pages and the references to them, also to pages punched since.

    EINVAL if `start` is not one that was returned.
    """

    name: ClassVar[str] = "query-pins"
    returns: ClassVar[Any] = Pins

    start: PinsRow = 0
    limit: Limit | None = None


class QueryStats(Command, frozen=True, kw_only=True):
    """Returns counters."""

    name: ClassVar[str] = "query-stats"
    returns: ClassVar[Any] = Stats


class QuerySemantics(Command, frozen=True, kw_only=True):
    """Returns the rules of this mount."""

    name: ClassVar[str] = "query-semantics"
    returns: ClassVar[Any] = Semantics


class MemoryFailure(Command, frozen=True, kw_only=True):
    """Simulates a poisoned page; EOPNOTSUPP in semantics without an error callback.

    Until the page is punched, get-pfn and this command are EHWPOISON for it. Its frame
    is never used again. EINVAL past the end; ENXIO for a hole, which has no memory that
    could fail, as memory_failure() for a pfn without a page.
    """

    name: ClassVar[str] = "memory-failure"
    exists: ClassVar[Exists] = lambda rules: rules.has_memory_failure

    file: File
    offset: Pgoff


class Quit(Command, frozen=True, kw_only=True):
    """Ends the daemon and unmounts."""

    name: ClassVar[str] = "quit"
    owner_only: ClassVar[bool] = True
