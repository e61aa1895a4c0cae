"""Mounting and unmounting, with and without root; what mountinfo tells of mounts."""

from __future__ import annotations

import errno
import os
import queue
import socket
import stat
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from inaccfs import mountinfo, syscalls
from inaccfs.errors import MountError, NotMountedError, OptionError, UnmountError

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.mountinfo import MountInfo

T = TypeVar("T")

DEVICE: Final = "/dev/fuse"
FSTYPE: Final = "fuse.inaccfs"

_ANSWER_SECONDS: Final = 5.0

_FLAGS: Final = {
    "ro": syscalls.MS_RDONLY,
    "sync": 16,
    "dirsync": 128,
    "nosymfollow": 256,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": 1 << 21,
    "strictatime": syscalls.MS_STRICTATIME,
    "lazytime": 1 << 25,
}

# fusermount3 does not know these. They are about times of access, which are the
# backing's to keep.
_NOT_FOR_FUSERMOUNT: Final = ("relatime", "strictatime", "lazytime")

# Said by mount(8), by fstab, or true of every inaccfs mount anyway.
_IGNORED: Final = frozenset(
    {
        *("defaults", "rw", "auto", "noauto", "nofail", "user", "nouser", "users"),
        *("owner", "group", "_netdev", "async", "atime", "diratime", "norelatime"),
        *("nosuid", "nodev", "noexec", "default_permissions", "nostrictatime"),
        *("nolazytime", "symfollow", "silent", "loud"),
    }
)
_IGNORED_PREFIXES: Final = ("x-", "X-", "comment=")

# With a value, handed to the kernel as they are.
_PASSED: Final = ("max_read", "context", "fscontext", "defcontext", "rootcontext")


@dataclass(slots=True)
class FuseOptions:
    """Options of the mount itself, as FUSE users know them."""

    allow_other: bool = False
    fsname: str = "inaccfs"
    # MS_* of mount(2), and the same by name for fusermount3.
    flags: int = 0
    flag_names: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def take(self, option: str) -> None:
        """Add one option as written behind -o.

        Raises:
            OptionError: there is no such option here.
        """
        key, _, value = option.partition("=")
        if option in _IGNORED or option.startswith(_IGNORED_PREFIXES):
            return
        if option == "allow_other":
            self.allow_other = True
        elif option in _FLAGS:
            self.flags |= _FLAGS[option]
            if option not in _NOT_FOR_FUSERMOUNT:
                self.flag_names.append(option)
        elif key == "fsname" and value:
            self.fsname = value
        elif key in _PASSED and value:
            self.passed.append(option)
        elif option in ("suid", "dev", "exec"):
            raise OptionError(
                f"option {option}: an inaccfs mount is always nosuid, nodev and noexec"
            )
        elif option == "allow_root":
            raise OptionError(
                "option allow_root: root is let in anyway; for others too, allow_other"
            )
        elif option == "auto_unmount":
            raise OptionError(
                "option auto_unmount: the daemon unmounts when it ends; "
                "after a SIGKILL, inaccfs umount"
            )
        else:
            raise OptionError(f"unknown mount option {option!r}: see inaccfs mount -h")

    @property
    def noatime_directories(self) -> bool:
        """Whether to read a directory does not set its time of access."""
        if self.flags & syscalls.MS_NODIRATIME:
            return True
        return bool(self.flags & syscalls.MS_NOATIME) and not (
            self.flags & syscalls.MS_STRICTATIME
        )

    def names(self) -> list[str]:
        """The options that go to the kernel by name, root or not."""
        allow_other = ["allow_other"] if self.allow_other else []
        return ["default_permissions", *allow_other, *self.passed]


def mounts() -> list[MountInfo]:
    """All inaccfs mounts that this process can see, oldest first."""
    return [mount for mount in mountinfo.read() if mount.fstype == FSTYPE]


def resolve(path: str) -> str:
    """An absolute path without links, as mountinfo has it.

    Only the parent is resolved by the kernel: the mountpoint itself may belong to a
    daemon that is dead, or to the one that asks.
    """
    parent, name = os.path.split(os.path.abspath(path))
    resolved = os.path.join(os.path.realpath(parent), name)
    if mountinfo.topmost(resolved) is None and os.path.islink(resolved):
        return os.path.realpath(resolved)
    return resolved


def find(path: str) -> MountInfo:
    """The inaccfs mount at *path*.

    Raises:
        NotMountedError: there is none.
    """
    wanted = resolve(path)
    topmost = mountinfo.topmost(wanted)
    if topmost is None or topmost.fstype != FSTYPE:
        raise NotMountedError(
            f"{wanted} is not an inaccfs mount (inaccfs status lists them)"
        )
    return topmost


def device_at(path: str) -> str:
    """The "major:minor" of what was just mounted at *path*, without touching it."""
    topmost = mountinfo.topmost(path)
    if topmost is None:
        raise MountError(f"{path} was mounted and has gone again: try once more")
    return topmost.device


def ask(question: Callable[[], T], seconds: float) -> T:
    """Call what waits for the daemon of a mount; not longer than *seconds*.

    Raises:
        TimeoutError: no answer in time: it is stopped.
        OSError: what *question* raised.
    """
    answers: queue.SimpleQueue[T | OSError] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(question())
        except OSError as exc:
            answers.put(exc)

    # A thread that waits for a stopped daemon cannot be ended, only left behind.
    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def means_dead(exc: OSError) -> bool:
    """Whether an answer says that nobody is behind the mount any more."""
    return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def is_dead(path: str) -> bool:
    """Whether the daemon of the mount at *path* is gone; one that is stopped is not.

    Attributes may be remembered by the kernel for a while, so they would not tell.
    """
    try:
        ask(lambda: os.statvfs(path), _ANSWER_SECONDS)
    except OSError as exc:
        return means_dead(exc)
    return False


