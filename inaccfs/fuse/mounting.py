"""Mounts, with and without root."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs import mountcalls
from inaccfs.errors import MountError, OptionError, UnmountError, not_started
from inaccfs.fuse import unmounting
from inaccfs.fuse.finding import FSTYPE, is_dead, mounts
from inaccfs.words import natural, quoted

if TYPE_CHECKING:
    from inaccfs.fuse.mountpoint import Mountpoint
    from inaccfs.mountinfo import MountInfo

DEVICE: Final = "/dev/fuse"

_FLAGS: Final = {
    "ro": mountcalls.MS_RDONLY,
    "sync": 16,
    "dirsync": 128,
    "nosymfollow": 256,
    "noatime": mountcalls.MS_NOATIME,
    "nodiratime": mountcalls.MS_NODIRATIME,
    "relatime": 1 << 21,
    "strictatime": mountcalls.MS_STRICTATIME,
    "lazytime": 1 << 25,
}

# fusermount3 does not know these. They concern atime, which the backing keeps.
_NOT_FOR_FUSERMOUNT: Final = ("relatime", "strictatime", "lazytime")

# Passed by mount(8) or fstab, or true of every inaccfs mount anyway.
_IGNORED: Final = frozenset(
    {
        *("defaults", "rw", "auto", "noauto", "nofail", "user", "nouser", "users"),
        *("owner", "group", "_netdev", "async", "atime", "diratime", "norelatime"),
        *("nosuid", "nodev", "noexec", "default_permissions", "nostrictatime"),
        *("nolazytime", "symfollow", "silent", "loud"),
    }
)
_IGNORED_PREFIXES: Final = ("x-", "X-", "comment=")

# These have a value. The kernel gets them as they are.
_PASSED: Final = ("max_read", "context", "fscontext", "defcontext", "rootcontext")


# An unsigned int of the kernel.
_MOST_READ: Final = (1 << 32) - 1


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
        """Add one option as written after -o.

        Raises:
            OptionError: inaccfs does not have this option.
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
            if key == "max_read":
                _check_max_read(value)
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
            raise OptionError(
                f"unknown mount option {quoted(option)}: see inaccfs mount -h"
            )

    @property
    def noatime_directories(self) -> bool:
        """Whether reading a directory leaves its atime unchanged."""
        if self.flags & mountcalls.MS_NODIRATIME:
            return True
        return bool(self.flags & mountcalls.MS_NOATIME) and not (
            self.flags & mountcalls.MS_STRICTATIME
        )

    def names(self) -> list[str]:
        """The options that go to the kernel by name, root or not."""
        allow_other = ["allow_other"] if self.allow_other else []
        return ["default_permissions", *allow_other, *self.passed]


def _check_max_read(value: str) -> None:
    number = natural(value)
    if number is None or number > _MOST_READ:
        raise OptionError(
            f"max_read {quoted(value)} is not a number of bytes: give {_MOST_READ} or "
            "less"
        )


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


class NewMount(NamedTuple):
    """A mount that `mount` has made."""

    # The /dev/fuse fd, non-blocking. Closing it ends the connection.
    fuse: int
    info: MountInfo


def mount(mountpoint: Mountpoint, options: FuseOptions) -> NewMount:
    """Mount a new connection on *mountpoint*.

    Root calls mount(2); others run fusermount3. If this fails, no mount is left.

    Raises:
        MountError: it was refused; the message says what would help.
    """
    _check_device()
    before = mounts()
    with ExitStack() as undo:
        if os.geteuid() == 0:
            fuse = _mount_as_root(mountpoint, options, undo)
        else:
            fuse = _mount_as_user(mountpoint, options, before, undo)
        info = mountpoint.check(_device_of(fuse))
        os.set_blocking(fuse, False)
        undo.pop_all()
    return NewMount(fuse, info)


def _device_of(fuse: int) -> str | None:
    """The "major:minor" of a connection's file system; None where fdinfo lacks it."""
    try:
        with open(f"/proc/self/fdinfo/{fuse}", encoding="ascii") as lines:
            found = dict(line.split(maxsplit=1) for line in lines)
    except OSError:
        return None
    number = found.get("fuse_connection:")
    # A dev_t of the kernel, see linux/kdev_t.h.
    return None if number is None else f"{int(number) >> 20}:{int(number) & 0xFFFFF}"


