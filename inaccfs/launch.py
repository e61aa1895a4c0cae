"""Starting and ending a daemon from another process: `mounted()` and the mount command.

Imports neither trio nor pyfuse3: whoever starts a daemon need not pay for them.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from inaccfs import runtime, streams
from inaccfs.errors import (
    DaemonFailedError,
    DeadDaemonError,
    InaccfsError,
    MountError,
    NoAnswerError,
    NoEntryError,
    NotMountedError,
    UnmountError,
)
from inaccfs.fuse import mounting
from inaccfs.shim.backing import remove_fallbacks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inaccfs.mountinfo import MountInfo
    from inaccfs.status import Status

READY: Final = b"ready\n"
"""What a daemon writes to --ready-fd once its mount can be used."""

_START_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 60.0
_ENDING_SECONDS: Final = 2.0


def start_daemon(
    arguments: Sequence[str], *, stderr: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `inaccfs mount` with *arguments* and return when its mount is ready.

    Raises:
        DaemonFailedError: it ended before that, with a message on *stderr* (or on the
            standard error).
        MountError: it was killed before that.
    """
    ready_read, ready_write = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, ready_read)
        try:
            daemon = subprocess.Popen(
                [
                    # -P: what lies in the current directory is not to be imported.
                    *(sys.executable, "-P", "-m", "inaccfs", "mount", "--foreground"),
                    *("--ready-fd", str(ready_write), *arguments),
                ],
                pass_fds=[ready_write],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                # A Ctrl-C in the terminal is for what runs there, not for the daemon.
                start_new_session=True,
                env=_environment(),
            )
        finally:
            os.close(ready_write)
        readable = _wait_readable(ready_read, _START_SECONDS)
        # The end of the pipe is readable too: nothing here waits for a dead daemon.
        if readable and os.read(ready_read, len(READY)) == READY:
            return daemon
        if not readable:
            daemon.kill()
        daemon.wait()
        if daemon.returncode > 0:
            raise DaemonFailedError("the daemon did not start: see what it says")
        raise MountError(
            f"the daemon did not start within {_START_SECONDS:.0f} s: is the machine "
            "overloaded?"
            if not readable
            else f"the daemon was killed by signal {-daemon.returncode} as it started"
        )


