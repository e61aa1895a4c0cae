"""Ending a mount from another process: `inaccfs umount`.

Nothing here waits for a daemon without limit, nor asks it in this process: one that
stops in the middle of a question leaves the asker in the kernel, where not even SIGKILL
ends it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from inaccfs import runtime
from inaccfs.backing.fallback import remove_fallbacks
from inaccfs.errors import (
    DeadDaemonError,
    MountError,
    NoAnswerError,
    UnmountError,
)
from inaccfs.fuse import mounting, unmounting

if TYPE_CHECKING:
    from inaccfs.mountinfo import MountInfo

# How long a daemon may take to answer: a connection that is aborted is lost for all.
_ANSWER_SECONDS: Final = 10.0
# Where nothing is lost by being wrong.
_QUICK_ANSWER_SECONDS: Final = 1.0

_STOP_SECONDS: Final = 60.0
# How long a daemon usually takes to end, at most; then one looks whether it will.
_NOTICE_SECONDS: Final = 0.5
_ENDING_SECONDS: Final = 2.0

_ucred: Final = struct.Struct("=iII")  # pid, uid, gid; see unix(7)


def unmount(mountpoint: str, *, lazy: bool) -> str | None:
    """Undo a mount and wait for its daemon, so that the memory is back on return.

    A daemon that does not answer loses its connection. Not when *lazy*: then the name
    goes, and whatever is open goes on.

    Returns what the user ought to know, in a line: that the daemon was dead or did not
    answer, or that it goes on because the mount has copies.

    Raises:
        InaccfsError: there is no mount, or it is in use.
    """
    found = mounting.find(mountpoint)
    told: str | None
    try:
        control = _ask(found, _QUICK_ANSWER_SECONDS if lazy else _ANSWER_SECONDS)
    except DeadDaemonError:
        told = _unmount_dead(found, lazy=lazy)
    except NoAnswerError:
        told = _detach_silent(found) if lazy else _end_silent(found)
    else:
        told = _unmount_living(found, control, lazy=lazy)
    # What a daemon that was killed could not tidy up.
    remove_fallbacks(runtime.fallback_name(found.path))
    return told


# --- asking -------------------------------------------------------------------

# For a Python of its own, which may be left behind. The answer begins with an errno.
_QUESTION: Final = """
import os, sys
try:
    # A user's mount lets in that user only, not even root.
    uid, gid = map(int, sys.argv[2:])
    if os.geteuid() == 0 and uid:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    answer = b"0 " + os.getxattr(sys.argv[1], "user.inaccfs.control")
except OSError as exc:
    answer = b"%d " % exc.errno
