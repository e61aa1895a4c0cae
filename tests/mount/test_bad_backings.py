"""Backings that cannot be used, or that vanish: what inaccfs says, and what goes on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.mount import support
from tests.mount.support import (
    MIB,
    PAGE,
    allocated,
    complaint,
    new_file,
    opened,
    outcome,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("_nothing_is_mounted")]


def test_a_backing_on_a_disk_is_refused_by_its_name(point: Path, scratch: Path) -> None:
    fstype = run("findmnt", "-n", "-o", "FSTYPE", "-T", scratch).stdout.strip()
    if fstype in ("tmpfs", "hugetlbfs"):
        pytest.skip(f"temporary files are on a {fstype} here")
    (scratch / "backing").mkdir()
    message = complaint(
        "mount",
        "--control",
        scratch / "control",
        "--backing",
        scratch / "backing",
        point,
    )
    assert f"is on {fstype}: it must be on a tmpfs or hugetlbfs" in message


def test_a_backing_on_proc_is_refused(point: Path, scratch: Path) -> None:
    message = complaint(
        "mount", "--control", scratch / "control", "--backing", "/proc", point
    )
    assert "is on proc" in message


def test_a_backing_that_is_missing_or_a_file(point: Path, scratch: Path) -> None:
    control = ("--control", scratch / "control")
    message = complaint("mount", *control, "--backing", scratch / "missing", point)
    assert "No such file or directory; name a directory on a tmpfs" in message
    message = complaint("mount", *control, "--backing", new_file(scratch / "f"), point)
    assert "Not a directory; name a directory on a tmpfs" in message


@support.needs_root
def test_a_backing_that_others_can_reach_is_a_warning(memory: Path) -> None:
    os.chmod(memory, 0o755)
    with support.mounted(backing=memory) as mount:
        output = mount.log.read_text()
        assert output.startswith("inaccfs: warning: others can reach the files in ")
        assert f"chmod 0700 {memory}" in output
    os.chmod(memory, 0o700)
    with support.mounted(backing=memory) as mount:
        assert "warning: others" not in mount.log.read_text()


@support.needs_root
def test_a_backing_without_inodes_or_pages_left(scratch: Path) -> None:
    with (
        support.tmpfs(scratch / "memory", "size=1m,mode=700,nr_inodes=4") as memory,
        support.mounted(backing=memory) as mount,
    ):
        made = [mount.path / name for name in "abc"]
        for path in made:
            new_file(path)
        assert outcome(os.mkdir, mount.path / "d") == "ENOSPC"
        assert outcome(os.mknod, mount.path / "d") == "ENOSPC"
        result = outcome(os.open, mount.path / "d", os.O_CREAT | os.O_RDWR)
        assert result == "ENOSPC"
        assert outcome(os.open, mount.path, os.O_TMPFILE | os.O_RDWR) == "ENOSPC"
        run("fallocate", "-l", MIB + PAGE, made[0], status=1)
        assert allocated(made[0]) == 0
        os.unlink(made[2])
        # Its inode is free once the kernel has sent FORGET.
        support.ask_until(lambda: outcome(os.mkdir, mount.path / "d") == "ok")


@support.needs_root
def test_a_backing_that_is_removed_under_the_mount(memory: Path) -> None:
    backing = memory / "backing"
    backing.mkdir(mode=0o700)
    with support.mounted(backing=backing) as mount:
        new_file(mount.path / "file", PAGE)
        with opened(mount.path / "file") as fd:
            run("rm", "-r", backing)

            assert os.listdir(mount.path) == []
            assert outcome(os.mknod, mount.path / "new") == "ENOENT"
            assert outcome(os.mkdir, mount.path / "new") == "ENOENT"
            assert outcome(os.stat, mount.path / "file") == "ENOENT"
            assert os.fstat(fd).st_size == PAGE
            run("fallocate", "-l", PAGE, f"/proc/self/fd/{fd}", pass_fds=[fd])
        os.statvfs(mount.path)
        assert mount.status().files == 0


@support.needs_root
def test_a_backing_that_is_unmounted_under_the_mount(scratch: Path) -> None:
    """Lazily: the daemon has it open, so nothing changes for users of the mount."""
    with (
        support.tmpfs(scratch / "memory") as memory,
        support.mounted(backing=memory) as mount,
    ):
        new_file(mount.path / "file", PAGE)
        run("umount", "-l", memory)
        assert os.listdir(memory) == []

        run("fallocate", "-l", PAGE, mount.path / "file")
        new_file(mount.path / "other")
        assert sorted(os.listdir(mount.path)) == ["file", "other"]


@support.needs_root
def test_a_backing_that_is_read_only(memory: Path) -> None:
    new_file(memory / "file", PAGE)
    with support.mounted(backing=memory) as mount:
        run("mount", "-o", "remount,ro", memory)
        assert os.stat(mount.path / "file").st_size == PAGE
        assert outcome(os.mknod, mount.path / "new") == "EROFS"
        assert outcome(os.open, mount.path / "file", os.O_RDWR) == "EROFS"
        assert outcome(os.unlink, mount.path / "file") == "EROFS"
        assert outcome(os.truncate, mount.path / "file", PAGE) == "EROFS"