def _environment() -> dict[str, str]:
    """Let the daemon import the very package that starts it."""
    here = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{here}{os.pathsep}{inherited}" if inherited else here,
    }
    # Whoever starts a daemon in the background tells its service manager itself.
    environment.pop("NOTIFY_SOCKET", None)
    return environment


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount that is there for the length of a with block."""

    path: Path
    # Of the daemon.
    pid: int
    # Where its control socket is.
    control: Path
    # The daemon's log, one line an event.
    log: Path
    process: subprocess.Popen[bytes]

    def status(self) -> Status:
        """What the mount says of itself now."""
        return read_status(str(self.path))


def read_status(mountpoint: str) -> Status:
    """Ask the root of a mount for its status.

    Raises:
        NotMountedError: there is no inaccfs mount.
        DeadDaemonError: there is, and its daemon is dead.
        NoAnswerError: its daemon is stopped, or says what we do not understand.
        NoEntryError: it is another user's, who lets nobody else in.
    """
    # Here and not above: whoever only mounts does without msgspec.
    from inaccfs import status

    path = mounting.find(mountpoint).path
    try:
        found = mounting.ask(
            lambda: os.getxattr(path, status.STATUS_XATTR), _ANSWER_SECONDS
        )
    except TimeoutError:
        raise NoAnswerError(
            f"{path}: its daemon does not answer (stopped?); inaccfs umount --lazy "
            f"{path} takes the mount away"
        ) from None
    except OSError as exc:
        if mounting.means_dead(exc):
            raise DeadDaemonError(
                f"{path}: its daemon is dead; inaccfs umount {path} cleans up"
            ) from None
        if isinstance(exc, PermissionError):
            raise NoEntryError(
                f"{path}: {exc.strerror}: the mount is another user's, and without "
                "allow_other"
            ) from None
        raise NoAnswerError(f"{path}: no status: {exc.strerror}") from None
    try:
        return status.decode(found)
    except status.DecodeError as exc:
        raise NoAnswerError(
            f"{path}: its daemon is of another version of inaccfs: {exc}"
        ) from None


@contextmanager
def mounted(
    mountpoint: str | os.PathLike[str] | None = None,
    *,
    backing: str | os.PathLike[str] | None = None,
    size: str | int | None = None,
    huge: str | None = None,
    mode: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    allow_other: bool = False,
    options: str | Sequence[str] = (),
    control: str | os.PathLike[str] | None = None,
    pfn_source: str | None = None,
    ack_timeout: float | None = None,
    semantics: str | None = None,
) -> Iterator[Mount]:
    """A mount with a daemon of its own, taken down at the end whatever happened.

    Without a *mountpoint* it is on a temporary directory. *size* is bytes, or as
    tmpfs(5) has it ("1g"); *ack_timeout* is seconds; *semantics* is a name, or
    "FILE.py:CLASS"; *options* are what goes behind
    -o, where all others can be told, too ("limit=peers=9", "simulated-order=0"). The
    daemon's log is a temporary file for as long as the block lasts.

    Raises:
        MountError: the daemon's own message says why there is no mount.
        InaccfsError: on leaving, when the daemon did not end as it should.
    """
    streams.fill()
    with (
        tempfile.TemporaryDirectory(prefix="inaccfs-") as scratch,
        ExitStack() as stack,
    ):
        if mountpoint is None:
            path = Path(scratch, "mnt")
            path.mkdir()
        else:
            path = Path(mounting.resolve(os.fspath(mountpoint)))
        socket_path = Path(scratch, "control") if control is None else Path(control)
        arguments = ["--control", str(socket_path)]
        for name, value in (
            ("backing", backing),
            ("size", size),
            ("huge", huge),
            ("mode", None if mode is None else f"{mode:o}"),
            ("uid", uid),
            ("gid", gid),
            ("pfn-source", pfn_source),
            ("ack-timeout", ack_timeout),
            ("semantics", semantics),
        ):
            if value is not None:
                arguments += [f"--{name}", str(value)]
        if allow_other:
            arguments.append("--allow-other")
        for option in [options] if isinstance(options, str) else options:
            arguments += ["-o", option]
        # Last of all, also where the daemon never came up or had to be killed: nothing
        # may stay mounted where a directory is about to be removed.
        stack.callback(_unmount_new, str(path), mounting.mounts())
        log = Path(scratch, "log")
        with log.open("wb") as stderr:
            try:
                daemon = start_daemon([*arguments, str(path)], stderr=stderr)
            except DaemonFailedError as exc:
                lines = log.read_text(errors="replace").strip().splitlines()
                told = lines[-1] if lines else str(exc)
                raise MountError(told.removeprefix("inaccfs: ")) from None
        mount = Mount(path, daemon.pid, socket_path, log, daemon)
        stack.push(lambda kind, *_: _take_down(mount, quiet=kind is not None))
        yield mount


def _unmount_new(path: str, before: Sequence[MountInfo]) -> None:
    with suppress(NotMountedError, UnmountError):
        found = mounting.find(path)
        if found not in before:
            mounting.unmount(found, lazy=True)


def _take_down(mount: Mount, *, quiet: bool) -> None:
    """End a mount for good; *quiet* when there is an exception already."""
    try:
        found = mounting.find(str(mount.path))
        try:
            mounting.unmount(found, lazy=False)
        except UnmountError:
            # Something is open. The daemon ends all the same, and with it the rest.
            mounting.unmount(found, lazy=True)
            mount.process.terminate()
    except NotMountedError:
        # Unmounted in the block, and then it ends by itself: a signal could come when
        # there is nobody left to handle it. Or covered by another mount, not ours.
        with suppress(subprocess.TimeoutExpired):
            mount.process.wait(_ENDING_SECONDS)
        mount.process.terminate()
    try:
        status = mount.process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        mount.process.kill()
        status = mount.process.wait()
    if status != 0 and not quiet:
        tail = mount.log.read_text(errors="replace").strip().splitlines()[-1:]
        raise InaccfsError(
            f"the daemon of {mount.path} ended with status {status}: {tail}"
        )


def _wait_readable(fd: int, seconds: float) -> bool:
    """Wait until *fd* has something, or its end; False if it has not in time."""
    # Not select(2), which takes no fd above 1023.
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _wait_for_exit(pid: int, seconds: float) -> bool:
    """Wait until process *pid*, no child of ours, has gone; False if it stays."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return _wait_readable(fd, seconds)
    finally:
        os.close(fd)


def _remove_leftovers(mountpoint: str) -> None:
    with suppress(OSError, MountError):
        os.unlink(runtime.control_path(mountpoint, None))
    log = runtime.log_path(mountpoint)
    with suppress(OSError):
        # One that says something is for the user to read.
        if os.stat(log).st_size == 0:
            os.unlink(log)


def unmount(mountpoint: str, *, lazy: bool) -> None:
    """Undo a mount and wait for its daemon, so that the memory is back on return.

    Raises:
        InaccfsError: there is no mount, or it is in use.
    """
    found = mounting.find(mountpoint)
    pid: int | None = None
    dead = False
    if not lazy:
        try:
            pid = read_status(found.path).pid
        except DeadDaemonError:
            dead = True
        except NoAnswerError:
            # It is unmounted all the same; there is nobody to wait for.
            pid = None
    mounting.unmount(found, lazy=lazy)
    # What a daemon that was killed could not tidy up.
    remove_fallbacks(runtime.fallback_name(found.path))
    if dead:
        _remove_leftovers(found.path)
    if pid is not None and not _wait_for_exit(pid, _STOP_SECONDS):
        raise UnmountError(
            f"{found.path} is unmounted, but its daemon {pid} is still there after "
            f"{_STOP_SECONDS:.0f} s: see its log"
        )