def check_mountpoint(path: str) -> str:
    """Make sure that *path* can be mounted on; return it resolved.

    Raises:
        MountError: it cannot, and why.
    """
    wanted = resolve(path)
    topmost = mountinfo.topmost(wanted)
    if topmost is not None and topmost.fstype == FSTYPE:
        if is_dead(wanted):
            raise MountError(
                f"mountpoint {wanted} is left from a daemon that died: inaccfs umount "
                f"{wanted}"
            )
        raise MountError(
            f"{wanted} is an inaccfs mount already: inaccfs umount {wanted} first"
        )
    try:
        mode = os.stat(wanted).st_mode
    except FileNotFoundError:
        raise MountError(
            f"mountpoint {wanted} does not exist: mkdir -p {wanted}"
        ) from None
    except OSError as exc:
        raise MountError(f"mountpoint {wanted}: {exc.strerror}") from exc
    if not stat.S_ISDIR(mode):
        raise MountError(f"mountpoint {wanted} is not a directory: name one that is")
    return wanted


def _check_device() -> None:
    try:
        mode = os.stat(DEVICE).st_mode
    except FileNotFoundError:
        raise MountError(
            f"no {DEVICE}: load the module with modprobe fuse, or give the container "
            "that device"
        ) from None
    if not stat.S_ISCHR(mode):
        raise MountError(f"{DEVICE} is not a device: mknod {DEVICE} c 10 229")


def mount(path: str, options: FuseOptions) -> int:
    """Mount a new connection at *path*; return its non-blocking /dev/fuse fd.

    Root calls mount(2); others let fusermount3 do it.

    Raises:
        MountError: it was refused, and what would help.
    """
    _check_device()
    device = _mount_as_root(path, options) if os.geteuid() == 0 else None
    if device is None:
        device = _mount_as_user(path, options)
    os.set_blocking(device, False)
    return device


def _mount_as_root(path: str, options: FuseOptions) -> int:
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise MountError(
            f"cannot open {DEVICE}: {exc.strerror}; the container must allow the device"
        ) from exc
    data = [
        f"fd={device}",
        "rootmode=40000",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        *options.names(),
    ]
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC | options.flags
    try:
        syscalls.mount(options.fsname, path, FSTYPE, flags, ",".join(data))
    except OSError as exc:
        os.close(device)
        if exc.errno == errno.EPERM:
            raise MountError(
                f"no permission to mount on {path}: it needs CAP_SYS_ADMIN"
            ) from exc
        raise MountError(f"cannot mount on {path}: {exc.strerror}") from exc
    return device


def _mount_as_user(path: str, options: FuseOptions) -> int:
    # See util/fusermount.c of libfuse for the protocol: the fd comes over the socket
    # that _FUSE_COMMFD names.
    told = ",".join(
        [
            f"fsname={options.fsname},subtype=inaccfs,nosuid,nodev,noexec",
            *options.names(),
            *options.flag_names,
        ]
    )
    ours, helpers = socket.socketpair()
    with ours, helpers:
        try:
            helper = subprocess.Popen(
                ["fusermount3", "-o", told, "--", path],
                env={**os.environ, "_FUSE_COMMFD": str(helpers.fileno())},
                pass_fds=[helpers.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except FileNotFoundError:
            raise MountError(
                "no fusermount3: install the package fuse3, or mount as root"
            ) from None
        helpers.close()
        _, fds, _, _ = socket.recv_fds(ours, 4, 1)
        _, complaint = helper.communicate()
    if helper.returncode == 0 and fds:
        return fds[0]
    last = complaint.strip().splitlines()[-1:] or ["fusermount3 failed"]
    raise MountError(f"cannot mount on {path}: {last[0].removeprefix('fusermount3: ')}")


def unmount(mounted: MountInfo, *, lazy: bool) -> None:
    """Undo a mount; *lazy* takes the name away now and the rest after the last close.

    Raises:
        UnmountError: it is in use, or not the caller's.
    """
    path = mounted.path
    if os.geteuid() == 0:
        flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
        try:
            syscalls.umount(path, flags)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                raise UnmountError(_busy(path)) from exc
            raise UnmountError(f"cannot unmount {path}: {exc.strerror}") from exc
        return
    try:
        helper = subprocess.run(
            ["fusermount3", "-uz" if lazy else "-u", "--", path],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        raise UnmountError(
            f"cannot unmount {path}: no fusermount3 (package fuse3)"
        ) from None
    if helper.returncode:
        if "busy" in helper.stderr.lower():
            raise UnmountError(_busy(path))
        last = helper.stderr.strip().splitlines()[-1:] or ["fusermount3 failed"]
        raise UnmountError(
            f"cannot unmount {path}: {last[0].removeprefix('fusermount3: ')}"
        )


def _busy(path: str) -> str:
    return (
        f"{path} is busy: close what is open there (fuser -vm {path}), or inaccfs "
        "umount --lazy"
    )


def unmount_own(path: str, device: str) -> None:
    """Take the daemon's own mount away, unless it has gone or is covered.

    Lazily: the daemon is about to end, and whoever has a file open will find that
    out. To be called while the connection lives: *device* is nobody else's then.
    """
    mounted = mountinfo.topmost(path)
    if mounted is not None and mounted.device == device:
        unmount(mounted, lazy=True)


def unmount_dead(path: str, device: str) -> None:
    """Take the daemon's own mount away if its connection was aborted (umount -f)."""
    mounted = mountinfo.topmost(path)
    if mounted is None or mounted.device != device:
        return
    # Not ours if it answers: the number of a mount that has gone is given again.
    if is_dead(path):
        unmount(mounted, lazy=True)
