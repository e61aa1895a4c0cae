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
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from inaccfs.shim.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable

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
    # Any other request of the kernel, such as a LOOKUP, which `event` names. Only for
    # who asks for them: there are many.
    "request",
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

BY_PROCESSES: Final = frozenset[What](
    (
        *("allocate", "punch", "truncate", "request"),
        *("read", "write", "lseek", "ioctl", "copy"),
    )
)
"""What is a system call, so that `Happened.who` is a process."""


class Happened(msgspec.Struct, frozen=True, gc=False):
    """One thing that has happened. Times are CLOCK_MONOTONIC, in nanoseconds."""

    # When it was over.
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
    # The event, such as INVALIDATE, and its sequence; also of "answer" and "evict". Of
    # a "request" its name.
    event: str = ""
    sequence: int = 0
    # To which notifier it was sent.
    notifier: int = 0
    # When the system call was read, or when the event was sent that has been answered;
    # 0 for what takes no time, and for a call that began before anybody listened.
    began: int = 0
    # `began` of the system call that the event, or its answer, belongs to; 0 if it
    # belongs to none. No two calls of a mount begin in the same nanosecond.
    cause: int = 0


class Trace:
    """The trace of a mount."""

    def __init__(self) -> None:
        self.counters: Final = Counters()
        # Called in the order in which they came. They may neither block nor raise.
        self.listeners: Final[list[Listener]] = []
        # Those of them who want requests, too; and what is called with whether there
        # are any.
        self._for_requests: Final[list[Listener]] = []
        self.watch_requests: Callable[[bool], object] = lambda on: None

    def listen(self, listener: Listener, *, requests: bool = False) -> None:
        """Call *listener* with all that happens, or with *requests* as well."""
        self.listeners.append(listener)
        if requests:
            self._for_requests.append(listener)
            self.watch_requests(True)

    def stop(self, listener: Listener) -> None:
        """Call *listener* no more. Harmless if done already."""
        for listeners in (self.listeners, self._for_requests):
            if listener in listeners:
                listeners.remove(listener)
        if not self._for_requests:
            self.watch_requests(False)

    def tell_request(
        self, name: str, file: int, who: int, error: int, began: int
    ) -> None:
        """A request about inode *file* has been handled."""
        happened = Happened(
            *(monotonic_ns(), "request", file, 0, 0, who, error, name, 0, 0, began)
        )
        for listener in tuple(self._for_requests):
            listener(happened)

    def tell_refused(
        self, what: What, file: int, start: int, end: int, who: int, error: int
    ) -> None:
        """A system call on inode *file*, which may not be open, has been refused."""
        happened = Happened(monotonic_ns(), what, file, start, end, who, error)
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
        # 0 until it has been looked up.
        self._ino = 0

    def reopened(self, fd: int) -> None:
        """Use another fd of the same backing file from now on."""
        self._fd = fd

    def now(self) -> int:
        """The time for `began` of what begins now; 0 while nobody listens."""
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
        """Something has happened to a range in bytes. *exc*: why it has failed.

        A bug is EIO, as it is to the caller.
        """
        number = 0 if exc is None else getattr(exc, "errno", None) or errno.EIO
        # No function in between: every system call comes through here.
        ino = self._ino or self._look_up()
        self._pass_on(
            Happened(
                monotonic_ns(), what, ino, start, end, who, number, "", 0, 0, began
            )
        )

    def tell_pages(
        self, what: What, start: int = 0, end: int = 0, who: int = 0
    ) -> None:
        """The same of a range in pages."""
        self.tell(what, start * self._page_size, end * self._page_size, who)

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
        """An event of a range in pages has been sent or answered; see `Happened`."""
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
                *(event, sequence, notifier, began, cause),
            )
        )

    def _pass_on(self, happened: Happened) -> None:
        listeners = self.listeners
        # A copy if there are several: one may end with what it hears.
        for listener in listeners if len(listeners) == 1 else tuple(listeners):
            listener(happened)

    def _look_up(self) -> int:
        self._ino = 0 if self._fd < 0 else os.fstat(self._fd).st_ino
        return self._ino
