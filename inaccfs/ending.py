"""Ending a mount from another process: `inaccfs umount`.

No function here waits for a daemon without a limit. A child process asks it: a daemon
that stops during a question leaves the asker in the kernel, where even SIGKILL does not
end it.
"""

from __future__ import annotations

import os
import select
import socket
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
from inaccfs.fuse import finding, unmounting
from inaccfs.syscalls import peer_credentials

if TYPE_CHECKING:
    from inaccfs.mountinfo import MountInfo

# How long a daemon may take to answer. An abort is felt by all
# users of the mount.
_ANSWER_SECONDS: Final = 10.0
# The same where a wrong guess does no harm.
_QUICK_ANSWER_SECONDS: Final = 1.0

_STOP_SECONDS: Final = 60.0
# A daemon usually ends within this time. After it we look whether it will end at all.
_NOTICE_SECONDS: Final = 0.5
_ENDING_SECONDS: Final = 2.0


def unmount(mountpoint: str, *, lazy: bool) -> str | None:
    """Undo a mount and wait for its daemon, so that the memory is free on return.

    If the daemon does not answer, its connection is aborted. With *lazy* it is not: the
    mount disappears, but open files stay usable.

    Returns a line for the user: the daemon was dead, did not answer, or goes on because
    the mount has copies. None if there is nothing to say.

    Raises:
        InaccfsError: there is no mount, or it is in use.
    """
    found = finding.find(mountpoint)
    message: str | None
    try:
        control = _ask(found, _QUICK_ANSWER_SECONDS if lazy else _ANSWER_SECONDS)
    except DeadDaemonError:
        message = _unmount_dead(found, lazy=lazy)
    except NoAnswerError:
        message = _detach_silent(found) if lazy else _end_silent(found)
    else:
        message = _unmount_living(found, control, lazy=lazy)
    # A daemon that was killed leaves these.
    remove_fallbacks(runtime.fallback_name(found.path))
    return message


# --- asking -------------------------------------------------------------------

# The program of the child, which may hang for ever. Its answer begins with an errno.
_QUESTION: Final = """
import os, sys
try:
    # The mount of a user admits that user only, and not even root.
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
    """Ask the daemon of a mount for the path of its control socket.

    Returns None if it answers with an error, which shows that it lives: the mount is a
    bind mount of a directory, which has no such xattr.

    Raises:
        DeadDaemonError: the daemon is dead.
        NoAnswerError: it has not answered in time.
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
            # A child that hangs in the kernel cannot end.
            child.wait(_QUICK_ANSWER_SECONDS)
    # Do not use the exit status: it is lost where SIGCHLD is ignored.
    number, _, control = answer.partition(b" ")
    if number == b"0":
        return control
    if number and finding.means_dead(OSError(int(number), "")):
        raise DeadDaemonError(f"{path}: its daemon is dead")
    return None


class _Daemon:
    """The process at the other end of a control socket."""

    def __init__(self, control: str | bytes) -> None:
        """Raises `OSError` if nobody listens, or out of our PID namespaces."""
        self._control = control
        with self._connect() as connection:
            # The pid of the process that called listen(2), in our PID namespace; 0 if
            # it has none there. The daemon itself may know another number.
            self.pid: Final = peer_credentials(connection).pid
        self._fd = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # This also limits connect(2), which waits while the backlog is full.
            connection.settimeout(_QUICK_ANSWER_SECONDS)
            connection.connect(self._control)
        except BaseException:
            connection.close()
            raise
        return connection

    def has_ended(self, seconds: float) -> bool:
        """Wait until the process has ended; False if it has not in time."""
        return wait_readable(self._fd, seconds)

    def serves(self) -> bool:
        """Whether the daemon still accepts connections. It stops that when it ends."""
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
    """Wait until *fd* has data or is at its end; False if it is not in time."""
    # select(2) takes no fd above 1023.
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
        return None if lazy else _describe_copies(found, "its daemon goes on")
    with daemon:
        goes_on = f"its daemon {daemon.pid} goes on"
        deadline = time.monotonic() + _STOP_SECONDS
        greetings = 0
        while not daemon.has_ended(_NOTICE_SECONDS):
            if copies := _describe_copies(found, goes_on):
                return copies
            # The daemon may not have noticed yet that the mount has gone. It notices
            # before it accepts a second connection.
            greetings += daemon.serves()
            if greetings > 1:
                return (
                    f"{found.path} is unmounted; {goes_on}, because the mount has "
                    "copies in another mount namespace (a container?), or was "
                    "unmounted lazily elsewhere"
                )
            if time.monotonic() > deadline:
                raise UnmountError(
                    f"{found.path} is unmounted, but its daemon {daemon.pid} is still "
                    f"there after {_STOP_SECONDS:.0f} s: see its log"
                )
    return None


def _describe_copies(found: MountInfo, goes_on: str) -> str | None:
    copies = [mount.path for mount in finding.mounts() if mount.device == found.device]
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
        # A log with text in it is for the user to read.
        if os.stat(log).st_size == 0:
            os.unlink(log)
    return f"{found.path} is unmounted; its daemon was dead"


def _detach_silent(found: MountInfo) -> str:
    unmounting.unmount(found, lazy=True)
    return (
        f"{found.path} is unmounted; its daemon does not answer, so processes "
        "with open files there wait until it goes on or is killed (or: "
        f"{unmounting.how_to_abort(found)})"
    )


def _end_silent(found: MountInfo) -> str:
    """Unmount, and abort the connection of a daemon that does not answer.

    Calls that wait for it fail then.
    """
    daemon = None
    with suppress(MountError):
        # The default path: the daemon does not answer the question for its own.
        daemon = _daemon_at(runtime.control_path(found.path, None))
    aborted = unmounting.abort(found)
    # MNT_FORCE may have unmounted it already.
    if unmounting.find_own(found) is not None:
        unmounting.unmount(found, lazy=True)
    message = f"{found.path} is unmounted; its daemon did not answer"
    if aborted:
        message += ", so its connection is aborted"
    else:
        message += (
            ", and only root can abort its connection "
            f"({unmounting.how_to_abort(found)})"
        )
    if daemon is not None:
        with daemon:
            if not daemon.has_ended(_ENDING_SECONDS):
                message += (
                    f"; {daemon.pid} is still there with its memory: kill -CONT "
                    f"{daemon.pid} lets it end if it is stopped, kill -KILL "
                    f"{daemon.pid} ends it"
                )
    return message
