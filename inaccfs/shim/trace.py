"""One stream of what happens to the files of a mount; and counters of the same.

Each place that counts something also traces it, if there are listeners:

    trace.counters.pages_got += pages
    if trace.listeners:
        trace.tell("get", start, end, who)

Without listeners it costs only the check of an empty list.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from inaccfs.errnos import os_error
from inaccfs.shim.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Listener: TypeAlias = "Callable[[Happened], object]"

What: TypeAlias = Literal[
    # System calls, also refused ones. All three come when the call is complete, and so
    # after its events.
    "allocate",
    "punch",
    "truncate",
    # Commands that change a file, also refused ones. A freeze has the range of all
    # pages, and "populate" that of the pages that were filled; a refused one has those
    # that were asked for.
    "convert",
    "populate",
    "migrate",
    "freeze",
    "unfreeze",
    # System calls that no file allows. Reads and writes have a range.
    "read",
    "write",
    "lseek",
    "ioctl",
    "copy",
    # Any other request of the kernel, such as a LOOKUP, which `event` names. Only
    # listeners that ask for requests get them, as there are many.
    "request",
    # A peer got references to pages, or put some. The range is that of the pages, or
    # for "put" that of the frames.
    "get",
    "put",
    # Fetched pages have moved, or a page was poisoned.
    "move",
    "poison",
    # An event was sent to a notifier; the notifier answered; or it did not answer in
    # time.
    "event",
    "answer",
    "evict",
]

BY_PROCESSES: Final = frozenset[What](
    (
        "allocate",
        "punch",
        "truncate",
        "request",
        "read",
        "write",
        "lseek",
        "ioctl",
        "copy",
    )
)
"""The kinds that are system calls, for which `Happened.who` is a process."""


class Happened(msgspec.Struct, frozen=True, gc=False):
    """One thing that has happened. Times are CLOCK_MONOTONIC, in nanoseconds."""

    # When it ended.
    time: int
    what: What
    # The file's inode number.
    file: int
    # In bytes of the file; for "put" in bytes of memory. A truncation has its new and
    # its old size.
    start: int
    end: int
    # The process that has made a system call, or the number of a peer; 0 if unknown.
    who: int
    # The errno of a call that has failed.
    error: int = 0
    # The event, such as INVALIDATE, and its sequence; also for "answer" and "evict".
    # For a "request" the name of the opcode.
    event: str = ""
    sequence: int = 0
    # The notifier that the event was sent to.
    notifier: int = 0
    # When the system call or command was read, or when the answered event was sent; 0
    # for what has no duration, and for a call that began before there was a listener.
    began: int = 0
    # `began` of the system call or command that caused the event; 0 if none did. No two
    # of a mount begin in the same nanosecond.
    cause: int = 0


class Trace:
    """The trace of a mount."""

    def __init__(self) -> None:
        self.counters: Final = Counters()
        # Called in the order of their registration. They must neither block nor raise.
        self.listeners: Final[list[Listener]] = []
        # The listeners that want requests, too; and a function that is called with
        # whether there are any.
        self._for_requests: Final[list[Listener]] = []
        self.watch_requests: Callable[[bool], object] = lambda on: None

    def listen(self, listener: Listener, *, requests: bool = False) -> None:
        """Call *listener* with all that happens; with *requests* also with requests."""
        self.listeners.append(listener)
        if requests:
            self._for_requests.append(listener)
            self.watch_requests(True)

    def stop(self, listener: Listener) -> None:
        """Do not call *listener* any more. May be called again."""
        for listeners in (self.listeners, self._for_requests):
            if listener in listeners:
                listeners.remove(listener)
        if not self._for_requests:
            self.watch_requests(False)

    def tell_request(
        self, name: str, file: int, who: int, error: int, began: int
    ) -> None:
        """Report a complete request about inode *file*."""
        happened = Happened(
            time=monotonic_ns(),
            what="request",
            file=file,
            start=0,
            end=0,
            who=who,
            error=error,
            event=name,
            began=began,
        )
        for listener in tuple(self._for_requests):
            listener(happened)

    def tell_refused(
        self, what: What, file: int, start: int, end: int, who: int, error: int
    ) -> None:
        """Report a refused system call on inode *file*, which may not be open."""
        happened = Happened(monotonic_ns(), what, file, start, end, who, error)
        for listener in tuple(self.listeners):
            listener(happened)


@dataclass(slots=True)
class TracedCommand:
    """A command in progress: see `FileTrace.command`."""

    # See `Happened`; 0 without listeners.
    began: int
    # The end of the pages that are reported. The command may have done fewer.
    end: int


class FileTrace:
    """The trace of one file, and its part of the mount's counters."""

    __slots__ = ("_fd", "_ino", "_page_size", "counters", "listeners")

    def __init__(self, trace: Trace, fd: int = -1, page_size: int = 1) -> None:
        """*fd* is of the file in the backing. Only listeners need it."""
        self.counters: Final = trace.counters
        self.listeners: Final = trace.listeners
        self._page_size: Final = page_size
        self._fd = fd
        # 0 until it is looked up.
        self._ino = 0

    def reopened(self, fd: int) -> None:
        """Use another fd of the same backing file from now on."""
        self._fd = fd

    def now(self) -> int:
        """The time for `began` of what begins now; 0 without listeners."""
        return monotonic_ns() if self.listeners else 0

    def tell(
        self,
        what: What,
        start: int = 0,
        end: int = 0,
        who: int = 0,
        exc: BaseException | None = None,
        began: int = 0,
    ) -> None:
        """Report something about a range in bytes, and its error *exc*, if any.

        A bug is EIO, as it is to the caller.
        """
        number = 0 if exc is None else getattr(exc, "errno", None) or errno.EIO
        # Do not call another function here: every system call runs this.
        ino = self._ino or self._look_up()
        self._pass_on(
            Happened(
                monotonic_ns(), what, ino, start, end, who, number, "", 0, 0, began
            )
        )

    def tell_pages(
        self,
        what: What,
        start: int,
        end: int,
        who: int = 0,
        exc: BaseException | None = None,
        began: int = 0,
    ) -> None:
        """As `tell`, for a range in pages."""
        unit = self._page_size
        self.tell(what, start * unit, end * unit, who, exc, began)

    @contextmanager
    def command(
        self, what: What, start: int, end: int, who: int
    ) -> Iterator[TracedCommand]:
        """Report a command about a range in pages when the with block ends.

        An exception that ends the block is the command's error; EINTR, if it is not an
        `Exception`: the task is cancelled, as its peer has disconnected.
        """
        command = TracedCommand(self.now(), end)
        exc: BaseException | None = None
        try:
            yield command
        except BaseException as raised:
            cancelled = not isinstance(raised, Exception)
            exc = os_error(errno.EINTR) if cancelled else raised
            raise
        finally:
            if self.listeners:
                self.tell_pages(what, start, command.end, who, exc, command.began)

    def tell_event(
        self,
        what: What,
        start: int,
        end: int,
        who: int,
        event: str,
        sequence: int,
        notifier: int,
        began: int,
        cause: int,
    ) -> None:
        """Report an event about a range in pages, or its answer; see `Happened`."""
        unit = self._page_size
        self._pass_on(
            Happened(
                monotonic_ns(),
                what,
                self._ino or self._look_up(),
                start * unit,
                end * unit,
                who,
                0,
                event,
                sequence,
                notifier,
                began,
                cause,
            )
        )

    def _pass_on(self, happened: Happened) -> None:
        listeners = self.listeners
        # Iterate over a copy if there are several: a listener may remove itself.
        for listener in listeners if len(listeners) == 1 else tuple(listeners):
            listener(happened)

    def _look_up(self) -> int:
        self._ino = 0 if self._fd < 0 else os.fstat(self._fd).st_ino
        return self._ino
