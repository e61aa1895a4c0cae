"""A directory to mount on, kept open by one fd until the mount is made.

Where others can rename directories, a path may lead elsewhere at any moment. So the
path is resolved once, and everything after that uses the fd.
"""

from __future__ import annotations

import errno
import os
from typing import Final, Self

from inaccfs import mountcalls, mountinfo
from inaccfs.errors import MountError
from inaccfs.fuse import finding


class Mountpoint:
    """A directory without a mount of ours, kept open by an O_PATH fd."""

    def __init__(self, path: str, fd: int) -> None:
        """Take over *fd* of the directory at *path*, an absolute path without links.

        Raises:
            MountError: the directory is not at *path* any more, or is a mountpoint.
        """
        self.path: Final = path
        self.fd: Final = fd
        try:
            self._check_place()
            _refuse_mounted(path)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(cls, path: str) -> Self:
        """Find the directory at *path*, which may be a link.

        Raises:
            MountError: nothing can be mounted on it; the message says why.
        """
        wanted = finding.resolve(path)
        _refuse_mounted(wanted)
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            fd = os.open(wanted, flags)
        except FileNotFoundError:
            raise MountError(
                f"mountpoint {wanted} does not exist: mkdir -p {wanted}"
            ) from None
        except NotADirectoryError as exc:
            if not os.path.isdir(os.path.dirname(wanted)):
                raise MountError(f"mountpoint {wanted}: {exc.strerror}") from None
            if _is_loop(wanted):
                reason = os.strerror(errno.ELOOP)
                raise MountError(f"mountpoint {wanted}: {reason}") from None
            if os.path.islink(wanted):
                raise MountError(_replaced(wanted)) from None
            raise MountError(
                f"mountpoint {wanted} is not a directory: name one that is"
            ) from None
        except OSError as exc:
            raise MountError(f"mountpoint {wanted}: {exc.strerror}") from exc
        return cls(wanted, fd)

    def __enter__(self) -> Self:
        """For a with block, which closes the fd at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the fd."""
        os.close(self.fd)

    @property
    def link(self) -> str:
        """A path that leads to the directory while the fd is open. See proc(5)."""
        return f"/proc/self/fd/{self.fd}"

    def check(self, device: str | None) -> mountinfo.MountInfo:
        """The mount that was just made here; *device* is its number, if known.

        Raises:
            MountError: it is not at the path, or not on the directory itself.
        """
        on = mountcalls.mount_number(self.fd)
        for mount in reversed(finding.mounts()):
            if mount.path == self.path and mount.device == (device or mount.device):
                # It is on the directory itself, and not on another mount.
                if on in (mount.parent, None):
                    return mount
                break
        raise MountError(_replaced(self.path))

    def _check_place(self) -> None:
        if os.readlink(self.link) != self.path:
            raise MountError(_replaced(self.path))


def _is_loop(path: str) -> bool:
    try:
        os.path.realpath(path, strict=True)
    except OSError as exc:
        return exc.errno == errno.ELOOP
    return False


def _replaced(path: str) -> str:
    return (
        f"mountpoint {path} was replaced while it was to be mounted on: try once more, "
        "in a directory where nobody else may rename"
    )


def _refuse_mounted(path: str) -> None:
    topmost = mountinfo.topmost(path)
    if topmost is None or topmost.fstype != finding.FSTYPE:
        return
    if finding.is_dead(path):
        raise MountError(
            f"mountpoint {path} is left from a daemon that died: inaccfs umount {path}"
        )
    raise MountError(f"{path} is an inaccfs mount already: inaccfs umount {path} first")
