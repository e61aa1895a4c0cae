"""A mountpoint that is replaced while it is mounted on, and failures halfway."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs import mountcalls, mountinfo
from inaccfs.errors import MountError
from inaccfs.fuse import finding, mounting, unmounting
from inaccfs.fuse.mounting import FuseOptions
from inaccfs.fuse.mountpoint import Mountpoint
from tests.mount import support
from tests.mount.support import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.fuse, support.needs_root]

REPLACED = r"^mountpoint \S+ was replaced while it was to be mounted on: try once more"


def make(point: Path) -> mounting.NewMount:
    """Mount at *point*, without a daemon."""
    with Mountpoint.open(str(point)) as it:
        return mounting.mount(it, FuseOptions())


def swap(point: Path) -> None:
    """Put a link to another directory in the place of *point*."""
    victim = point.with_name("victim")
    victim.mkdir()
    point.rename(point.with_name("moved"))
    point.symlink_to(victim)


@pytest.fixture
def _nothing_left(scratch: Path) -> object:
    yield
    left = mountinfo.below(str(scratch))
    for path in reversed(left):
        # It has no daemon: any access would hang.
        mountcalls.umount(path, mountcalls.MNT_DETACH)
    assert left == []


def before(
    call: Callable[..., object], first: Callable[[], None]
) -> Callable[..., object]:
    """*call* after *first*."""

    def both(*args: object, **kwargs: object) -> object:
        first()
        return call(*args, **kwargs)

    return both


def after(
    call: Callable[..., object], then: Callable[[], None]
) -> Callable[..., object]:
    """*call* before *then*."""

    def both(*args: object, **kwargs: object) -> object:
        result = call(*args, **kwargs)
        then()
        return result

    return both


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize("step", ["resolve", "open", "mount"])
def test_a_mountpoint_that_becomes_a_link_is_refused(
    point: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It becomes a link after each step that resolves it."""
    if step == "resolve":
        resolve = after(finding.resolve, lambda: swap(point))
        monkeypatch.setattr(finding, "resolve", resolve)
    elif step == "open":
        open_ = after(Mountpoint.open, lambda: swap(point))
        monkeypatch.setattr(Mountpoint, "open", open_)
    else:
        mount = before(mountcalls.mount, lambda: swap(point))
        monkeypatch.setattr(mountcalls, "mount", mount)
    with pytest.raises(MountError, match=REPLACED):
        make(point)


@pytest.mark.usefixtures("_nothing_left")
def test_a_directory_above_that_is_renamed_afterwards_is_refused(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = scratch / "above"
    (above / "mnt").mkdir(parents=True)

    def rename() -> None:
        above.rename(scratch / "other")
        (above / "mnt").mkdir(parents=True)

    monkeypatch.setattr(mountcalls, "mount", after(mountcalls.mount, rename))
    with pytest.raises(MountError, match=REPLACED):
        make(above / "mnt")


@pytest.mark.usefixtures("_nothing_left")
def test_a_mount_made_there_meanwhile_is_not_covered(point: Path) -> None:
    with Mountpoint.open(str(point)) as it:
        run("mount", "-t", "tmpfs", "inaccfs-test", point)
        with pytest.raises(MountError, match=REPLACED):
            mounting.mount(it, FuseOptions())
    found = mountinfo.topmost(str(point))
    assert found is not None
    assert found.fstype == "tmpfs"
    run("umount", point)


@pytest.mark.usefixtures("_nothing_left")
def test_a_mountpoint_that_is_removed_meanwhile_is_reported(point: Path) -> None:
    with Mountpoint.open(str(point)) as it:
        point.rmdir()
        with pytest.raises(MountError, match=f"cannot mount on {point}: No such file"):
            mounting.mount(it, FuseOptions())


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize(
    ("where", "name"),
    [
        (mountcalls, "mount"),
        (mountcalls, "mount_number"),
        (mountinfo, "read"),
        (mounting, "_device_of"),
        (os, "set_blocking"),
    ],
)
def test_no_step_that_fails_leaves_a_mount(
    point: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    fds = len(os.listdir("/proc/self/fd"))
    with Mountpoint.open(str(point)) as it, monkeypatch.context() as patch:
        patch.setattr(where, name, fail)
        with pytest.raises((MountError, OSError)):
            mounting.mount(it, FuseOptions())
    assert len(os.listdir("/proc/self/fd")) == fds


@pytest.mark.usefixtures("_nothing_left")
def test_a_bug_after_the_mount_leaves_none(
    point: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'fsname=bug' in sys.orig_argv:\n"
        "    from inaccfs import daemon\n"
        "    daemon.Closer = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        pytest.raises(MountError, match="not callable"),
        inaccfs.mounted(point, options="fsname=bug"),
    ):
        pytest.fail("there is a mount")


@pytest.mark.usefixtures("_nothing_left")
def test_a_kernel_without_mount_numbers_works_too(
    point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounting, "_device_of", lambda _: None)
    monkeypatch.setattr(mountcalls, "mount_number", lambda _: None)
    new = make(point)
    assert new.info == mountinfo.topmost(str(point))
    os.close(new.fuse)
    unmounting.unmount(new.info, lazy=False)


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize("name", ["with space", "new\nline", "tab\tand\\", b"\xff\xfe"])
def test_a_mountpoint_with_any_name(scratch: Path, name: str | bytes) -> None:
    point = scratch / os.fsdecode(name)
    point.mkdir()
    with support.mounted(point) as mount:
        assert mount.path == point
        support.cli("umount", point)
