"""Ending mounts that have copies, or that other namespaces have."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs import ending, launch
from inaccfs.fuse import finding
from inaccfs.fuse.ownmount import OwnMount, is_covered
from tests.mount import support
from tests.mount.namespaces import private_namespace, quoted
from tests.mount.support import (
    PATIENCE,
    SOON,
    background,
    cli,
    inaccfs_command,
    new_file,
    opened,
    run,
)
from tests.mount.unmounting import bound, umount

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path


pytestmark = [pytest.mark.fuse, support.needs_root]


# --- a mount that has copies --------------------------------------------------


def test_umount_of_one_of_two_says_where_the_other_is(
    point: Path, scratch: Path
) -> None:
    with background(point, scratch) as pid, bound(point, scratch / "b") as copy:
        before = time.monotonic()
        assert umount(copy) == (
            f"inaccfs: {copy} is unmounted; its daemon {pid} goes on, because the "
            f"mount has copies: {point}\n"
        )
        assert time.monotonic() - before < SOON
        run("mount", "--bind", point, copy)
        assert f"because the mount has copies: {copy}\n" in umount(point)
        assert os.listdir(copy) == []
        # The daemon ends with the last of them.
        daemon = os.pidfd_open(pid)
        try:
            assert cli("umount", copy).stderr == ""
            assert support.wait_readable(daemon, 0)
        finally:
            os.close(daemon)


def test_a_copy_of_a_directory_is_one_too(point: Path, scratch: Path) -> None:
    with background(point, scratch):
        (point / "sub").mkdir()
        with bound(point / "sub", scratch / "b") as copy:
            assert f"the mount has copies: {point}\n" in umount(copy)
            run("mount", "--bind", point / "sub", copy)
            assert f"the mount has copies: {copy}\n" in umount(point)
            assert cli("umount", copy).stderr == ""


def test_umount_says_that_another_namespace_has_a_copy(
    point: Path, scratch: Path
) -> None:
    with background(point, scratch) as pid:
        with private_namespace(copies=True) as namespace:
            message = umount(point)
            assert (
                f"{point} is unmounted; its daemon {pid} goes on, because " in message
            )
            assert "copies in another mount namespace" in message
            namespace.run("ls", point)
        support.wait_for_exit(pid)


def test_a_namespace_of_another_test_has_no_copy(point: Path, scratch: Path) -> None:
    """Otherwise tests that run at the same time would disturb each other."""
    with background(point, scratch), private_namespace() as namespace:
        assert " fuse.inaccfs " not in namespace.run("cat", "/proc/mounts").stdout
        assert cli("umount", point).stderr == ""


def test_umount_inside_a_container_that_does_not_see_the_daemon(
    point: Path, scratch: Path
) -> None:
    """There its pid belongs to another process, and its socket cannot be reached."""
    hide = f"mkdir {quoted(scratch / 'e')}"
    with support.mounted(point) as mount:
        sockets = quoted(mount.control.parent)
        with private_namespace(hide, copies=True) as namespace:
            namespace.shell(f"mount -t tmpfs none {sockets}")
            before = time.monotonic()
            namespace.run(*inaccfs_command("umount", point))
            assert time.monotonic() - before < SOON
        assert os.listdir(point) == []
        assert mount.process.poll() is None


@pytest.mark.parametrize("where", ["bind", "namespace", "lazily"])
def test_mounted_ends_its_daemon_in_spite_of_copies(scratch: Path, where: str) -> None:
    with support.mounted() as mount:
        new_file(mount.path / "file")
        own = OwnMount(finding.find(str(mount.path)))
        copies: dict[str, Callable[[], AbstractContextManager[object]]] = {
            "bind": lambda: bound(mount.path, scratch / "b"),
            "namespace": lambda: private_namespace(copies=True),
            "lazily": lambda: opened(mount.path / "file"),
        }
        with copies[where]():
            if where == "lazily":
                run("umount", "-l", mount.path)
            before = time.monotonic()
            launch._take_down(mount, own, quiet=False)
            assert time.monotonic() - before < SOON
            assert mount.process.returncode == 0


def test_mounted_leaves_mounts_that_others_make_in_its_place(point: Path) -> None:
    """This is so even if such a mount gets the numbers of the earlier mount."""
    with inaccfs.mounted(point) as mount:
        run("umount", point)
        assert mount.process.wait(PATIENCE) == 0
        block = support.mounted(point)
        other = block.__enter__()
    assert other.status().pid == other.pid
    block.__exit__(None, None, None)


def test_a_mount_with_reused_numbers_is_another() -> None:
    """This is so while the daemon runs, and if the other mount is dead or covered."""
    with support.mounted() as mount:
        found = finding.find(str(mount.path))
        own = OwnMount(found)
        assert own.find() == found
        with support.mounted() as other:
            where = finding.find(str(other.path))
            stale = OwnMount(where)
        # As if `found` had got its numbers.
        stale._mount = found  # type: ignore[misc]
        assert stale.find() is None
        run("mount", "-t", "tmpfs", "none", mount.path)
        assert stale.find() is None
        assert own.find() == found
        run("umount", mount.path)


def test_a_mount_that_is_unmounted_meanwhile_is_not_covered() -> None:
    with support.mounted() as mount:
        found = finding.find(str(mount.path))
        assert not is_covered(found)
        run("mount", "-t", "tmpfs", "none", mount.path)
        assert is_covered(found)
        run("umount", mount.path)
    assert not is_covered(found)


def test_a_mount_that_has_got_the_number_of_the_old_one_is_no_copy(
    point: Path,
) -> None:
    """The kernel gives a device number to the next file system."""
    with support.mounted() as other:
        found = finding.find(str(other.path))
        gone = found._replace(number=-1, path=str(point))
        copies = [found._replace(number=-2)]
        assert ending._describe_copies(gone, copies, "goes on") is None


# --- daemons of other namespaces -----------------------------------------------


def test_what_another_namespaces_daemon_has_is_not_removed(
    point: Path, scratch: Path
) -> None:
    """It is mounted at the same path, so its socket has the name that ours would."""
    with private_namespace() as namespace:
        namespace.run(*inaccfs_command("mount", "--log", scratch / "log", point))
        asked = namespace.run(*inaccfs_command("status", "--json", point)).stdout
        control = json.loads(asked)["control"]
        try:
            cli("mount", "--control", scratch / "c", "--log", scratch / "l", point)
            pid = support.status_of(point).pid
            os.kill(pid, signal.SIGKILL)
            support.wait_for_exit(pid)
            assert "its daemon was dead" in umount(point)
            assert os.path.exists(control)
        finally:
            namespace.run(*inaccfs_command("umount", point))
    assert not os.path.exists(control)


@pytest.mark.usefixtures("_hasty")
def test_another_namespaces_daemon_is_not_to_be_killed(
    point: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the one that does not answer."""
    monkeypatch.setattr(ending, "_ENDING_SECONDS", 0.1)
    with private_namespace() as namespace:
        namespace.run(*inaccfs_command("mount", "--log", scratch / "log", point))
        try:
            cli("mount", "--control", scratch / "c", "--log", scratch / "l", point)
            pid = support.status_of(point).pid
            os.kill(pid, signal.SIGSTOP)
            try:
                assert umount(point).endswith("so its connection is aborted\n")
            finally:
                os.kill(pid, signal.SIGCONT)
            support.wait_for_exit(pid)
        finally:
            namespace.run(*inaccfs_command("umount", point))
