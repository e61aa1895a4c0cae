"""Starts and ends a daemon from another process: `mounted()` and the mount command.

Imports neither trio nor pyfuse3, which a process that starts a daemon does not need.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from inaccfs import children, runtime, streams
from inaccfs.deferring import Deferred
from inaccfs.ending import NOTICE_SECONDS
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
from inaccfs.fuse import finding, ownmount, unmounting
from inaccfs.fuse.mountpoint import Mountpoint
from inaccfs.fuse.ownmount import OwnMount
from inaccfs.holder import remove_scratch
from inaccfs.runtime import READY, environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inaccfs.mountinfo import MountInfo
    from inaccfs.status import Status

_START_SECONDS: Final = 60.0
# How long a daemon may take to end after a signal.
_ENDING_SECONDS: Final = 1.5


def start_daemon(
    words: Sequence[str],
    mountpoint: Mountpoint,
    *,
    scratch: str | None = None,
    stderr: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `inaccfs mount` with *words* and return when its mount is ready.

    *words* name the *mountpoint*, too; relative paths start at our working directory.

    With *scratch* the mount belongs to this process, and ends with it; the directory
    *scratch* is then removed, too.

    Raises:
        DaemonFailedError: it ended before that, with a message on *stderr* (or on the
            standard error).
        MountError: it was killed before that.
    """
    ready_read, ready_write = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, ready_read)
        # No signal may come between the start and the callback that ends the daemon.
        with ExitStack() as handed, Deferred():
            handed.callback(os.close, ready_write)
            fds = {"--ready-fd": ready_write, "--mountpoint-fd": mountpoint.fd}
            options: list[str] = []
            if scratch is not None:
                # A pidfd stands for the process, and not for the thread or a fork.
                fds["--holder-fd"] = os.pidfd_open(os.getpid())
                handed.callback(os.close, fds["--holder-fd"])
                options = ["--scratch", scratch]
            for name, fd in fds.items():
                options += [name, str(fd)]
            daemon = _spawn([*options, *words], list(fds.values()), stderr)
            stack.callback(children.end, daemon, _ENDING_SECONDS)
        try:
            readable = children.wait_readable(ready_read, _START_SECONDS)
        except KeyboardInterrupt:
            # If the daemon is in an endless loop of the user's file of rules, SIGINT
            # makes it report the line.
            daemon.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(_ENDING_SECONDS)
            raise
        # End of file is readable, too: we do not wait for a dead daemon.
        if readable and os.read(ready_read, len(READY)) == READY:
            # Let the daemon run on.
            stack.pop_all()
            os.close(ready_read)
            return daemon
        if not readable:
            raise MountError(
                f"the daemon did not start within {_START_SECONDS:.0f} s: is the "
                "machine overloaded?"
            )
        daemon.wait()
        # It is 0 where the process ignores SIGCHLD, and after an early SIGTERM.
        if daemon.returncode >= 0:
            raise DaemonFailedError(daemon.returncode)
        raise MountError(
            f"the daemon was killed by signal {-daemon.returncode} as it started: "
            "try again with --foreground"
        )


