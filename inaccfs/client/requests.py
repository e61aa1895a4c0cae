"""The requests to a daemon, for both faces: a command, and how to read its result.

The faces (blocking, aio) send these and return the results.
"""

from __future__ import annotations

import base64
import errno
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from inaccfs.control.messages import (
    Bind,
    CloseFd,
    Command,
    Data,
    Extent,
    FileInfo,
    Frames,
    Freeze,
    GetFd,
    GetMemory,
    GetPfn,
    MappedExtent,
    MemfdCreate,
    MemoryAttributes,
    MemoryFailure,
    Migrate,
    NotifierInfo,
    PageMap,
    PinPages,
    Pins,
    PopulatePages,
    PutExtent,
    PutPfn,
    QueryFile,
    QueryFiles,
    QueryMap,
    QueryMemoryAttributes,
    QueryNotifiers,
    QueryPins,
    QuerySemantics,
    QueryStats,
    QueryStatus,
    QueryVersion,
    Quit,
    ReadShared,
    RegisterNotifier,
    Semantics,
    SetMemoryAttributes,
    Stats,
    Unbind,
    Unfreeze,
    UnpinPages,
    UnregisterNotifier,
    VersionInfo,
    WriteShared,
)
from inaccfs.control.qmp import NotQmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inaccfs.status import Status

T = TypeVar("T")

# Few enough that a message is far below the limit of most daemons.
_EXTENTS_A_COMMAND: Final = 256


class Run(Protocol):
    """Contiguous frames, such as an `Extent`."""

    @property
    def pfn(self) -> int:
        """The first frame."""

    @property
    def count(self) -> int:
        """The number of pages of the file."""


class _Frame(NamedTuple):
    # The number of a page frame, of 4 KiB frames.
    pfn: int
    # The folio has 2**order frames; the page may be in the middle of it.
    order: int


class Pfn(_Frame):
    """The frame of a page: a tuple of its number and its folio's order."""

    # Whether the page is private; None if attributes are not kept in the file.
    private: bool | None = None


class Request(NamedTuple, Generic[T]):
    """A command, and a function that converts its result."""

    command: Command
    # Takes the typed return; or the fd, if the command returns one.
    interpret: Callable[[Any], T]
    # The fd to send. It is duplicated, so the caller keeps it.
    fd: int | None = None
    # Whether to ask for further pages of the result until the last one.
    whole: bool = False


class Rows(list[T]):
    """A page of a command's list."""

    # Where the next page begins, for `start` of the same command; None if there is
    # none.
    next: int | None = None


def _nothing(_: object) -> None:
    return None


def no_result(command: Command, fd: int | None = None) -> Request[None]:
    """A command that returns nothing, or whose return does not matter."""
    return Request(command, _nothing, fd)


def _itself(returned: Any) -> Any:  # noqa: ANN401 - the return of any command
    return returned


def undo(command: Command, returned: Any) -> list[Command]:  # noqa: ANN401 - as above
    """The commands that undo an abandoned command."""
    match command:
        case GetFd() | MemfdCreate():
            return [CloseFd(fdname=command.fdname)]
        case RegisterNotifier():
            return [UnregisterNotifier(notifier=returned.notifier)]
        case Bind():
            return [Unbind(notifier=returned.notifier)]
        case GetPfn(count=None):
            return [PutPfn(file=command.file, pfn=returned.pfn)]
        case GetPfn():
            return put_pfns(command.file, returned.extents or ())
        case PinPages():
            return unpin_pages(command.file, returned.extents or ())
        case Freeze():
            return [Unfreeze(file=command.file)]
    return []


# --- what comes in pages --------------------------------------------------------------


def following(command: Command, returned: Any) -> Command | None:  # noqa: ANN401 - as above
    """The command for the page after *returned*; None if that was the last."""
    start = getattr(returned, "next", None) or None
    if start is None:
        return None
    if isinstance(command, GetPfn | PinPages):
        assert command.count is not None
        count = command.offset + command.count - start
        return msgspec.structs.replace(command, offset=start, count=count)
    return msgspec.structs.replace(command, start=start)


def joined(pages: list[Any]) -> Any:  # noqa: ANN401 - as above
    """Join *pages*, at least one, into one result."""
    first = pages[0]
    match first:
        case _ if len(pages) == 1:
            return first
        case list():
            return Rows(chain.from_iterable(pages))
        case PageMap():
            return PageMap(extents=[row for page in pages for row in page.extents])
        case Frames():
            return Frames(extents=[row for page in pages for row in page.extents])
        case Pins():
            return Pins(
                pinning=first.pinning,
                extents=[row for page in pages for row in page.extents],
                references=[row for page in pages for row in page.references],
            )
    raise NotQmpError("pages of what has none")


# --- any command ----------------------------------------------------------------------


def execute(command: Command, fd: int | None) -> Request[Any]:
    """Any command, except those that register notifiers, whose events need answers."""
    if isinstance(command, RegisterNotifier):
        raise TypeError("register-notifier: use register_notifier() of a file")
    if isinstance(command, Bind):
        raise TypeError("bind: use bind() of a file")
    if command.takes_fd and fd is None:
        raise ValueError(f"{command.name} needs an fd")
    if not command.takes_fd and fd is not None:
        raise ValueError(f"{command.name} takes no fd")
    return Request(command, _itself, fd)


# --- files ----------------------------------------------------------------------------


def check_path(path: str) -> str:
    """Refuse a path that the daemon would take for an fdname."""
    if not path.startswith("/"):
        raise ValueError(f"{path!r}: a path begins with /, the root of the mount")
    return path


def get_fd(fdname: str, fd: int, *, weak: bool = False) -> Request[None]:
    return no_result(GetFd(fdname=fdname, weak=weak), fd)


