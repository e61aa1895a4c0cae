"""One stream of what happens to the files of a mount; and counters of the same.

Each place that counts something also traces it, if there are listeners:

    trace.counters.pages_got += pages
    if trace.listeners:
        trace.tell("get", start, end, who)

Without listeners that is all it costs: a look at an empty list.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from inaccfs.shim.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Listener: TypeAlias = "Callable[[Happened], object]"

What: TypeAlias = Literal[
    # System calls that the rules or the backing have refused, too. All three come when
    # the call is over, and so after its events.
    "allocate",
    "punch",
    "truncate",
    # Pages have become private or shared, or that has been refused.
    "convert",
    # System calls that no file allows. A read and a write have their range.
    "read",
    "write",
    "lseek",
    "ioctl",
    "copy",
    # A peer has got references to pages, or has put some; in range are their pages, or
    # for "put" their frames.
    "get",
    "put",
    # Fetched pages have moved, or one has been poisoned.
    "move",
    "poison",
    # An event has been sent to a notifier; it has answered; it has not, in time.
    "event",
    "answer",
    "evict",
]


class Happened(NamedTuple):
    """One thing that has happened."""

    # CLOCK_MONOTONIC, in seconds.
    time: float
    what: What
    # The file's inode number.
    file: int
    # In bytes of the file; for "put" in bytes of memory, and for "answer" and "evict"
    # both are 0. A truncation has its new and its old size.
    start: int
    end: int
    # The process that has made a system call, or the number of a peer; 0 if unknown.
    who: int
    # The errno of a call that has failed.
    error: int = 0
    # The event, such as INVALIDATE, and its sequence.
    event: str = ""
    sequence: int = 0


class Trace:
    """The trace of a mount."""

    def __init__(self) -> None:
        self.counters: Final = Counters()
        # Called in the order in which they came. They may neither block nor raise.
        self.listeners: Final[list[Listener]] = []

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Call *listener* with all that happens, for a with block."""
        self.listeners.append(listener)
        try:
            yield
        finally:
            self.listeners.remove(listener)

    def tell_refused(
        self, what: What, file: int, start: int, end: int, who: int, error: int
    ) -> None:
        """A system call on inode *file*, which may not be open, has been refused."""
        happened = Happened(time.monotonic(), what, file, start, end, who, error)
        for listener in tuple(self.listeners):
            listener(happened)


class FileTrace:
    """The trace of one file, and its part of the mount's counters."""

    __slots__ = ("_fd", "_ino", "_page_size", "counters", "listeners")

    def __init__(self, trace: Trace, fd: int = -1, page_size: int = 1) -> None:
        """*fd* is of the file in the backing. Only a listener costs a look at it."""
        self.counters: Final = trace.counters
        self.listeners: Final = trace.listeners
        self._page_size: Final = page_size
        self._fd = fd
        self._ino: int | None = None

    def reopened(self, fd: int) -> None:
        """Use another fd of the same backing file from now on."""
        self._fd = fd

    def tell(
        self,
        what: What,
        start: int = 0,
        end: int = 0,
        who: int = 0,
        exc: BaseException | None = None,
    ) -> None:
        """Something has happened to a range in bytes. *exc*: why it has failed.

        A bug is EIO, as it is to the caller.
        """
        number = 0 if exc is None else getattr(exc, "errno", None) or errno.EIO
        self._tell(what, start, end, who, number)

    def tell_pages(
        self,
        what: What,
        start: int = 0,
        end: int = 0,
        who: int = 0,
        event: str = "",
        sequence: int = 0,
    ) -> None:
        """The same of a range in pages, and of events."""
        unit = self._page_size
        self._tell(what, start * unit, end * unit, who, 0, event, sequence)

    def _tell(
        self,
        what: What,
        start: int,
        end: int,
        who: int,
        number: int,
        event: str = "",
        sequence: int = 0,
    ) -> None:
        if self._ino is None:
            self._ino = 0 if self._fd < 0 else os.fstat(self._fd).st_ino
        happened = Happened(
            time.monotonic(), what, self._ino, start, end, who, number, event, sequence
        )
        for listener in tuple(self.listeners):
            listener(happened)