def _spawn(
    words: Sequence[str], fds: Sequence[int], stderr: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    # -P: import nothing from the current directory.
    command = [sys.executable, "-P", "-m", "inaccfs", "mount", "--foreground", *words]
    # Blocked until the daemon's own code runs: the interpreter would print a traceback.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with children.starting("the daemon", MountError):
            return subprocess.Popen(
                command,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                # Ctrl-C in the terminal must not reach the daemon.
                start_new_session=True,
                env=environment(),
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount that lasts as long as a with block."""

    path: Path
    # The pid of the daemon.
    pid: int
    # The path of its control socket.
    control: Path
    # The daemon's log, one line per event.
    log: Path
    process: subprocess.Popen[bytes]

    def status(self) -> Status:
        """The present status of the mount."""
        return read_status(str(self.path))


def read_status(mountpoint: str) -> Status:
    """Ask the root of a mount for its status.

    Raises:
        NotMountedError: there is no inaccfs mount.
        DeadDaemonError: there is, and its daemon is dead.
        NoAnswerError: its daemon is stopped, or its answer cannot be parsed.
        NoEntryError: it is another user's, without --allow-other.
    """
    # Imported here because mounting does not need msgspec.
    from inaccfs import status

    path = finding.find(mountpoint).path
    found = _read_xattr(path, status.STATUS_XATTR)
    try:
        return status.decode(found)
    except status.DecodeError as exc:
        raise NoAnswerError(
            f"{path}: its daemon is of another version of inaccfs: {exc}"
        ) from None


def read_control(mountpoint: str) -> str:
    """The path of a mount's control socket, not escaped as in its status.

    Raises as `read_status` does.
    """
    from inaccfs import status

    path = finding.find(mountpoint).path
    return os.fsdecode(_read_xattr(path, status.CONTROL_XATTR))


def _read_xattr(path: str, name: str) -> bytes:
    """An xattr of the root of the mount at *path*."""
    try:
        return finding.ask(lambda: os.getxattr(path, name), finding.DAEMON_SECONDS)
    except TimeoutError:
        raise NoAnswerError(
            f"{path}: its daemon does not answer (stopped?); inaccfs umount {path} "
            "takes the mount away"
        ) from None
    except OSError as exc:
        if finding.means_dead(exc):
            raise DeadDaemonError(
                f"{path}: its daemon is dead; inaccfs umount {path} cleans up"
            ) from None
        if isinstance(exc, PermissionError):
            raise NoEntryError(
                f"{path}: {exc.strerror}: the mount is another user's, and without "
                "allow_other"
            ) from None
        raise NoAnswerError(f"{path}: no {name}: {exc.strerror}") from None


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
    """A mount with its own daemon, which is always unmounted at the end.

    It belongs to the process that makes it: however that ends, also by SIGKILL, the
    daemon ends with it. A fork of the process neither keeps the mount nor ends it.
    Without a *mountpoint* it is on a temporary directory. *size* is bytes, or a size of
    tmpfs(5) ("1g"); *ack_timeout* is seconds; *semantics* is a name, or
    "FILE.py:CLASS"; *options* are options for -o, which takes all others, too
    ("limit=peers=9", "simulated-order=0"). The daemon's log is a temporary file, which
    lasts as long as the block.

    Raises:
        MountError: the daemon's own message says why there is no mount.
        InaccfsError: on leaving, when the daemon did not end as it should.
    """
    streams.fill()
    me = os.getpid()
    with ExitStack() as stack:
        scratch = Path(runtime.temporary_directory("inaccfs-"))
        stack.push(lambda kind, *_: _remove(scratch, quiet=kind is not None))
        if mountpoint is None:
            mountpoint = scratch / "mnt"
            mountpoint.mkdir()
            # fusermount3 wants a directory that its user may write to.
            mountpoint.chmod(0o700)
        point = stack.enter_context(Mountpoint.open(os.fspath(mountpoint)))
        path = Path(point.path)
        words = [options] if isinstance(options, str) else list(options)
        # As in `inaccfs mount`, -o takes precedence, and of one name the last one.
        given = dict(word.partition("=")[::2] for word in ",".join(words).split(","))
        chosen = given.get("control", control)
        socket_path = scratch / "control" if chosen is None else Path(chosen)
        if chosen is None and not runtime.fits_socket(str(socket_path)):
            raise MountError(
                f"{scratch} is too long for a control socket: set TMPDIR to a "
                "directory with a shorter path"
            )
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
        for word in words:
            arguments += ["-o", word]
        log = scratch / "log"
        before = finding.mounts()
        with log.open("wb") as stderr, ExitStack() as failed:
            os.fchmod(stderr.fileno(), 0o600)
            # A daemon that was killed during its start may have mounted.
            failed.callback(_unmount_new, str(path), before)
            try:
                arguments.append(point.path)
                daemon = start_daemon(
                    arguments, point, scratch=str(scratch), stderr=stderr
                )
            except DaemonFailedError as exc:
                lines = _lines(log)
                message = lines[-1] if lines else str(exc)
                raise MountError(message.removeprefix("inaccfs: ")) from None
            failed.pop_all()
        mount = Mount(
            path,
            daemon.pid,
            socket_path.absolute(),
            Path(given.get("log", log)).absolute(),
            daemon,
        )
        own = OwnMount(finding.find(str(path)))
        stack.push(lambda kind, *_: _take_down(mount, own, quiet=kind is not None))
        try:
            yield mount
        finally:
            if os.getpid() != me:
                # A fork leaves the block, too, but the mount does not belong to it.
                stack.pop_all()


def _lines(log: Path) -> list[str]:
    """The content of a daemon's log; the daemon, or the user, may have removed it."""
    with suppress(OSError):
        return log.read_text(errors="replace").strip().splitlines()
    return []


def _unmount_new(path: str, before: Sequence[MountInfo]) -> None:
    with suppress(NotMountedError, UnmountError):
        found = finding.find(path)
        if found not in before and finding.is_dead(path):
            unmounting.unmount(found, lazy=True)


def _remove(scratch: Path, *, quiet: bool) -> None:
    in_the_way = remove_scratch(scratch)
    if in_the_way is not None and not quiet:
        raise InaccfsError(
            f"{scratch} stays, because {in_the_way} is still a mount: umount it, and "
            "remove the directory"
        )


def _take_down(mount: Mount, own: OwnMount, *, quiet: bool) -> None:
    """End a mount; *quiet* if there is an exception already."""
    own.lost = mount.process.poll() is not None
    if not _unmount(own) or not _ends_by_itself(mount.process):
        children.end(mount.process, _ENDING_SECONDS)
    # A daemon unmounts as it ends, unless it is killed.
    own.lost = True
    _unmount(own)
    status = mount.process.returncode
    if status != 0 and not quiet:
        if status is None:
            raise InaccfsError(
                f"the daemon of {mount.path}, {mount.pid}, hangs in the kernel and "
                "cannot be killed: the file system that it waits for must answer first"
            )
        tail = _lines(mount.log)[-1:]
        raise InaccfsError(
            f"the daemon of {mount.path} ended with status {status}: {tail}"
        )
    found = own.find()
    if found is not None and ownmount.is_covered(found) and not quiet:
        raise InaccfsError(ownmount.why_covered(found))


def _unmount(own: OwnMount) -> bool:
    """Unmount, unless the mount is covered; returns whether it is unmounted."""
    # None if the block has unmounted it.
    found = own.find()
    if found is None or ownmount.is_covered(found):
        return False
    try:
        unmounting.unmount(found, lazy=False)
    except UnmountError:
        # A file is open. The daemon ends anyway, and the lazy mount with it.
        with suppress(UnmountError):
            unmounting.unmount(found, lazy=True)
        return False
    return True


def _ends_by_itself(daemon: subprocess.Popen[bytes]) -> bool:
    """Wait a little for a daemon without a mount to end; False if it does not.

    It does not end if the mount has copies: bind mounts, or mounts in other namespaces.
    """
    try:
        daemon.wait(NOTICE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True
