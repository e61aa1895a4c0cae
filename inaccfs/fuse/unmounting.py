"""Unmounts, with and without root; and ends a connection by force."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from inaccfs import mountcalls, mountinfo
from inaccfs.errors import BusyError, UnmountError, not_started

if TYPE_CHECKING:
    from inaccfs.mountinfo import MountInfo

# The time limit of fusermount3, which does not wait for the daemon.
_HELPER_SECONDS: Final = 20.0


def unmount(mounted: MountInfo, *, lazy: bool) -> None:
    """Unmount; *lazy* detaches the mount now and ends it after the last close.

    It does not wait for the daemon. It is not an error if another process has unmounted
    it.

    Raises:
        BusyError: it is in use.
        UnmountError: it belongs to another user.
    """
    path = mounted.path
    if os.geteuid() == 0:
        flags = mountcalls.UMOUNT_NOFOLLOW | (mountcalls.MNT_DETACH if lazy else 0)
        try:
            mountcalls.umount(path, flags)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                raise BusyError(_busy(mounted)) from exc
            if find_own(mounted) is None:
                # Another process, or the daemon itself, has unmounted it just now.
                return
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
            f"cannot unmount {path}: no fusermount3: install the package fuse3"
        ) from None
    except OSError as exc:
        if (reason := not_started(exc)) is None:
            raise
        raise UnmountError(f"cannot unmount {path}: {reason}") from None
    except subprocess.TimeoutExpired:
        raise UnmountError(
            f"cannot unmount {path}: fusermount3 hangs: try inaccfs umount --lazy"
        ) from None
    # If SIGCHLD is ignored the exit status is lost, so check the mount as well.
    left = find_own(mounted)
    if left is not None and (helper.returncode or left == mounted):
        if "busy" in helper.stderr.lower():
            raise BusyError(_busy(mounted))
        if (owner := int(left.option("user_id") or 0)) != os.geteuid():
            # fusermount3 says that it has found no such mount.
            raise UnmountError(
                f"cannot unmount {path}: it is a mount of uid {owner}: only that user "
                "and root may unmount it"
            )
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
    """The mount that has the numbers of *own* now; it may have been moved."""
    for mount in mountinfo.read():
        if (mount.number, mount.device) == (own.number, own.device):
            return mount
    return None


def abort(mounted: MountInfo) -> bool:
    """End the connection of a daemon that hangs: pending calls get ECONNABORTED.

    It uses fusectl, if that is mounted, which the mount's owner may do; otherwise
    MNT_FORCE, for root. See Documentation/filesystems/fuse/fuse.rst of the kernel.
    Returns False if this process is not allowed to.
    """
    for place in mountinfo.read():
        if place.fstype == "fusectl":
            with suppress(OSError), open(_switch(place.path, mounted), "wb") as switch:
                switch.write(b"1\n")
                return True
    # Fails with EPERM unless we are root in the mount's user namespace.
    try:
        mountcalls.umount(
            mounted.path, mountcalls.MNT_FORCE | mountcalls.UMOUNT_NOFOLLOW
        )
    except OSError as exc:
        # EBUSY: the connection has been aborted, but the mount is still in use.
        return exc.errno == errno.EBUSY
    return True


def how_to_abort(mounted: MountInfo) -> str:
    """A shell command for root that does the same as `abort`."""
    return f"echo 1 > {_switch('/sys/fs/fuse/connections', mounted)}"


def _switch(fusectl: str, mounted: MountInfo) -> str:
    major, _, minor = mounted.device.partition(":")
    return f"{fusectl}/{int(major) << 20 | int(minor)}/abort"
