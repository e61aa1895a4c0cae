"""What tools look at: maps of files, and traces."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from inaccfs.control.messages.commands import Command
from inaccfs.control.messages.fields import File, FirstPage, Limit
from inaccfs.control.messages.results import Result
from inaccfs.shim.trace import What


class MappedExtent(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True
):
    """Pages of a file that are all in the same state."""

    # Of the first page.
    offset: int
    # In pages of the file.
    count: int
    # "hole" or "allocated"; "unknown" where the kernel does not tell.
    memory: str
    # Whether get-pfn has fetched them.
    fetched: bool = False
    # Of the folios of fetched pages.
    order: int = 0
    # Whether any peer has a reference to each of them.
    referenced: bool = False
    # Whether memory-failure has been called for them.
    poisoned: bool = False
    # Whether an invalidation of them is under way.
    invalidating: bool = False
    # Their attribute, in semantics that keep one.
    private: bool | None = None


class PageMap(Result, frozen=True, kw_only=True, omit_defaults=True):
    """The pages of a file, from its first to its last."""

    # In order of offset, and without gaps.
    extents: list[MappedExtent]
    # The page to go on with, if these are not all: `start` of the same command.
    next: int | msgspec.UnsetType = msgspec.UNSET


class QueryMap(Command, frozen=True, kw_only=True):
    """Tells the states of a file's pages, as extents.

    Where there are more the return has `next`. What happens meanwhile may be in it or
    not.
    """

    name: ClassVar[str] = "query-map"
    returns: ClassVar[Any] = PageMap

    file: File
    start: FirstPage = 0
    limit: Limit | None = None


class TraceRecord(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True
):
    """One thing that has happened. Times are CLOCK_MONOTONIC, in nanoseconds.

    What is left out is 0, or the empty string: it is unknown, or there is none.
    """

    # When it was over.
    time: int
    # A system call; what a peer got or put; what happened to pages; or an event.
    kind: What
    # As stat(2) on the mount has it.
    ino: int
    # As query-files calls it.
    file: str = ""
    # In bytes; of "put" in bytes of memory. A truncation has its new and its old size.
    start: int = 0
    # The byte after the last.
    end: int = 0
    # When the system call was read, or when the event was sent that has been answered.
    began: int = 0
    # `began` of the system call that an event or its answer belongs to.
    cause: int = 0
    # The errno of a system call that has failed, by its name.
    error: str = ""
    # The process that has made the system call; or the peer's, when it connected.
    pid: int = 0
    # The name of that process, as in /proc/PID/comm.
    command: str = ""
    # The number of the peer that did it, or to whom the event was sent.
    peer: int = 0
    # To which of its notifiers.
    notifier: int = 0
    # The name of the event; of a `request` that of the opcode, such as LOOKUP.
    event: str = ""
    # As the event gave it.
    sequence: int = 0


class TraceSummary(Result, frozen=True, omit_defaults=False):
    """What has become of a trace."""

    # How many have been sent.
    records: int
    # How many have been dropped, because the peer did not read.
    lost: int


class TraceStart(Command, frozen=True, kw_only=True):
    """Sends this peer a TRACE of what happens from now on.

    EBUSY if this connection has one already. A peer that does not read loses records,
    which are counted.
    """

    name: ClassVar[str] = "trace-start"
    owner_only: ClassVar[bool] = True

    kinds: Annotated[
        list[What],
        Meta(
            description="what the trace is to have; empty for all but `request`",
        ),
    ] = []  # noqa: RUF012 - msgspec copies it


class TraceStop(Command, frozen=True, kw_only=True):
    """Ends the trace, once all of it has been sent.

    EINVAL if this connection has none.
    """

    name: ClassVar[str] = "trace-stop"
    returns: ClassVar[Any] = TraceSummary
    owner_only: ClassVar[bool] = True
