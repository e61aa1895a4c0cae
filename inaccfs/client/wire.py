"""Finds a daemon's control socket, and sends and receives bytes and fds."""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
import struct
from contextlib import suppress
from typing import Any, Final, TypeAlias

from inaccfs import launch
from inaccfs.client.core import NEGOTIATE, Conversation
from inaccfs.client.errors import CannotConnectError
from inaccfs.control.outlet import Outlet
from inaccfs.errnos import os_error
from inaccfs.errors import NotMountedError
from inaccfs.fuse import finding

_READ_BYTES: Final = 1 << 16
# A reply has at most one fd; several replies may be read at once.
_FDS_SPACE: Final = socket.CMSG_SPACE(16 * 4)
# What send(2) raises after the other end has closed the connection.
_GONE: Final = (BrokenPipeError, ConnectionResetError)

# For one call, through map().
_RECVMSG_ARGUMENTS: Final = (
    (_READ_BYTES,),
    (_FDS_SPACE,),
    (socket.MSG_CMSG_CLOEXEC,),
)

# What recvmsg() has returned.
Inbox: TypeAlias = list[tuple[bytes, list[tuple[int, int, bytes]], int, Any]]

_timeval: Final = struct.Struct("ll")

_WHAT_TO_DO: Final = {
    errno.ECONNREFUSED: "its daemon is dead; inaccfs status lists the mounts",
    errno.ENOENT: "the socket has been removed; inaccfs status lists the mounts",
    errno.EACCES: "only root and the mount's owner reach it",
    errno.EAGAIN: "its daemon accepted nobody for "
    f"{finding.DAEMON_SECONDS:.0f} s (stopped?)",
}


def find_socket(target: str | os.PathLike[str]) -> str:
    """The control socket of the mount at *target*, or *target* if it is a socket.

    Raises:
        NotMountedError: it is not one of these.
        InaccfsError: the mount's daemon is dead or stopped.
    """
    path = os.fspath(target)
    try:
        return launch.read_control(path)
    except NotMountedError as exc:
        # A dead daemon's mount is "not mounted", too, and says what to do.
        if type(exc) is not NotMountedError:
            raise
        if _is_socket(path):
            return path
        raise NotMountedError(
            f"{os.path.abspath(path)} is neither an inaccfs mount nor a control socket "
            "(inaccfs status lists the mounts)"
        ) from None


def _is_socket(path: str) -> bool:
    # It may lie in a mount whose daemon is stopped.
    try:
        return finding.ask(
            lambda: stat.S_ISSOCK(os.stat(path).st_mode), finding.DAEMON_SECONDS
        )
    except OSError:
        return False


def dial(path: str) -> tuple[socket.socket, Conversation]:
    """Connect to the control socket at *path* and negotiate.

    Raises:
        ControlError: no daemon answers, admits us, or speaks the protocol.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Not settimeout(): connect(2) of a socket that does not block fails at once
        # while many others connect, and a blocking one waits. See unix(7).
        set_deadline(connection, finding.DAEMON_SECONDS)
        _connect(connection, path)
        conversation = Conversation(path)
        _negotiate(connection, conversation, path)
        set_deadline(connection, 0)
    except BaseException:
        connection.close()
        raise
    return connection, conversation


def _connect(connection: socket.socket, path: str) -> None:
    try:
        connection.connect(path)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        advice = _WHAT_TO_DO.get(exc.errno or 0)
        raise CannotConnectError(
            f"cannot connect to {path}: {reason}" + (f": {advice}" if advice else "")
        ) from None


def _negotiate(
    connection: socket.socket, conversation: Conversation, path: str
) -> None:
    try:
        while not conversation.greeted and conversation.ended is None:
            conversation.feed(*receive(connection))
        call = conversation.start(NEGOTIATE)
        send_all(Outlet(connection), conversation)
        while not call.done:
            conversation.feed(*receive(connection))
    except BlockingIOError:
        raise CannotConnectError(
            f"{path}: no greeting came within {finding.DAEMON_SECONDS:.0f} s; is it an "
            "inaccfs daemon's control socket, and is the daemon running?"
        ) from None
    call.result()


def set_deadline(connection: socket.socket, seconds: float) -> None:
    """Limit how long its system calls may wait; 0 means no limit."""
    value = _timeval.pack(int(seconds), int(seconds % 1 * 1_000_000))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, value)


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Read the available bytes and their fds; no bytes at the end.

    Raises:
        BlockingIOError: there is nothing, and the socket does not block.
    """
    inbox: Inbox = []
    read(connection, inbox)
    return take(inbox)


def read(connection: socket.socket, inbox: Inbox) -> None:
    """As `receive`, but the data is in *inbox* even if this is interrupted."""
    try:
        # No Python between the two: a signal's handler runs before or after them.
        inbox.extend(map(connection.recvmsg, *_RECVMSG_ARGUMENTS))
    except BlockingIOError:
        raise
    except OSError:
        # It was reset, or another thread has shut it down: both are the end.
        inbox.append((b"", [], 0, None))


def take(inbox: Inbox) -> tuple[bytes, list[int]]:
    """Take the data that was read first, and its fds."""
    data, ancillary, _, _ = inbox.pop(0)
    return data, _fds_in(ancillary) if ancillary else []


def _fds_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def send_all(outlet: Outlet, conversation: Conversation) -> None:
    """Send all messages through an outlet that blocks.

    Raises:
        BlockingIOError: there was no room within `set_deadline`.
        OSError: an fd cannot be sent.
    """
    outgoing = conversation.take_outgoing()
    if not outgoing:
        return
    # Nothing waits in the outlet: what is not sent here is dropped below.
    if len(outgoing) == 1:
        try:
            outlet.send(*outgoing[0])
        except _GONE:
            return
        if not outlet.waiting:
            return
    else:
        outlet.extend(outgoing)
    try:
        if not flush(outlet):
            raise os_error(errno.EAGAIN)
    finally:
        if outlet:
            # What is not sent by now never will be: a message may be cut.
            outlet.close()


def flush(outlet: Outlet) -> bool:
    """As `Outlet.flush`, but it is not an error if the daemon has ended.

    Its last messages are still to be read.
    """
    try:
        return outlet.flush()
    except _GONE:
        outlet.close()
        return True


def shut_down(connection: socket.socket) -> None:
    """Wake the threads that wait in a system call on it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
