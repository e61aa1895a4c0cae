"""The errors, by kind; one root, translated once at each edge.

`InaccfsError` is a problem that the user can fix: the command line prints it in one
line. Rules of the shim refuse with a plain `OSError`, as callers of a system call get
an errno. A bug keeps the exception that Python raised.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_PROCESS: Final = (
    "no more processes are allowed: see ulimit -u, and TasksMax= of a service"
)
"""What EAGAIN of fork(2) means, for a message."""

_LACKING: Final = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has no more open files (fs.file-max)",
    errno.ENOMEM: "the machine, or the limit of this process, is short of memory",
}

SHORT_OF_MEMORY: Final = _LACKING[errno.ENOMEM]
"""What a MemoryError means, for a message."""


def lacking(exc: OSError) -> str | None:
    """What is used up if a call fails with one of the errnos that any call can have.

    It is a problem of the user's, and the text says what to do. None for other errnos.
    """
    advice = _LACKING.get(exc.errno or 0)
    return None if advice is None else f"{exc.strerror}: {advice}"


def not_started(exc: OSError) -> str | None:
    """Why no process can be started, and what to do; None if nothing is used up."""
    return NO_PROCESS if exc.errno == errno.EAGAIN else lacking(exc)


def means_no_thread(exc: RuntimeError) -> bool:
    """Whether no thread can be started; threading has no type of its own for that."""
    return str(exc) == "can't start new thread"


class InaccfsError(Exception):
    """A problem that the user can fix; the message says how, in one line."""


class MountError(InaccfsError):
    """The mount could not be made."""


class BackingError(MountError):
    """The backing is missing, of the wrong kind, or was refused by the kernel."""


class UnmountError(InaccfsError):
    """The mount could not be undone."""


class BusyError(UnmountError):
    """The mount is in use."""


class OptionError(InaccfsError):
    """An option does not exist, is malformed, or contradicts another."""


class NotMountedError(InaccfsError):
    """There is no inaccfs mount where one was named."""


class NoAnswerError(InaccfsError):
    """A daemon exists and does not answer: it is stopped."""


class NoEntryError(InaccfsError):
    """There is a mount, but the kernel denies this user access to it."""


class DeadDaemonError(NotMountedError):
    """There is a mount, but its daemon is dead."""


class NoThreadError(InaccfsError):
    """No thread can be started: for too many processes, or too little memory."""

    def __init__(self) -> None:
        super().__init__(
            f"cannot start a thread: {NO_PROCESS}; or memory is short: see ulimit -v"
        )


@contextmanager
def starting_thread() -> Iterator[None]:
    """A with block that starts a thread: raises `NoThreadError` if it cannot."""
    try:
        yield
    except RuntimeError as exc:
        if not means_no_thread(exc):
            raise
        raise NoThreadError from exc


class PageError(OSError):
    """A refusal because of one page of a file, whose number is `offset`."""

    def __init__(self, number: int, text: str, offset: int) -> None:
        super().__init__(number, text)
        self.offset: Final = offset

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.offset)


class PinnedError(PageError, BlockingIOError):
    """EAGAIN: page `offset` has references, or is pinned."""


class BusError(PageError):
    """Page `offset` is private, or has no memory: a mapping would raise SIGBUS."""


def page_error(number: int, text: str, offset: int) -> PageError:
    """A `PageError`, of the class for its errno."""
    if number == errno.EAGAIN:
        return PinnedError(number, text, offset)
    return PageError(number, text, offset)


class DaemonFailedError(MountError):
    """The daemon did not start; its standard error has the reason."""

    def __init__(self, status: int) -> None:
        super().__init__(
            "the daemon did not start: see what it says"
            if status
            else "the daemon ended before there was a mount"
        )
        self.status: Final = status
        """Its exit status, as from `inaccfs mount`; 0 if the status is lost."""
