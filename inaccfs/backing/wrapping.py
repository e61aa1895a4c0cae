"""A directory of the user's as the backing."""

from __future__ import annotations

import os
import stat

from inaccfs import mountinfo
from inaccfs.backing.root import Backing, memory_file_system, open_root
from inaccfs.errors import BackingError


def wrap(directory: str) -> Backing:
    """Use an existing *directory* on a tmpfs or hugetlbfs.

    Raises:
        BackingError: not a directory, or on another kind of file system.
    """
    path = os.path.abspath(directory)
    try:
        root = open_root(path)
    except OSError as exc:
        raise BackingError(
            f"backing {path}: {exc.strerror}; name a directory on a tmpfs or hugetlbfs"
        ) from exc
    fstype = memory_file_system(root)
    if fstype is None:
        os.close(root)
        raise BackingError(
            f"backing {path} is on {_filesystem_name(path)}: it must be on a tmpfs or "
            "hugetlbfs (leave --backing out for a private tmpfs)"
        )
    backing = Backing.of(root, fstype, path)
    found = os.fstat(root)
    mode = stat.S_IMODE(found.st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        backing.warnings.append(
            f"others can reach the files in {path} itself (mode {mode:04o}): chmod "
            f"0700 {path}, or use a private tmpfs"
        )
    elif found.st_uid != os.geteuid():
        backing.warnings.append(
            f"user {found.st_uid} can reach the files in {path} itself: chown it, or "
            "use a private tmpfs"
        )
    return backing


def _filesystem_name(path: str) -> str:
    """The kernel's name of the file system that holds *path*."""
    found = os.stat(path).st_dev
    device = f"{os.major(found)}:{os.minor(found)}"
    names = [mount.fstype for mount in mountinfo.read() if mount.device == device]
    return names[0] if names else "a file system that is no memory"
