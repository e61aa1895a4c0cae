"""The daemon's own mount, from when it is made until it is unmounted."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from inaccfs import mountcalls, mountinfo
from inaccfs.errors import UnmountError
from inaccfs.fuse import finding, unmounting

if TYPE_CHECKING:
    from inaccfs.mountinfo import MountInfo

log = logging.getLogger(__name__)


class OwnMount:
    """A mount by its numbers: it, or a directory above it, may be moved."""

    def __init__(self, mount: MountInfo) -> None:
        self._mount: Final = mount
        self._unique: Final = _unique_number(mount.path)
        # In the daemon: whether the kernel has ended the connection, after an unmount
        # or an abort.
        self.lost = False

    def find(self) -> MountInfo | None:
        """Where it is now; None if it has been unmounted."""
        mount = unmounting.find_own(self._mount)
        if mount is None:
            return None
        # The numbers of a mount are reused after it is unmounted.
        unmounted = (
            None if self._unique is None else mountcalls.is_mount_gone(self._unique)
        )
        if unmounted is None:
            # Before Linux 6.8: our mount would be dead, so a live one is another.
            unmounted = (
                self.lost and not is_covered(mount) and not finding.is_dead(mount.path)
            )
        return None if unmounted else mount

    def unmount(self) -> None:
        """In the daemon, after the loop has ended: unmount.

        Lazily: files that are still open give errors from now on.
        """
        mount = self.find()
        if mount is None:
            return
        if is_covered(mount):
            log.warning("%s", why_covered(mount))
            return
        try:
            unmounting.unmount(mount, lazy=True)
        except UnmountError as exc:
            log.error("%s", exc)  # noqa: TRY400


def _unique_number(path: str) -> int | None:
    with suppress(OSError):
        return mountcalls.unique_mount_number(path)
    return None


def is_covered(mount: MountInfo) -> bool:
    """Whether something else is mounted on top, which would be unmounted instead.

    A mount that was removed meanwhile is not covered.
    """
    topmost = mountinfo.topmost(mount.path)
    return topmost is not None and topmost.number != mount.number


def why_covered(mount: MountInfo) -> str:
    """A hint about a mount that stays because another one covers it."""
    return (
        f"{mount.path} is covered by another mount and stays: umount {mount.path}, and "
        "then inaccfs umount"
    )
