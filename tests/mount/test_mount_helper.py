"""mountscripts/mount.inaccfs: what mount(8) runs for the type inaccfs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mount import support
from tests.mount.namespaces import PrivateNamespace, private_namespace, quoted
from tests.mount.support import MIB, PAGE, TOP, new_file, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.fuse, support.needs_root]

HELPER = TOP / "mountscripts" / "mount.inaccfs"


@pytest.fixture
def helper(scratch: Path) -> Path:
    """The script in a checkout that has the environment of these tests."""
    scripts, bin_ = scratch / "inaccfs" / "system", scratch / ".venv" / "bin"
    scripts.mkdir(parents=True)
    bin_.mkdir(parents=True)
    copy = scripts / HELPER.name
    copy.write_bytes(HELPER.read_bytes())
    copy.chmod(0o755)
    command = bin_ / "inaccfs"
    command.write_text(
        "#!/bin/sh\n"
        f"PYTHONPATH={quoted(TOP)} exec {quoted(Path(sys.executable))} -m inaccfs "
        '"$@"\n'
    )
    command.chmod(0o755)
    return copy


@pytest.fixture
def point(scratch: Path) -> Iterator[Path]:
    """A mountpoint, unmounted after the test."""
    path = scratch / "mnt"
    path.mkdir()
    yield path
    log = ""
    if support.is_mounted(path):
        log = support.status_of(path).log or ""
        support.cli("umount", path)
    assert not log or not os.path.exists(log), Path(log).read_text()


def test_a_private_tmpfs_is_mounted_as_mount_8_asks_for_it(
    helper: Path, point: Path
) -> None:
    run(helper, "none", point, "-o", "rw,size=16m,huge=always")

    status = support.status_of(point)
    assert status.size == 16 * MIB
    assert status.backing == "private tmpfs"
    output = run("findmnt", "-n", "-o", "SOURCE,FSTYPE", point).stdout.split()
    assert output == ["none", "fuse.inaccfs"]
    run("fallocate", "-l", PAGE, new_file(point / "file"))
    run("umount", point)
    support.wait_for_exit(status.pid)


def test_a_directory_of_a_tmpfs_is_wrapped(
    helper: Path, point: Path, memory: Path
) -> None:
    run(helper, memory, point, "-s", "-n", "-o", "rw,noatime,allow_other")

    assert support.status_of(point).backing == f"{memory} (tmpfs)"
    output = run("findmnt", "-n", "-o", "SOURCE,OPTIONS", point).stdout
    assert output.startswith(f"{memory} ")
    assert "noatime" in output
    assert "allow_other" in output


def test_a_fake_mount_only_says_what_it_would_do(helper: Path, point: Path) -> None:
    output = run(helper, "none", point, "-f", "-v", "-o", "size=1m").stdout
    assert output.startswith("mount.inaccfs: ")
    assert output.rstrip().endswith(f"inaccfs mount -o size=1m,fsname=none {point}")
    assert not support.is_mounted(point)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none"], "usage: mount.inaccfs SPEC DIR"),
        (["none", "DIR", "-x"], "usage: mount.inaccfs SPEC DIR"),
        (["relative", "DIR"], "relative: name none for a private tmpfs"),
        (["/a,b", "DIR"], "/a,b: a directory with a comma in its name"),
        (["none", "DIR", "-o", "size=junk"], "size 'junk' is not a size"),
        (["none", "DIR", "-o", "nonsense"], "unknown mount option 'nonsense'"),
        (["/nowhere", "DIR"], "No such file or directory; name a directory on a tmpfs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refusal_is_reported_in_one_line(
    helper: Path, point: Path, arguments: list[str], reason: str
) -> None:
    words = [str(point) if word == "DIR" else word for word in arguments]
    ran = run(helper, *words, status=1)
    assert reason in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert ran.stdout == ""


def test_a_remount_is_left_to_mount_8(helper: Path, point: Path) -> None:
    run(helper, "none", point, "-o", "rw,size=16m")
    ran = run(helper, "none", point, "-o", "ro,remount,user_id=0,size=1m")
    assert ran.stdout == ""
    assert ran.stderr == (
        "inaccfs: remount: size=1m stays as it is: unmount to change it\n"
    )
    options = run("findmnt", "-n", "-o", "OPTIONS", point).stdout.split(",")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
    assert support.status_of(point).size == 16 * MIB
    run(helper, "none", point, "-o", "rw,remount")
    new_file(point / "file")


def test_mount_fuse_3_passes_on_the_error(point: Path) -> None:
    message = support.complaint("/a,b", point, "-o", "rw,dev,suid", status=2)
    assert "/a,b: a name with a comma" in message
    message = support.complaint("none", point, "-o", "rw,dev,suid,nonsense", status=2)
    assert "unknown mount option 'nonsense'" in message


# --- through mount(8) ---------------------------------------------------------


@pytest.fixture
def with_helper(helper: Path) -> Iterator[PrivateNamespace]:
    """A mount namespace in which mount(8) finds the helper in /sbin, by both names.

    It uses an overlay, which no other process sees.
    """
    sbin = Path("/sbin").resolve()
    layers = helper.parent.parent
    with private_namespace(
        f"""
        mkdir {quoted(layers / "layer")}
        ln -s {quoted(helper)} {quoted(layers / "layer" / "mount.inaccfs")}
        ln -s mount.inaccfs {quoted(layers / "layer" / "mount.fuse.inaccfs")}
        mount -t overlay -o lowerdir={quoted(layers / "layer")}:{sbin} none {sbin}
        """
    ) as namespace:
        yield namespace


def test_mount_8_and_umount_8_know_the_type(
    with_helper: PrivateNamespace, point: Path
) -> None:
    options = "size=16m,huge=always,mode=0711"
    with_helper.run("mount", "-t", "inaccfs", "none", point, "-o", options)
    output = with_helper.run("findmnt", "-n", "-o", "SOURCE,FSTYPE", point).stdout
    assert output.split() == ["none", "fuse.inaccfs"]
    assert with_helper.run("stat", "-c", "%a", point).stdout == "711\n"
    with_helper.run("fallocate", "-l", "16m", point / "file")
    output = with_helper.run(*support.inaccfs_command("status", "--json", point)).stdout
    pid = int(json.loads(output)["pid"])

    with_helper.run("umount", point)

    support.wait_for_exit(pid)
    assert not support.is_mounted(point)


@pytest.fixture
def with_command(helper: Path) -> Iterator[PrivateNamespace]:
    """A mount namespace without the helper, but with the command in the PATH."""
    if not Path("/sbin/mount.fuse").exists():
        pytest.skip("no mount.fuse: the package fuse3")
    bin_ = helper.parent.parent / ".venv" / "bin"
    script = f"mount --bind {quoted(bin_)} /usr/local/bin"
    with private_namespace(script) as namespace:
        yield namespace


@pytest.mark.parametrize("way", ["with_helper", "with_command"])
def test_the_type_that_the_mount_has_is_one_for_fstab(
    request: pytest.FixtureRequest, point: Path, scratch: Path, way: str
) -> None:
    """mount(8) runs the helper, or mount.fuse3(8), which runs the command."""
    namespace: PrivateNamespace = request.getfixturevalue(way)
    fstab = scratch / "fstab"
    fstab.write_text(f"none {point} fuse.inaccfs noauto,size=8m 0 0\n")
    namespace.run("mount", "-T", fstab, point)
    try:
        output = namespace.run("stat", "-f", "-c", "%b", point).stdout
        assert output == f"{8 * MIB // PAGE}\n"
        namespace.run("mount", "-o", "remount,ro", point)
        output = namespace.run("findmnt", "-n", "-o", "OPTIONS", point).stdout
        assert output.startswith("ro,nosuid,nodev,noexec")
        namespace.run("mount", "-o", "remount,rw", point)
        new = namespace.run("touch", point / "file")
        assert new.stderr == ""
    finally:
        namespace.run(*support.inaccfs_command("umount", point))


def test_a_line_of_fstab_is_enough(
    with_helper: PrivateNamespace, point: Path, scratch: Path
) -> None:
    """`mount -a` recognizes a mount that exists already."""
    fstab = scratch / "fstab"
    fstab.write_text(f"none {point} inaccfs noauto,user,x-test,size=8m,nofail 0 0\n")
    with_helper.run("mount", "-T", fstab, point)
    try:
        output = with_helper.run("stat", "-f", "-c", "%b %S", point).stdout
        assert output == f"{8 * MIB // PAGE} {PAGE}\n"
        fstab.write_text(fstab.read_text().replace("noauto,", ""))
        with_helper.run("mount", "-a", "-T", fstab)
        output = with_helper.run("findmnt", "-n", point).stdout
        assert output.count("\n") == 1
    finally:
        with_helper.run(*support.inaccfs_command("umount", point))