os.write(1, answer)
"""


def _ask(mounted: MountInfo, seconds: float) -> bytes | None:
    """Ask the daemon behind a mount for its control socket.

    Returns None where another answer shows that it lives: the mount is a copy of a
    directory only.

    Raises:
        DeadDaemonError: there is none.
        NoAnswerError: no answer in time.
    """
    path = mounted.path
    options = dict(part.partition("=")[::2] for part in mounted.options.split(","))
    owner = (options.get(name, "0") for name in ("user_id", "group_id"))
    child = subprocess.Popen(
        [sys.executable, "-ISc", _QUESTION, path, *owner],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        answer, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{path}: its daemon does not answer") from None
    finally:
        child.kill()
        assert child.stdout is not None
        child.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            # No longer: it may be unable to end.
            child.wait(_QUICK_ANSWER_SECONDS)
    # Not by its exit status, which is lost where SIGCHLD is ignored.
    number, _, control = answer.partition(b" ")
    if number == b"0":
        return control
    if number and mounting.means_dead(OSError(int(number), "")):
        raise DeadDaemonError(f"{path}: its daemon is dead")
    return None


class _Daemon:
    """The process at the other end of a control socket."""

    def __init__(self, control: str | bytes) -> None:
        """Raises `OSError` if there is none, or it cannot be seen from here."""
        self._control = control
        with self._connect() as connection:
            # Of listen(2), in our numbers; 0 if its process is in none of our
            # namespaces. Not what the daemon says: it may have other numbers.
            credentials = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _ucred.size
            )
        self.pid: int = _ucred.unpack(credentials)[0]
        self._fd = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # connect(2) waits as long for a full backlog.
            connection.settimeout(_QUICK_ANSWER_SECONDS)
            connection.connect(self._control)
        except BaseException:
            connection.close()
            raise
        return connection

    def has_ended(self, seconds: float) -> bool:
        """Wait until it has; False if it stays."""
        return wait_readable(self._fd, seconds)

    def serves(self) -> bool:
        """Whether it still takes peers in, as it does not once it ends."""
        try:
            with self._connect() as connection:
                return bool(connection.recv(1))
        except OSError:
            return False


def _daemon_at(control: str | bytes | None) -> _Daemon | None:
    with suppress(OSError):
        if control:
            return _Daemon(control)
    return None


def wait_readable(fd: int, seconds: float) -> bool:
    """Wait until *fd* has something, or its end; False if it has not in time."""
    # Not select(2), which takes no fd above 1023.
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


# --- three kinds of daemons ---------------------------------------------------


def _unmount_living(
    found: MountInfo, control: bytes | None, *, lazy: bool
) -> str | None:
    daemon = None if lazy else _daemon_at(control)
    unmounting.unmount(found, lazy=lazy)
    if daemon is None:
        return None if lazy else _tell_copies(found, "its daemon goes on")
    with daemon:
        goes_on = f"its daemon {daemon.pid} goes on"
        patience = time.monotonic() + _STOP_SECONDS
        greetings = 0
        while not daemon.has_ended(_NOTICE_SECONDS):
            if copies := _tell_copies(found, goes_on):
                return copies
            # It may be about to notice that the mount has gone. Having taken one in it
            # has, and does not take in the second.
            greetings += daemon.serves()
            if greetings > 1:
                return (
                    f"{found.path} is unmounted; {goes_on}, because the mount has "
                    "copies in another mount namespace (a container?), or was "
                    "unmounted lazily elsewhere"
                )
            if time.monotonic() > patience:
                raise UnmountError(
                    f"{found.path} is unmounted, but its daemon {daemon.pid} is still "
                    f"there after {_STOP_SECONDS:.0f} s: see its log"
                )
    return None


def _tell_copies(found: MountInfo, goes_on: str) -> str | None:
    copies = [mount.path for mount in mounting.mounts() if mount.device == found.device]
    if not copies:
        return None
    return (
        f"{found.path} is unmounted; {goes_on}, because the mount has copies: "
        f"{', '.join(copies)}"
    )


def _unmount_dead(found: MountInfo, *, lazy: bool) -> str:
    unmounting.unmount(found, lazy=lazy)
    with suppress(OSError, MountError):
        os.unlink(runtime.control_path(found.path, None))
    log = runtime.log_path(found.path)
    with suppress(OSError):
        # One that says something is for the user to read.
        if os.stat(log).st_size == 0:
            os.unlink(log)
    return f"{found.path} is unmounted; its daemon was dead"


def _detach_silent(found: MountInfo) -> str:
    unmounting.unmount(found, lazy=True)
    return (
        f"{found.path} is unmounted; its daemon does not answer, so whoever has "
        "something open there waits until it goes on or is killed (or: "
        f"{unmounting.how_to_abort(found)})"
    )


def _end_silent(found: MountInfo) -> str:
    """Take away the mount of a daemon that does not answer, and what waits for it."""
    with suppress(MountError):
        # Where the daemon has it unless told otherwise; it cannot be asked.
        daemon = _daemon_at(runtime.control_path(found.path, None))
    aborted = unmounting.abort(found)
    # MNT_FORCE may have done it already.
    if unmounting.find_own(found) is not None:
        unmounting.unmount(found, lazy=True)
    told = f"{found.path} is unmounted; its daemon did not answer"
    if aborted:
        told += ", so its connection is aborted"
    else:
        told += (
            ", and only root can abort its connection "
            f"({unmounting.how_to_abort(found)})"
        )
    if daemon is not None:
        with daemon:
            if not daemon.has_ended(_ENDING_SECONDS):
                told += (
                    f"; {daemon.pid} is still there with its memory: kill -CONT "
                    f"{daemon.pid} lets it end if it is stopped, kill -KILL "
                    f"{daemon.pid} ends it"
                )
    return told
