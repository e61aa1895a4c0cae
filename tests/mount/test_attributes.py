"""Attributes: they are never stale, and otherwise those of a tmpfs."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.mount import raw, support
from tests.mount.support import MIB, PAGE, allocated, new_file, opened, outcome, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse

SECOND = 1_000_000_000


# --- getattr ------------------------------------------------------------------


@support.needs_root
def test_memory_allocated_in_the_backing_shows_at_once(memory: Path) -> None:
    """KVM allocates in this way, too: inaccessible_get_pfn() of v8 fills holes."""
    with support.mounted(backing=memory) as mount:
        file = new_file(mount.path / "file", 8 * PAGE)
        with opened(file) as fd, opened(memory / "file") as behind:
            assert os.stat(file).st_blocks == os.fstat(fd).st_blocks == 0

            for pages in (1, 2, 5):
                raw.fallocate(behind, 0, 0, pages * PAGE)
                assert allocated(file) == allocated(fd) == pages * PAGE
            raw.punch(behind, 0, PAGE)
            assert allocated(file) == allocated(fd) == 4 * PAGE
            os.ftruncate(behind, 16 * PAGE)
            assert os.stat(file).st_size == os.fstat(fd).st_size == 16 * PAGE
        # And without an open fd.
        with opened(memory / "file") as behind:
            raw.punch(behind, 0, 16 * PAGE)
        assert allocated(file) == 0


@support.needs_root
def test_a_size_set_in_the_backing_is_final_through_the_mount(memory: Path) -> None:
    with support.mounted(backing=memory) as mount:
        file = new_file(mount.path / "file")
        os.truncate(memory / "file", PAGE)

        assert outcome(os.truncate, file, 2 * PAGE) == "EPERM"


def test_stat_shows_each_allocation_and_each_punch(mount: Mount) -> None:
    file = new_file(mount.path / "file", 64 * PAGE)
    with opened(file) as fd:
        for page in range(8):
            raw.fallocate(fd, 0, page * PAGE, PAGE)
            assert allocated(file) == allocated(fd) == (page + 1) * PAGE
        for page in range(8):
            raw.punch(fd, page * PAGE, PAGE)
            assert allocated(file) == allocated(fd) == (7 - page) * PAGE


def test_stat_1_and_ls_and_du_show_the_allocated_memory(mount: Mount) -> None:
    file = new_file(mount.path / "file", 4 * PAGE)
    run("fallocate", "-l", 3 * PAGE, file)

    assert run("stat", "-c", "%s %b %B %F", file).stdout == (
        f"{4 * PAGE} {3 * PAGE // 512} 512 regular file\n"
    )
    assert run("du", "-B1", file).stdout.split()[0] == str(3 * PAGE)
    assert run("ls", "-s", "--block-size=1", file).stdout.split()[0] == str(3 * PAGE)


def test_the_block_size_is_that_of_the_backing(mount: Mount, memory: Path) -> None:
    file, plain = new_file(mount.path / "file"), new_file(memory / "file")

    assert os.stat(file).st_blksize == os.stat(plain).st_blksize == PAGE


def test_hard_links_share_all_attributes(mount: Mount) -> None:
    file, link = new_file(mount.path / "file"), mount.path / "link"
    os.link(file, link)
    os.truncate(link, PAGE)
    run("fallocate", "-l", PAGE, link)
    os.chmod(file, 0o640)

    assert os.stat(file) == os.stat(link)
    assert os.stat(link).st_nlink == 2


# --- times --------------------------------------------------------------------


def times(path: Path) -> tuple[int, int]:
    """The times of access and change of content, in nanoseconds."""
    found = os.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns


def test_times_are_kept_to_the_nanosecond(mount: Mount) -> None:
    paths = [mount.path / name for name in ("file", "directory", "fifo")]
    paths[0].touch()
    paths[1].mkdir()
    os.mkfifo(paths[2])
    for path in [*paths, mount.path]:
        for wanted in [
            (1_234_567_890 * SECOND + 123_456_789, 987_654_321 * SECOND + 1),
            (0, 999_999_999),
            (4_000_000_000 * SECOND, 4_000_000_000 * SECOND + 5),
            (-1, -2 * SECOND + 500_000_000),
        ]:
            os.utime(path, ns=wanted)
            assert times(path) == wanted


def test_one_time_can_be_set_without_the_other(mount: Mount) -> None:
    """UTIME_OMIT of utimensat(2)."""
    file = new_file(mount.path / "file")
    run("touch", "-d", "@1000.000000001", file)

    run("touch", "-a", "-d", "@2000.000000002", file)
    assert times(file) == (2000 * SECOND + 2, 1000 * SECOND + 1)
    run("touch", "-m", "-d", "@3000.000000003", file)
    assert times(file) == (2000 * SECOND + 2, 3000 * SECOND + 3)


def test_a_time_can_be_set_to_now(mount: Mount) -> None:
    """UTIME_NOW of utimensat(2), for both and for one."""
    file = new_file(mount.path / "file")
    for option, changed in (
        ("", (True, True)),
        ("-a", (True, False)),
        ("-m", (False, True)),
    ):
        os.utime(file, ns=(SECOND, SECOND))
        before = time.time_ns()
        run("touch", *option.split(), file)
        # The kernel's clock for files ticks every few milliseconds only.
        for found, is_new in zip(times(file), changed, strict=True):
            assert found == SECOND or is_new
            assert found != SECOND or not is_new
            assert found == SECOND or abs(found - before) < 10 * SECOND


def test_times_of_a_symbolic_link_are_its_own(mount: Mount) -> None:
    target, link = new_file(mount.path / "target"), mount.path / "link"
    link.symlink_to("target")
    os.utime(target, ns=(1, 1))

    os.utime(link, ns=(2, 3), follow_symlinks=False)

    assert times(link) == (2, 3)
    assert times(target) == (1, 1)


def test_a_change_of_a_directory_changes_its_time(mount: Mount) -> None:
    directory = mount.path / "directory"
    directory.mkdir()
    changes: dict[str, Callable[[], object]] = {
        "create": lambda: (directory / "a").touch(),
        "rename": lambda: os.rename(directory / "a", directory / "b"),
        "link": lambda: os.link(directory / "b", directory / "c"),
        "mkdir": lambda: (directory / "d").mkdir(),
        "symlink": lambda: (directory / "e").symlink_to("b"),
        "unlink": lambda: os.unlink(directory / "b"),
        "rmdir": lambda: os.rmdir(directory / "d"),
    }
    for name, change in changes.items():
        os.utime(directory, ns=(1, 1))
        change()
        assert os.stat(directory).st_mtime_ns > 1, name


def test_an_allocation_changes_the_times_of_the_file(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    os.utime(file, ns=(1, 1))

    run("fallocate", "-l", PAGE, file)

    assert os.stat(file).st_mtime_ns > 1


# --- owner and mode -----------------------------------------------------------


@support.needs_root
def test_owner_and_mode_are_kept(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    run("chown", "12:34", file)
    run("chmod", "4751", file)

    found = os.stat(file)
    assert (found.st_uid, found.st_gid) == (12, 34)
    assert stat.S_IMODE(found.st_mode) == 0o4751
    assert run("stat", "-c", "%A", file).stdout == "-rwsr-x--x\n"

    # As on any file system, a change of the owner clears the set-ID bits.
    os.chown(file, 56, -1)
    found = os.stat(file)
    assert (found.st_uid, found.st_gid) == (56, 34)
    assert stat.S_IMODE(found.st_mode) == 0o751


@support.needs_root
def test_the_owner_of_a_symbolic_link_is_its_own(mount: Mount) -> None:
    target, link = new_file(mount.path / "target"), mount.path / "link"
    link.symlink_to("target")

    run("chown", "-h", "12:34", link)

    assert (os.lstat(link).st_uid, os.lstat(link).st_gid) == (12, 34)
    assert (os.stat(target).st_uid, os.stat(target).st_gid) == (0, 0)


@support.needs_root
def test_a_file_without_permissions_is_no_obstacle_to_its_daemon(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    with opened(file) as fd:
        os.fchmod(fd, 0)
        os.fchown(fd, 1, 1)
        os.ftruncate(fd, PAGE)
        raw.fallocate(fd, 0, 0, PAGE)
    assert allocated(file) == PAGE


@support.needs_root
def test_a_set_group_id_directory_hands_its_group_down(
    mount: Mount, memory: Path
) -> None:
    script = """
        mkdir d; chown 12:34 d; chmod 2775 d
        touch d/file; mkdir d/sub d/sub/sub; ln -s x d/link; mkfifo d/fifo
        stat -c '%n %a %u %g %F' d d/*  d/sub/sub
    """
    output = run("sh", "-c", script, cwd=mount.path).stdout

    assert output == run("sh", "-c", script, cwd=memory).stdout
    assert "d/sub/sub 2755 0 34 directory" in output


@support.needs_root
def test_permissions_are_those_of_a_tmpfs(scratch: Path, memory: Path) -> None:
    """By the kernel, from mode and owner: default_permissions of fuse(4)."""
    setup = """
        mkdir open closed sticky setgid; chmod 777 open; chmod 700 closed
        chmod 1777 sticky; chgrp 34 setgid; chmod 2777 setgid; chmod 755 .
        touch roots sticky/roots closed/file readable; chmod 600 roots
        chmod 644 readable; touch mine; chown 65534:65534 mine; chmod 400 mine
        ln -s /nowhere link
    """
    attempts = """
        umask 027
        try() { "$@" >/dev/null 2>&1; echo "$? $*"; }
        try touch open/new; try mkdir open/dir; try ln -s x open/link
        try mkfifo open/fifo; try mknod open/null c 1 3; try touch setgid/new
        try mkdir setgid/dir; try chmod 2755 setgid/new; try touch here
        try touch closed/new; try ls closed; try stat closed/file
        try rm -f sticky/roots; try touch sticky/new; try rm -f sticky/new
        try truncate -s 4096 roots; try truncate -s 4096 readable
        try truncate -s 4096 mine; try chmod 666 roots; try chown 65534 roots
        try chown 0 mine; try chmod 600 mine; try truncate -s 4096 mine
        try fallocate -l 4096 mine; try fallocate -l 4096 readable
        try touch -d @5 readable; try touch -d @5 mine; try mv readable open/
        try mv open/new open/newer; try rmdir open; try ln mine open/hard
        try ln roots open/hard2; try rm mine; try chgrp 34 mine
        try setfattr -n user.a -v b mine; try setfattr -n user.a -v b readable
        try setfattr -n trusted.a -v b mine; try chmod 4755 mine; try ls .
    """
    show = "find . -mindepth 1 -printf '%P %M %U %G %n %s %l\\n' | sort"
    os.chmod(scratch, 0o755)
    point = scratch / "mnt"
    point.mkdir()
    with support.mounted(point, allow_other=True) as mount:
        seen = []
        for place in (mount.path, memory):
            run("sh", "-c", setup, cwd=place)
            tried = run(
                "sh", "-c", attempts,
                cwd=place, user=support.NOBODY, group=support.NOBODY, extra_groups=[],
            )  # fmt: skip
            shown = run("sh", "-c", show, cwd=place)
            seen.append((tried.stdout + shown.stdout).splitlines())

        assert seen[0] == seen[1]
        assert "0 touch open/new" in seen[0]
        assert "1 touch closed/new" in seen[0]


@support.needs_root
def test_others_are_kept_out_unless_allowed_in(scratch: Path) -> None:
    os.chmod(scratch, 0o755)
    point = scratch / "mnt"
    point.mkdir()
    nobody: dict[str, Any] = {
        "user": support.NOBODY,
        "group": support.NOBODY,
        "extra_groups": [],
    }
    with support.mounted(point, mode=0o777) as mount:
        ran = run("ls", mount.path, status=None, **nobody)
        assert os.strerror(errno.EACCES) in ran.stderr
    with support.mounted(point, mode=0o777, allow_other=True) as mount:
        run("ls", mount.path, **nobody)
        # From then on only the root directory decides.
        os.chmod(mount.path, 0o700)
        ran = run("ls", mount.path, status=None, **nobody)
        assert os.strerror(errno.EACCES) in ran.stderr


@support.needs_root
def test_the_root_has_the_mode_and_owner_that_were_asked_for() -> None:
    with support.mounted(mode=0o1751, uid=12, gid=34) as mount:
        found = os.stat(mount.path)
        assert stat.S_IMODE(found.st_mode) == 0o1751
        assert (found.st_uid, found.st_gid) == (12, 34)


def test_the_root_is_the_owners_alone_by_default(mount: Mount) -> None:
    found = os.stat(mount.path)
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())


# --- the mount as a whole -----------------------------------------------------


def test_the_mount_is_nosuid_nodev_and_noexec(mount: Mount) -> None:
    output = run("findmnt", "-n", "-o", "FSTYPE,SOURCE,VFS-OPTIONS", mount.path).stdout

    fstype, source, options = output.split()
    assert fstype == "fuse.inaccfs"
    assert source == "inaccfs"
    assert {"nosuid", "nodev", "noexec"} <= set(options.split(","))


@support.needs_root
def test_a_device_node_opens_nothing(mount: Mount) -> None:
    run("mknod", mount.path / "null", "c", "1", "3")

    found = os.stat(mount.path / "null")
    assert stat.S_ISCHR(found.st_mode)
    assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == (1, 3)
    assert outcome(os.open, mount.path / "null", os.O_RDONLY) == "EACCES"


@support.needs_root
def test_the_size_of_the_file_system_is_that_of_the_backing() -> None:
    with support.mounted(size="16m") as mount:
        empty = os.statvfs(mount.path)
        assert empty.f_frsize == PAGE
        assert empty.f_blocks == empty.f_bfree == empty.f_bavail == 16 * MIB // PAGE
        assert empty.f_namemax == 255
        assert empty.f_files > 0

        run("fallocate", "-l", 5 * MIB, new_file(mount.path / "file"))

        now = os.statvfs(mount.path)
        assert now.f_bfree == now.f_bavail == 11 * MIB // PAGE
        assert now.f_ffree == empty.f_ffree - 1
        output = run("df", "-B1", "--output=size,used,avail", mount.path).stdout
        assert output.splitlines()[1].split() == list(
            map(str, (16 * MIB, 5 * MIB, 11 * MIB))
        )


@support.needs_root
def test_options_of_the_mount_reach_the_kernel() -> None:
    with support.mounted(options=["fsname=guest,noatime", "ro"]) as mount:
        output = run("findmnt", "-n", "-o", "SOURCE,OPTIONS", mount.path).stdout
        assert output.startswith("guest ")
        assert "noatime" in output
        assert outcome((mount.path / "file").touch) == "EROFS"
