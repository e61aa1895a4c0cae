"""The daemon's own mount, from when it is made until it is unmounted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from inaccfs import mountinfo
from inaccfs.errors import UnmountError
from inaccfs.fuse import finding, unmounting

if TYPE_CHECKING:
    from inaccfs.mountinfo import MountInfo

log = logging.getLogger(__name__)


class OwnMount:
    """A mount by its numbers: it, or a directory above it, may be moved."""

    def __init__(self, mount: MountInfo) -> None:
        self._mount: Final = mount
        # In the daemon: whether the kernel has ended the connection, after an unmount
        # or an abort.
        self.lost = False

    def find(self) -> MountInfo | None:
        """Where it is now; None if it has been unmounted."""
        mount = unmounting.find_own(self._mount)
        if mount is None:
            return None
        # The numbers of a mount are reused after it is unmounted. Ours would be dead.
        if self.lost and not is_covered(mount) and not finding.is_dead(mount.path):
            return None
        return mount

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


def is_covered(mount: MountInfo) -> bool:
    """Whether something else is mounted on top, which would be unmounted instead."""
    return mountinfo.topmost(mount.path) != mount


def why_covered(mount: MountInfo) -> str:
    """What to do about a mount that stays because another one covers it."""
    return (
        f"{mount.path} is covered by another mount and stays: umount {mount.path}, and "
        "then inaccfs umount"
    )
