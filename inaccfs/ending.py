"""Ends a mount from another process: `inaccfs umount`.

No function here waits for a daemon without a limit. A child process asks it: a daemon
that stops during a question leaves the asker in the kernel, where even SIGKILL does not
end it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, Self

from inaccfs import children, runtime
from inaccfs.backing.fallback import remove_fallbacks
from inaccfs.errors import (
    BusyError,
    DeadDaemonError,
    MountError,
    NoAnswerError,
    UnmountError,
)
from inaccfs.fuse import finding, unmounting
from inaccfs.syscalls import peer_credentials

if TYPE_CHECKING:
    from inaccfs.mountinfo import MountInfo

# How long a daemon may take to answer, if a wrong guess does no harm.
_QUICK_ANSWER_SECONDS: Final = 1.0

# How long a daemon may take to end if it is busy all the time.
_STOP_SECONDS: Final = 60.0

NOTICE_SECONDS: Final = 0.5
"""How long a daemon takes to notice that its mount was removed, and usually to end."""

_ENDING_SECONDS: Final = 2.0

# How often to try again to unmount a mount that is in use, and the time between.
_BUSY_TIMES: Final = 5
_BUSY_SECONDS: Final = 0.1


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
    _refuse_below_silent(found)
    message: str | None
    try:
        control = _ask(found, _QUICK_ANSWER_SECONDS if lazy else finding.DAEMON_SECONDS)
    except DeadDaemonError:
        message = _unmount_dead(found, lazy=lazy)
    except NoAnswerError:
        message = _detach_silent(found) if lazy else _end_silent(found)
    else:
        message = _unmount_living(found, control, lazy=lazy)
    # A daemon that was killed leaves these.
    remove_fallbacks(runtime.fallback_name(found.path))
    return message


def _refuse_below_silent(found: MountInfo) -> None:
    """Refuse a mount that is in one of ours whose daemon does not answer.

    The kernel would ask that one for each name on the way.
    """
    for above in finding.above(found):
        try:
            _ask(above, _QUICK_ANSWER_SECONDS)
        except (DeadDaemonError, NoAnswerError) as exc:
            raise UnmountError(
                f"{found.path} is in another mount: {exc}: inaccfs umount --lazy "
                f"{above.path} unmounts both"
            ) from None


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
    owner = (mounted.option(name) or "0" for name in ("user_id", "group_id"))
    with children.starting(f"a process that asks the daemon of {path}", UnmountError):
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
        assert child.stdout is not None
        child.stdout.close()
        children.kill(child)
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
        """Raises `OSError` if nobody listens, or from outside our PID namespaces."""
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
        return children.wait_readable(self._fd, seconds)

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


def _detach(found: MountInfo, *, lazy: bool) -> None:
    """Unmount. Another `inaccfs umount` may use the mount for a moment: see `_ask`."""
    for _ in range(_BUSY_TIMES):
        with suppress(BusyError):
            unmounting.unmount(found, lazy=lazy)
            return
        time.sleep(_BUSY_SECONDS)
    unmounting.unmount(found, lazy=lazy)


# --- three kinds of daemons ---------------------------------------------------


def _unmount_living(
    found: MountInfo, control: bytes | None, *, lazy: bool
) -> str | None:
    with ExitStack() as stack:
        daemon = None if lazy else _daemon_at(control)
        if daemon is not None:
            stack.enter_context(daemon)
        copies = _copies(found)
        _detach(found, lazy=lazy)
        if daemon is None:
            goes_on = "its daemon goes on"
            return None if lazy else _describe_copies(found, copies, goes_on)
        goes_on = f"its daemon {daemon.pid} goes on"
        deadline = time.monotonic() + _STOP_SECONDS
        greetings = 0
        while not daemon.has_ended(NOTICE_SECONDS):
            if description := _describe_copies(found, copies, goes_on):
                return description
            # The daemon may not have noticed the unmount yet. It notices it before it
            # accepts a second connection.
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


def _copies(found: MountInfo) -> list[MountInfo]:
    """The other mounts of a daemon. Ask before the last one is unmounted.

    Later its device number may be that of a mount that somebody has made since.
    """
    return [
        mount
        for mount in finding.mounts()
        if mount.device == found.device and mount.number != found.number
    ]


def _describe_copies(
    found: MountInfo, copies: list[MountInfo], goes_on: str
) -> str | None:
    """The message about *copies* that still exist; None if none does."""
    left = [one.path for copy in copies if (one := unmounting.find_own(copy))]
    if not left:
        return None
    return (
        f"{found.path} is unmounted; {goes_on}, because the mount has copies: "
        f"{', '.join(left)}"
    )


def _unmount_dead(found: MountInfo, *, lazy: bool) -> str:
    _detach(found, lazy=lazy)
    log = runtime.log_path(found.path)
    with suppress(OSError, MountError):
        # The socket and the log may be those of a mount in another mount namespace.
        is_dead = runtime.remove_dead_socket(runtime.control_path(found.path, None))
        # Leave a log with text for the user to read.
        if is_dead and os.stat(log).st_size == 0:
            os.unlink(log)
    return f"{found.path} is unmounted; its daemon was dead"


def _detach_silent(found: MountInfo) -> str:
    unmounting.unmount(found, lazy=True)
    return (
        f"{found.path} is unmounted; its daemon does not answer, so processes "
        "with open files there wait until it goes on or is killed (or: "
        f"{unmounting.how_to_abort(found)})"
    )


def _end_silent(found: MountInfo) -> str | None:
    """Unmount, and abort the connection of a daemon that does not answer.

    Then calls that wait for it fail.
    """
    if copies := _copies(found):
        # This command must not remove the others.
        _detach(found, lazy=False)
        goes_on = "its daemon does not answer, but stays"
        return _describe_copies(found, copies, goes_on)
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
            # One that is stopped neither ends nor serves. One that answers is another
            # mount's, in another mount namespace.
            if children.is_stopped(daemon.pid) or not (
                daemon.has_ended(_ENDING_SECONDS) or daemon.serves()
            ):
                message += (
                    f"; {daemon.pid} is still there with its memory: kill -CONT "
                    f"{daemon.pid} lets it end if it is stopped, kill -KILL "
                    f"{daemon.pid} ends it"
                )
    return message
