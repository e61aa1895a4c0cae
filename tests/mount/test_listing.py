"""Listing directories: each name once, and removals meanwhile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.mount import raw, support
from tests.mount.support import new_file, opened, run

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse


@support.needs_root
def test_a_hundred_thousand_names_are_listed_each_once(scratch: Path) -> None:
    count = 100_000
    with (
        support.tmpfs(
            scratch / "memory", f"size=64m,mode=700,nr_inodes={count + 10}"
        ) as m,
        support.mounted(backing=m) as mount,
    ):
        wanted = {f"name-{number}" for number in range(count)}
        for name in wanted:
            os.mknod(m / name)

        names = os.listdir(mount.path)

        assert len(names) == count
        assert set(names) == wanted


def test_a_removal_while_listing_loses_no_other_name(mount: Mount) -> None:
    names = {f"name-{number}" for number in range(2000)}
    for name in names:
        os.mknod(mount.path / name)
    seen = []
    for entry in os.scandir(mount.path):
        seen.append(entry.name)
        os.unlink(entry.path)

    assert len(seen) == len(names)
    assert set(seen) == names
    assert os.listdir(mount.path) == []


def test_rm_removes_a_tree(mount: Mount) -> None:
    run(
        "sh",
        "-c",
        "mkdir -p t/a/b/c t/d; "
        "for d in t t/a t/a/b t/d; do seq -f $d/%g 400 | xargs touch; done",
        cwd=mount.path,
    )
    assert len(os.listdir(mount.path / "t")) == 402

    run("rm", "-rf", "t", cwd=mount.path)

    assert os.listdir(mount.path) == []


def test_a_directory_can_be_read_from_where_it_was_left(mount: Mount) -> None:
    """seekdir(3) and rewinddir(3): lseek(2) to an offset that getdents64(2) gave."""
    wanted = {f"{number:04}-{'n' * 40}".encode() for number in range(1000)}
    for name in wanted:
        os.mknod(os.path.join(os.fsencode(mount.path), name))
    with opened(mount.path, os.O_RDONLY) as fd:
        entries = []
        while some := raw.getdents(fd, 4096):
            entries += some
        names = [name for name, _ in entries]
        assert sorted(names) == sorted([b".", b"..", *wanted])

        for place in (0, 1, 2, 500, 999):
            os.lseek(fd, entries[place][1], os.SEEK_SET)
            assert raw.getdents(fd)[0][0] == names[place + 1]
        os.lseek(fd, entries[-1][1], os.SEEK_SET)
        assert raw.getdents(fd) == []
        # The position stays valid when the names before it are removed.
        os.unlink(os.path.join(os.fsencode(mount.path), names[10]))
        os.lseek(fd, entries[20][1], os.SEEK_SET)
        assert raw.getdents(fd)[0][0] == names[21]
        os.lseek(fd, 0, os.SEEK_SET)
        assert raw.getdents(fd)[0][0] == b"."
        # A name that was made meanwhile is there after the rewind.
        os.mknod(mount.path / "new")
        os.lseek(fd, 0, os.SEEK_SET)
        again: list[bytes] = []
        while some := raw.getdents(fd):
            again += [name for name, _ in some]
        assert b"new" in again
        assert names[10] not in again
        assert len(again) == len(names)


def test_listing_shows_kinds_and_inodes(mount: Mount) -> None:
    new_file(mount.path / "file")
    (mount.path / "directory").mkdir()
    (mount.path / "link").symlink_to("file")
    for entry in os.scandir(mount.path):
        assert entry.inode() == os.lstat(entry.path).st_ino
        assert entry.is_dir(follow_symlinks=False) == (entry.name == "directory")
        assert entry.is_symlink() == (entry.name == "link")
    output = run("ls", "-ai", mount.path / "directory").stdout.split()
    assert output == [
        str(os.stat(mount.path / "directory").st_ino),
        ".",
        str(os.stat(mount.path).st_ino),
        "..",
    ]
