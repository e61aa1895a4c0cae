"""Errors between a client and a daemon, besides refused commands.

A refused command is a plain `OSError` with the errno that the daemon sends.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.control import qmp
from inaccfs.control.messages import version
from inaccfs.errors import InaccfsError, page_error

if TYPE_CHECKING:
    from inaccfs.control.messages import VersionInfo
    from inaccfs.control.qmp import ErrorInfo

# The class of QMP's error.
_NOT_FOUND: Final = "CommandNotFound"


class ControlError(InaccfsError, ConnectionError):
    """The control socket cannot be used; the message says what to do."""

    number: int = errno.ECONNRESET

    def __init__(self, text: str) -> None:
        # Give it an errno and a strerror, like the errors of commands.
        super().__init__(self.number, text)

    def __str__(self) -> str:
        return str(self.strerror)

    def again(self) -> ControlError:
        """A copy for another caller, because a raised exception keeps its frames."""
        return type(self)(str(self))


class CannotConnectError(ControlError):
    """No daemon listens on the socket, or it does not admit us."""

    number = errno.ECONNREFUSED


class ConnectionLostError(ControlError):
    """The daemon has ended, or has disconnected us."""


class NotControlSocketError(ControlError):
    """The other end does not speak the protocol of the control socket."""

    number = errno.EPROTO


class UnknownCommandError(InaccfsError, OSError):
    """ENOSYS: the daemon does not know the command, because it has another version."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.ENOSYS, text)

    def __str__(self) -> str:
        return str(self.strerror)


class ClientClosedError(ControlError):
    """The client was closed, or belongs to the process that has forked."""

    number = errno.ESHUTDOWN


def closed(path: str) -> ClientClosedError:
    """The error of a client that was closed."""
    return ClientClosedError(f"{path}: the client is closed: connect anew")


def interrupted(path: str) -> ClientClosedError:
    """The error of a client that was interrupted in the middle of a message."""
    return ClientClosedError(f"{path}: interrupted in a command: connect anew")


def parents(path: str) -> ClientClosedError:
    """The error of a client that belongs to the parent process."""
    return ClientClosedError(
        f"{path}: the client is the parent process's: connect anew"
    )


def misunderstood(
    where: str, theirs: VersionInfo | None, text: str
) -> NotControlSocketError:
    """The error of an answer that is not what this version expects; *text* says why."""
    return NotControlSocketError(
        _of_another_version(where, theirs, text) or f"{where}: {text}"
    )


def _of_another_version(
    where: str, theirs: VersionInfo | None, text: str
) -> str | None:
    """What went wrong, and what to do; None if the daemon is of our version."""
    ours = version()
    if theirs is None or theirs == ours:
        return None
    return (
        f"{where}: the daemon is inaccfs {_number(theirs)}, and this is inaccfs "
        f"{_number(ours)}: unmount it, and mount it with this one ({text})"
    )


def _number(version: VersionInfo) -> str:
    found = version.qemu
    return f"{found.major}.{found.minor}.{found.micro}"


def refusal(error: ErrorInfo, where: str, theirs: VersionInfo | None) -> OSError:
    """The exception for a refused command: `OSError`, or a subclass."""
    if error.kind == _NOT_FOUND:
        # Like an unknown system call. EOPNOTSUPP comes from the command itself.
        why = _of_another_version(where, theirs, error.desc)
        return UnknownCommandError(why or error.desc)
    name, text = qmp.errno_name(error.desc)
    number = None if name is None else errnos.NUMBERS.get(name)
    if number is None:
        # The error of another program, such as QEMU: show its whole text.
        return OSError(errno.EIO, error.desc)
    if error.offset is None:
        return OSError(number, text)
    return page_error(number, text, error.offset)
