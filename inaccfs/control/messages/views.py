"""Commands and results for tools: maps of files, and traces."""

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
    # "hole" or "allocated"; "unknown" if the kernel does not say.
    memory: str
    # Whether get-pfn has fetched them.
    fetched: bool = False
    # The order of the folios of fetched pages.
    order: int = 0
    # Whether any peer has a reference to each of them.
    referenced: bool = False
    # Whether memory-failure has poisoned them.
    poisoned: bool = False
    # Whether an invalidation of them is in progress.
    invalidating: bool = False
    # Their attribute, in semantics that keep it in the file.
    private: bool | None = None


class PageMap(Result, frozen=True, kw_only=True, omit_defaults=True):
    """The pages of a file, from its first to its last."""

    # In order of offset, and without gaps.
    extents: list[MappedExtent]
    # The page to continue with, if these are not all: `start` of the same command.
    next: int | msgspec.UnsetType = msgspec.UNSET


class QueryMap(Command, frozen=True, kw_only=True):
    """Returns the states of a file's pages, as extents.

    If there are more, the return has `next`. It may or may not show changes that happen
    meanwhile.
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

    A member that is left out is 0, or the empty string: it is unknown, or does not
    apply.
    """

    # When it ended.
    time: int
    # A system call; a command of a peer; what happened to pages; or an event.
    kind: What
    # The inode number, as in stat(2) on the mount.
    ino: int
    # The name of the file, as in query-files.
    file: str = ""
    # In bytes; for "put" in bytes of memory. A truncation has its new and its old size.
    start: int = 0
    # The byte after the last.
    end: int = 0
    # When the system call or command was read, or when the answered event was sent.
    began: int = 0
    # `began` of the system call or command that has caused the event.
    cause: int = 0
    # The name of the errno of a failed system call or command.
    error: str = ""
    # The process that made the system call; or the peer's, at the time of connect(2).
    pid: int = 0
    # The name of that process, as in /proc/PID/comm.
    command: str = ""
    # The number of the peer that did it, or that the event was sent to.
    peer: int = 0
    # The notifier that the event was sent to.
    notifier: int = 0
    # The name of the event; for a `request` the name of the opcode, such as LOOKUP.
    event: str = ""
    # The sequence of the event.
    sequence: int = 0


class TraceSummary(Result, frozen=True, omit_defaults=False):
    """The result of a trace."""

    # How many records were sent.
    records: int
    # How many records were dropped, because the peer did not read.
    lost: int


class TraceStart(Command, frozen=True, kw_only=True):
    """Sends this peer TRACE events with all that happens from now on.

    EBUSY if this connection has one already. A peer that does not read loses records,
    which are counted.
    """

    name: ClassVar[str] = "trace-start"
    owner_only: ClassVar[bool] = True

    kinds: Annotated[
        list[What],
        Meta(
            description="the kinds to trace; empty for all except `request`",
        ),
    ] = []  # noqa: RUF012 - msgspec copies it


class TraceStop(Command, frozen=True, kw_only=True):
    """Ends the trace, after all records were sent.

    EINVAL if this connection has none.
    """

    name: ClassVar[str] = "trace-stop"
    returns: ClassVar[Any] = TraceSummary
    owner_only: ClassVar[bool] = True
