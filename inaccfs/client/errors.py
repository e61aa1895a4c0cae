"""What can go wrong between a client and a daemon, besides what a command refuses.

What the daemon refuses is a plain `OSError` with the errno that it tells.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.control import qmp
from inaccfs.errors import InaccfsError

if TYPE_CHECKING:
    from inaccfs.control.qmp import ErrorInfo


class ControlError(InaccfsError, ConnectionError):
    """The control socket cannot be used; the message says what to do."""

    number: int = errno.ECONNRESET

    def __init__(self, text: str) -> None:
        # An OSError with an errno and a strerror, as those of commands are.
        super().__init__(self.number, text)

    def __str__(self) -> str:
        return str(self.strerror)

    def again(self) -> ControlError:
        """The same for one more caller: one that was raised keeps its frames."""
        return type(self)(str(self))


class CannotConnectError(ControlError):
    """No daemon listens on the socket, or it does not let us in."""

    number = errno.ECONNREFUSED


class ConnectionLostError(ControlError):
    """The daemon has gone, or has disconnected us."""


class NotControlSocketError(ControlError):
    """The other end does not speak the protocol of the control socket."""

    number = errno.EPROTO


class ClientClosedError(ControlError):
    """The client was closed, or belongs to the process that has forked."""

    number = errno.ESHUTDOWN


def closed(path: str) -> ClientClosedError:
    """Of a client that was closed."""
    return ClientClosedError(f"{path}: the client is closed: connect anew")


def interrupted(path: str) -> ClientClosedError:
    """Of one whose connection somebody has left in the middle of a message."""
    return ClientClosedError(f"{path}: interrupted in a command: connect anew")


def parents(path: str) -> ClientClosedError:
    """Of one that belongs to the process that has forked."""
    return ClientClosedError(
        f"{path}: the client is the parent process's: connect anew"
    )


# A command that does not exist is a system call that does not exist; EOPNOTSUPP is
# what a command says of itself.
_BY_CLASS: Final = {"CommandNotFound": errno.ENOSYS}


def refusal(error: ErrorInfo) -> OSError:
    """What the caller of a refused command gets: `OSError`, or its subclass."""
    name, text = qmp.errno_name(error.desc)
    number = None if name is None else errnos.NUMBERS.get(name)
    if number is None:
        # Another program's error; all of its text is worth to be told.
        return OSError(_BY_CLASS.get(error.kind, errno.EIO), error.desc)
    return OSError(number, text)