def _mount_as_root(
    mountpoint: Mountpoint, options: FuseOptions, undo: ExitStack
) -> int:
    try:
        fuse = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise MountError(
            f"cannot open {DEVICE}: {exc.strerror}; the container must allow the device"
        ) from exc
    undo.callback(os.close, fuse)
    data = [
        f"fd={fuse}",
        "rootmode=40000",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        *options.names(),
    ]
    flags = (
        mountcalls.MS_NOSUID
        | mountcalls.MS_NODEV
        | mountcalls.MS_NOEXEC
        | options.flags
    )
    path = mountpoint.path
    try:
        mountcalls.mount(options.fsname, mountpoint.link, FSTYPE, flags, ",".join(data))
    except OSError as exc:
        if exc.errno == errno.EPERM:
            raise MountError(
                f"no permission to mount on {path}: it needs CAP_SYS_ADMIN"
            ) from exc
        raise MountError(f"cannot mount on {path}: {exc.strerror}") from exc
    undo.callback(_undo_as_root, mountpoint)
    return fuse


def _undo_as_root(mountpoint: Mountpoint) -> None:
    # Do not use the path, which may lead elsewhere by now. It may already be unmounted.
    with suppress(OSError):
        mountcalls.umount(mountpoint.link, mountcalls.MNT_DETACH)


def _mount_as_user(
    mountpoint: Mountpoint,
    options: FuseOptions,
    before: list[MountInfo],
    undo: ExitStack,
) -> int:
    # See util/fusermount.c of libfuse for the protocol: the fd comes over the socket
    # that _FUSE_COMMFD names.
    names = ",".join(
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
                ["fusermount3", "-o", names, "--", "."],
                # fusermount3 turns this into a path again. If the directory is replaced
                # at that moment, the mount is in the wrong place, and we undo it.
                cwd=mountpoint.link,
                env={**os.environ, "_FUSE_COMMFD": str(helpers.fileno())},
                pass_fds=[helpers.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except OSError as exc:
            raise MountError(_why_no_helper(mountpoint.path, exc)) from None
        devices: set[str | None] = set()
        undo.callback(_remove_strays, before, devices)
        helpers.close()
        _, fds, _, _ = socket.recv_fds(ours, 4, 1)
        # Closing it ends the connection: after that _remove_strays() finds it dead.
        for fd in fds:
            undo.callback(os.close, fd)
        _, complaint = helper.communicate()
        devices |= {_device_of(fd) for fd in fds} - {None}
    if helper.returncode == 0 and fds:
        return fds[0]
    last = complaint.strip().splitlines()[-1:] or ["fusermount3 failed"]
    reason = last[0].removeprefix("fusermount3: ")
    if "/dev/fuse: Permission denied" in reason:
        reason += ": chmod 0666 /dev/fuse as root, or mount as root"
    raise MountError(f"cannot mount on {mountpoint.path}: {reason}")


def _why_no_helper(path: str, exc: OSError) -> str:
    """Why fusermount3 could not be started in the directory at *path*."""
    # Popen names what it could not find: the program, or its working directory.
    if exc.filename == "fusermount3":
        if isinstance(exc, FileNotFoundError):
            return "no fusermount3: install the package fuse3, or mount as root"
        return f"cannot run fusermount3: {exc.strerror}"
    if (reason := not_started(exc)) is not None:
        return f"cannot run fusermount3: {reason}"
    return f"cannot mount on {path}: {exc.strerror}"


def _remove_strays(before: list[MountInfo], devices: set[str | None]) -> None:
    """Unmount what fusermount3 has mounted since *before*, wherever it is.

    Our connection was closed, so our mount is dead. If *devices* is empty, nothing else
    is known about it; otherwise a dead mount with another number is not ours.
    """
    for mount in mounts():
        ours = mount.device in devices or not devices
        if ours and mount not in before and is_dead(mount.path):
            with suppress(UnmountError):
                unmounting.unmount(mount, lazy=True)
