"""File handles and idmapped mounts."""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.mount import raw, support
from tests.mount.support import PAGE, allocated, new_file, opened, outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs import Mount

pytestmark = [pytest.mark.fuse, support.needs_root]


@pytest.fixture
def mount(new_mount: Mount) -> Mount:
    """What the kernel and the daemon have forgotten is looked at."""
    return new_mount


# --- file handles -------------------------------------------------------------------


def forget_all(mount: Mount) -> None:
    """Let the kernel forget all unused inodes."""
    run("mount", "-i", "-o", "remount,rw", mount.path)


@contextmanager
def by_handle(mount: Mount, handle: bytes, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = raw.open_handle(mount.path, handle, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def why_stale(mount: Mount, handle: bytes) -> str:
    return outcome(raw.open_handle, mount.path, handle, os.O_RDONLY)


def wait_until_stale(mount: Mount, handle: bytes) -> None:
    """The kernel sends FORGET when it likes, and a LOOKUP may overtake it."""
    support.ask_until(lambda: why_stale(mount, handle) == "ESTALE")


def test_a_file_is_found_by_its_handle_after_it_was_forgotten(mount: Mount) -> None:
    (mount.path / "a" / "b").mkdir(parents=True)
    file = new_file(mount.path / "a" / "b" / "file", 4 * PAGE)
    ino = file.stat().st_ino
    handle = raw.name_to_handle(file)
    for _ in range(3):
        forget_all(mount)
        with by_handle(mount, handle, os.O_RDWR) as fd:
            assert os.fstat(fd).st_ino == ino
            raw.fallocate(fd, 0, 0, PAGE)
    assert allocated(file) == PAGE


def test_a_moved_file_is_found_and_a_deleted_one_is_not(
    mount: Mount,
) -> None:
    for name in ("moved", "linked", "gone", "replaced", "stays"):
        new_file(mount.path / name)
    (mount.path / "d").mkdir()
    handles = {path.name: raw.name_to_handle(path) for path in mount.path.iterdir()}
    inodes = {path.name: path.stat().st_ino for path in mount.path.iterdir()}
    forget_all(mount)
    os.rename(mount.path / "moved", mount.path / "d" / "elsewhere")
    os.link(mount.path / "linked", mount.path / "d" / "link")
    os.unlink(mount.path / "linked")
    os.unlink(mount.path / "gone")
    os.rename(mount.path / "stays", mount.path / "replaced")
    new_file(mount.path / "gone")
    forget_all(mount)

    for name in ("moved", "linked", "stays", "d"):
        with by_handle(mount, handles[name]) as fd:
            assert os.fstat(fd).st_ino == inodes[name]
    for name in ("gone", "replaced"):
        wait_until_stale(mount, handles[name])


def test_a_directory_is_found_with_the_way_to_it(mount: Mount) -> None:
    path = mount.path / "a" / "b" / "c"
    path.mkdir(parents=True)
    new_file(path / "file")
    handle, root = raw.name_to_handle(path), raw.name_to_handle(mount.path)
    forget_all(mount)
    with by_handle(mount, handle, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(path)
        assert os.listdir(fd) == ["file"]
        assert (
            os.stat("../../../a", dir_fd=fd).st_ino == os.stat(mount.path / "a").st_ino
        )
    forget_all(mount)
    with by_handle(mount, root, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.listdir(fd) == ["a"]


def test_a_file_without_a_name_is_found_while_it_is_open(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    handle = raw.name_to_handle(file)
    with opened(file) as fd:
        file.unlink()
        forget_all(mount)
        with by_handle(mount, handle) as again:
            assert os.path.sameopenfile(fd, again)
    forget_all(mount)
    wait_until_stale(mount, handle)


def test_a_handle_of_an_earlier_mount_leads_nowhere(point: Path) -> None:
    with support.mounted(point) as mount:
        handle = raw.name_to_handle(new_file(mount.path / "file"))
    with support.mounted(point) as mount:
        new_file(mount.path / "file")
        forget_all(mount)
        assert why_stale(mount, handle) == "ESTALE"


def test_handles_cost_no_memory_after_their_files_are_deleted(mount: Mount) -> None:
    """Nodes stay as long as their names, and have no fds."""
    # Except for fds that the daemon opens at its first use.
    most = support.open_fds(mount.pid) + 10

    def wait_until_closed() -> None:
        support.ask_until(lambda: support.open_fds(mount.pid) <= most)

    for turn in range(4):
        for number in range(200):
            new_file(mount.path / f"{turn}-{number}")
        forget_all(mount)
        wait_until_closed()
        for path in list(mount.path.iterdir()):
            path.unlink()
        forget_all(mount)
        wait_until_closed()


def test_a_wrapped_directory_has_no_file_handles(memory: Path) -> None:
    """Its names may change without the mount, and not all inodes are below it."""
    with support.mounted(backing=memory) as mount:
        file = new_file(mount.path / "file")
        assert outcome(raw.name_to_handle, file) == "EOPNOTSUPP"


# --- idmapped mounts ----------------------------------------------------------------


@contextmanager
def mapping(start: int) -> Iterator[int]:
    """An fd of a user namespace that maps 0 to 999 to *start* and the ids after it."""
    with subprocess.Popen(
        ["unshare", "--user", "sh", "-c", "echo; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child.pid}/{name}", "w", encoding="ascii") as file:
                file.write(f"0 {start} 1000")
        fd = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
            child.stdin.close()


def test_an_idmapped_mount_maps_owners_as_on_a_tmpfs(
    scratch: Path, point: Path, memory: Path
) -> None:
    scratch.chmod(0o755)
    make = """
        umask 022; touch file; mkdir d; ln -s x link; mkfifo fifo; ln file hard
        truncate -s 4096 file; fallocate -l 4096 file; touch d/inside; mv d/inside d/in
        chmod 640 file; chown 10005:10006 fifo; chgrp 10007 d
        setfattr -n security.x -v 1 file; rm hard
    """
    show = "find . -mindepth 1 -printf '%P %M %U %G %n %s\\n' | sort"
    seen = []
    with support.mounted(point, allow_other=True, mode=0o777) as mount:
        for number, place in enumerate((mount.path, memory)):
            place.chmod(0o777)
            mapped = scratch / f"mapped-{number}"
            mapped.mkdir()
            with mapping(10000) as namespace:
                raw.mount_idmapped(place, mapped, namespace)
            try:
                made = run(
                    "sh", "-c", make,
                    cwd=mapped, user=10001, group=10002, extra_groups=[10007],
                    status=None,
                )  # fmt: skip
                shown = [run("sh", "-c", show, cwd=at).stdout for at in (mapped, place)]
                # Root has no uid there, so it can make nothing.
                refused = outcome((mapped / "roots").touch)
                read = run("stat", "-c", "%u %g %w", mapped / "file").stdout.split()[:2]
            finally:
                run("umount", mapped)
            seen.append((made.stderr, shown, refused, read))

    assert seen[0] == seen[1]
    assert "file -rw-r----- 10001 10002" in seen[0][1][0]
    assert "file -rw-r----- 1 2" in seen[0][1][1]
    assert seen[0][2] == "EOVERFLOW"


def test_a_file_of_an_idmapped_mount_can_be_made_without_a_name(
    scratch: Path, point: Path
) -> None:
    scratch.chmod(0o755)
    mapped = scratch / "mapped"
    mapped.mkdir()
    with support.mounted(point, allow_other=True, mode=0o777) as mount:
        with mapping(10000) as namespace:
            raw.mount_idmapped(mount.path, mapped, namespace)
        try:
            made = run(
                "python3", "-c", _TMPFILE, mapped,
                user=10001, group=10002, extra_groups=[],
            ).stdout.split()  # fmt: skip
            found = os.stat(mount.path / "named")
        finally:
            run("umount", mapped)
    assert made == ["10001", "10002"]
    assert (found.st_uid, found.st_gid) == (1, 2)
    assert stat.S_IMODE(found.st_mode) == 0o640


_TMPFILE = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_TMPFILE, 0o640)
print(os.fstat(fd).st_uid, os.fstat(fd).st_gid)
root = os.open(sys.argv[1], os.O_RDONLY)
os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=root, follow_symlinks=True)
"""