def close_fd(fdname: str) -> Request[None]:
    return no_result(CloseFd(fdname=fdname))


def memfd_create(name: str, flags: int, size: int | None, fdname: str) -> Request[int]:
    command = MemfdCreate(memfd=name, flags=flags, fdname=fdname, size=size)
    return Request(command, _itself)


def get_memory(file: str) -> Request[int]:
    return Request(GetMemory(file=file), _itself)


def query_file(file: str) -> Request[FileInfo]:
    return Request(QueryFile(file=file), _itself)


def query_map(file: str) -> Request[list[MappedExtent]]:
    return Request(QueryMap(file=file), _map_extents, whole=True)


def _map_extents(found: PageMap) -> list[MappedExtent]:
    return found.extents


def memory_failure(file: str, offset: int) -> Request[None]:
    return no_result(MemoryFailure(file=file, offset=offset))


# --- frames ---------------------------------------------------------------------------


def _pfn(frames: Frames) -> Pfn:
    if frames.pfn is msgspec.UNSET or frames.order is msgspec.UNSET:
        raise NotQmpError("get-pfn returned no pfn")
    found = Pfn(frames.pfn, frames.order)
    if frames.private is not msgspec.UNSET:
        found.private = frames.private
    return found


def _extents(frames: Frames) -> list[Extent]:
    if frames.extents is msgspec.UNSET:
        raise NotQmpError("get-pfn returned no extents")
    return frames.extents


def get_pfn(file: str, offset: int) -> Request[Pfn]:
    return Request(GetPfn(file=file, offset=offset), _pfn)


def get_pfns(file: str, offset: int, count: int) -> Request[list[Extent]]:
    command = GetPfn(file=file, offset=offset, count=count)
    return Request(command, _extents, whole=True)


def put_pfns(file: str, extents: Iterable[Run]) -> list[Command]:
    """The commands that put a reference to each page of *extents*, in several parts."""
    return [PutPfn(file=file, extents=parts) for parts in _to_put(extents)]


def _to_put(extents: Iterable[Run]) -> list[list[PutExtent]]:
    parts = [PutExtent(pfn=extent.pfn, count=extent.count) for extent in extents]
    return [
        parts[at : at + _EXTENTS_A_COMMAND]
        for at in range(0, len(parts), _EXTENTS_A_COMMAND)
    ]


def pin_pages(file: str, offset: int, count: int) -> Request[list[Extent]]:
    command = PinPages(file=file, offset=offset, count=count)
    return Request(command, _extents, whole=True)


def unpin_pages(file: str, extents: Iterable[Run]) -> list[Command]:
    """The commands that unpin each page of *extents*."""
    return [UnpinPages(file=file, extents=parts) for parts in _to_put(extents)]


def put_pfn(file: str, pfn: int, count: int) -> Request[None]:
    return no_result(PutPfn(file=file, pfn=pfn, count=count))


# --- private and shared pages ---------------------------------------------------------


def set_memory_attributes(
    file: str, offset: int, count: int, *, private: bool
) -> Request[None]:
    command = SetMemoryAttributes(
        file=file, offset=offset, count=count, private=private
    )
    return no_result(command)


def query_memory_attributes(file: str) -> Request[list[MemoryAttributes]]:
    return Request(QueryMemoryAttributes(file=file), _itself, whole=True)


def query_memory_attribute(file: str, offset: int) -> Request[MemoryAttributes]:
    def interpret(returned: list[MemoryAttributes]) -> MemoryAttributes:
        if not returned:
            raise OSError(errno.EINVAL, f"page {offset} lies past the end")
        return returned[0]

    return Request(QueryMemoryAttributes(file=file, start=offset, limit=1), interpret)


def populate(
    file: str, offset: int, count: int, source: str | None, source_offset: int
) -> Request[int]:
    command = PopulatePages(
        file=file,
        offset=offset,
        count=count,
        source=source,
        source_offset=source_offset if source is not None else None,
    )
    return Request(command, lambda returned: returned.count)


def freeze(file: str) -> Request[None]:
    return no_result(Freeze(file=file))


def unfreeze(file: str) -> Request[None]:
    return no_result(Unfreeze(file=file))


def migrate(file: str, offset: int, count: int) -> Request[None]:
    return no_result(Migrate(file=file, offset=offset, count=count))


def read_shared(file: str, offset: int, count: int) -> Request[bytes]:
    def interpret(returned: Data) -> bytes:
        return base64.b64decode(returned.data)

    return Request(ReadShared(file=file, offset=offset, count=count), interpret)


def write_shared(file: str, offset: int, data: bytes) -> Request[None]:
    text = base64.b64encode(data).decode()
    return no_result(WriteShared(file=file, offset=offset, data=text))


# --- the mount ------------------------------------------------------------------------

# These take no arguments, so one object of each suffices.
QUERY_VERSION: Final[Request[VersionInfo]] = Request(QueryVersion(), _itself)
QUERY_STATUS: Final[Request[Status]] = Request(QueryStatus(), _itself)
QUERY_SEMANTICS: Final[Request[Semantics]] = Request(QuerySemantics(), _itself)
QUERY_STATS: Final[Request[Stats]] = Request(QueryStats(), _itself)
QUERY_PINS: Final[Request[Pins]] = Request(QueryPins(), _itself, whole=True)
QUERY_FILES: Final[Request[list[FileInfo]]] = Request(QueryFiles(), _itself, whole=True)
QUERY_NOTIFIERS: Final[Request[list[NotifierInfo]]] = Request(
    QueryNotifiers(), _itself, whole=True
)
QUIT: Final[Request[None]] = no_result(Quit())
