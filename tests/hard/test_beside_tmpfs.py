"""Names and attributes, call by call, against a tmpfs beside the mount.

Intended differences are listed here, with their reasons and outcomes. The test fails if
anything else differs, and if a listed difference no longer exists.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.hard import calls
from tests.hard.budget import some
from tests.mount import support
from tests.mount.support import NOBODY

if TYPE_CHECKING:
    from tests.hard.census import Ground

pytestmark = pytest.mark.fuse

BY_RULE: Final[dict[str, tuple[object, tuple[str, ...]]]] = {
    "contents are never read nor written": (
        "EINVAL",
        (
            *("read 10 bytes", "pread 10 bytes", "readv 10 bytes"),
            *("write 10 bytes", "pwrite 10 bytes", "writev 10 bytes"),
            "copy_file_range",
        ),
    ),
    "contents are never mapped": ("ENODEV", ("mmap MAP_SHARED", "mmap MAP_PRIVATE")),
    "no call shows where there is data": ("ESPIPE", ("SEEK_DATA and SEEK_HOLE",)),
    "a size is a whole number of pages": (
        "EINVAL",
        tuple(f"ftruncate to {size} bytes" for size in (1, 4095, 5000)),
    ),
    "a size is set once": ("EPERM", ("ftruncate twice",)),
    "memory has no direct I/O": (
        "EINVAL",
        ("open file O_RDWR|O_DIRECT", "open symlink O_RDWR|O_DIRECT"),
    ),
    "F_ADD_SEALS is for files of memfd_create(2)": ("EINVAL", ("F_ADD_SEALS",)),
    "files have no ioctl of their own": ("ENOTTY", ("ioctl FS_IOC_GETFLAGS",)),
    "an access control list would not be obeyed": (
        "EOPNOTSUPP",
        ("an access control list: access", "an access control list: default"),
    ),
    "the kernel lets any file of a FUSE mount be polled": (
        "added",
        ("epoll_ctl a file",),
    ),
}

# These differ only if the caller is not the daemon's own user.
OF_ANOTHER_USER: Final[dict[str, tuple[object, tuple[str, ...]]]] = {
    "the daemon makes a file and then changes its owner, which moves its ctime": (
        [False],
        tuple(
            f"times of {kind} when it is new"
            for kind in ("file", "directory", "symlink", "fifo")
        ),
    ),
}


@pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "a plain user"])
def test_each_call_is_as_on_a_tmpfs_or_differs_by_rule(
    ground: Ground, uid: int
) -> None:
    rules = BY_RULE | (OF_ANOTHER_USER if uid else {})
    listed = {name: result for result, names in rules.values() for name in names}
    # All calls that differ, and as many of the others as there is time for.
    alike = [name for name in calls.names() if name not in listed]
    chosen = [*listed, *some(alike, 300)]
    options = "size=64m,mode=1777,nosuid,nodev,noexec"
    with (
        support.tmpfs(ground.path / "tmpfs", options) as beside,
        support.mounted(allow_other=True, mode=0o1777, size="64m") as mount,
    ):
        os.chmod(mount.path.parent, 0o755)
        wanted = calls.outcomes(beside, uid, chosen)
        found = calls.outcomes(mount.path, uid, chosen)
    (ground.path / "tmpfs").rmdir()

    assert len(wanted) >= 250
    untrue = [name for name, result in listed.items() if wanted[name] == result]
    assert untrue == [], "listed as different, and as on a tmpfs"
    different = [
        f"{name}: {result} on a tmpfs, {found[name]} here"
        for name, result in wanted.items()
        if found[name] != listed.get(name, result)
    ]
    assert different == [], "\n".join(different)
