"""Undoing mounts, with and without root; and ending a connection by force."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from inaccfs import mountinfo, syscalls
from inaccfs.errors import UnmountError

if TYPE_CHECKING:
    from inaccfs.mountinfo import MountInfo

# For fusermount3, which asks the daemon nothing.
_HELPER_SECONDS: Final = 20.0


def unmount(mounted: MountInfo, *, lazy: bool) -> None:
    """Undo a mount; *lazy* takes the name away now and the rest after the last close.

    Waits for no daemon.

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
                raise UnmountError(_busy(mounted)) from exc
            raise UnmountError(f"cannot unmount {path}: {exc.strerror}") from exc
        return
    try:
        helper = subprocess.run(
            ["fusermount3", "-uz" if lazy else "-u", "--", path],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_HELPER_SECONDS,
        )
    except FileNotFoundError:
        raise UnmountError(
            f"cannot unmount {path}: no fusermount3 (package fuse3)"
        ) from None
    except subprocess.TimeoutExpired:
        raise UnmountError(f"cannot unmount {path}: fusermount3 hangs") from None
    # Where SIGCHLD is ignored there is no status.
    if helper.returncode or mounted in mountinfo.read():
        if "busy" in helper.stderr.lower():
            raise UnmountError(_busy(mounted))
        last = helper.stderr.strip().splitlines()[-1:] or ["fusermount3 failed"]
        raise UnmountError(
            f"cannot unmount {path}: {last[0].removeprefix('fusermount3: ')}"
        )


def _busy(mounted: MountInfo) -> str:
    path = mounted.path
    for other in mountinfo.read():
        if other.parent == mounted.number:
            return (
                f"{path} is busy: umount {other.path}, which is mounted in it, or "
                "inaccfs umount --lazy"
            )
    return (
        f"{path} is busy: close what is open there (fuser -vm {path}), or inaccfs "
        "umount --lazy"
    )


def find_own(own: MountInfo) -> MountInfo | None:
    """What has the numbers of the mount *own* now."""
    for mount in mountinfo.read():
        if (mount.number, mount.device) == (own.number, own.device):
            return mount
    return None


def abort(mounted: MountInfo) -> bool:
    """End a connection whose daemon does not: all who wait for it get ECONNABORTED.

    By fusectl where that is mounted, which lets the mount's owner do it; else by
    MNT_FORCE, for root. See Documentation/filesystems/fuse/fuse.rst of the kernel.
    Returns False if this caller cannot.
    """
    for place in mountinfo.read():
        if place.fstype == "fusectl":
            with suppress(OSError), open(_switch(place.path, mounted), "wb") as switch:
                switch.write(b"1\n")
                return True
    # It says EPERM to whoever is not root where the mount was made.
    try:
        syscalls.umount(mounted.path, syscalls.MNT_FORCE | syscalls.UMOUNT_NOFOLLOW)
    except OSError as exc:
        # It has been aborted, and somebody is still in it.
        return exc.errno == errno.EBUSY
    return True


def how_to_abort(mounted: MountInfo) -> str:
    """What root can type to the effect of `abort`."""
    return f"echo 1 > {_switch('/sys/fs/fuse/connections', mounted)}"


def _switch(fusectl: str, mounted: MountInfo) -> str:
    major, _, minor = mounted.device.partition(":")
    return f"{fusectl}/{int(major) << 20 | int(minor)}/abort"
