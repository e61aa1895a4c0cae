"""The command as users run it: mount, status, umount, and their output."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs import runtime
from tests.mount import support
from tests.mount.support import (
    ENVIRONMENT,
    MIB,
    PAGE,
    PATIENCE,
    background,
    cli,
    complaint,
    inaccfs_command,
    new_file,
    run,
    wait_readable,
)

if TYPE_CHECKING:
    from inaccfs import Mount

pytestmark = pytest.mark.fuse


# --- mount --------------------------------------------------------------------


def test_mount_returns_when_the_mount_is_ready(point: Path, scratch: Path) -> None:
    """The daemon closes both outputs: `cli` reads them to their ends."""
    with background(point, scratch):
        assert support.is_mounted(point)
        run("fallocate", "-l", PAGE, new_file(point / "file"))
        cli("umount", point)


def test_mount_says_nothing_when_all_is_well(point: Path, scratch: Path) -> None:
    ran = cli("mount", "--log", scratch / "log", "--control", scratch / "socket", point)
    try:
        assert ran.stdout == ""
        if support.status_of(point).sealed:
            assert ran.stderr == ""
        assert os.stat(scratch / "log").st_mode & 0o777 == 0o600
    finally:
        cli("umount", point)
    # Nothing worth a log line has happened.
    assert not (scratch / "log").exists()


@support.needs_root
@pytest.mark.parametrize("kind", ["device", "file"])
def test_a_log_that_is_no_file_of_the_daemons_stays(
    point: Path, scratch: Path, kind: str
) -> None:
    """Such as --log /dev/null, or a log that logrotate has made."""
    log = scratch / "log"
    match kind:
        case "device":
            run("mknod", log, "c", "1", "3")
        case "file":
            log.touch()
    control = ("--control", scratch / "socket")
    cli("mount", *control, "--log", log, point)
    cli("umount", point)
    assert os.path.lexists(log)


@support.needs_root
def test_the_log_and_the_socket_have_places_of_their_own(point: Path) -> None:
    cli("mount", "-v", point)
    try:
        status = support.status_of(point)
        name = runtime.escape(str(point))
        assert status.control == f"/run/inaccfs/{name}.sock"
        assert status.log == f"/run/inaccfs/{name}.log"
        assert os.stat("/run/inaccfs").st_mode & 0o777 == 0o700
        assert os.stat(status.control).st_mode & 0o777 == 0o600
    finally:
        cli("umount", point)
    assert not os.path.exists(status.control)
    assert status.log is not None
    with open(status.log, encoding="utf-8") as log:
        output = log.read()
    os.unlink(status.log)
    assert re.search(r"^\S+ \S+ INFO inaccfs.daemon: unmounted: ", output, re.MULTILINE)


def test_in_the_foreground_readiness_is_written_to_a_pipe(
    point: Path, scratch: Path
) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        [
            *inaccfs_command("mount", "--foreground", "--control", scratch / "socket"),
            *("--ready-fd", str(writer), str(point)),
        ],
        pass_fds=[writer],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as daemon:
        os.close(writer)
        with open(reader, "rb") as ready:
            assert wait_readable(ready.fileno())
            # This reads to the end, so the daemon has closed the pipe, too.
            assert ready.read() == b"ready\n"
        assert daemon.poll() is None
        assert support.status_of(point).pid == daemon.pid
        daemon.send_signal(signal.SIGINT)
        _, output = daemon.communicate(timeout=PATIENCE)
        assert daemon.returncode == 0
        support.assert_clean(output)
    assert not support.is_mounted(point)


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_service_manager_gets_the_readiness_message(
    point: Path, scratch: Path, abstract: bool
) -> None:
    """Type=notify of systemd.service(5); sd_notify(3) has the protocol."""
    address = f"@{scratch}/notify" if abstract else f"{scratch}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(PATIENCE)
        with subprocess.Popen(
            inaccfs_command("mount", "--foreground", "--control", scratch / "c", point),
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "NOTIFY_SOCKET": address},
        ) as daemon:
            assert "READY=1" in manager.recv(4096).decode().splitlines()
            new_file(point / "file", PAGE)
            daemon.terminate()
            _, output = daemon.communicate(timeout=PATIENCE)
            assert daemon.returncode == 0
            support.assert_clean(output)


def test_a_service_manager_that_is_not_there_costs_no_mount(
    point: Path, scratch: Path
) -> None:
    """sd_notify(3): callers should ignore failures."""
    env = {**ENVIRONMENT, "NOTIFY_SOCKET": str(scratch / "missing")}
    ran = cli(
        "mount",
        "--log",
        scratch / "log",
        "--control",
        scratch / "socket",
        point,
        env=env,
    )
    assert "Traceback" not in ran.stderr
    assert support.is_mounted(point), (scratch / "log").read_text()
    try:
        new_file(point / "file", PAGE)
    finally:
        cli("umount", point)
    support.assert_clean(support.log_text(scratch / "log"))


def test_options_may_be_written_in_either_way(point: Path, scratch: Path) -> None:
    control = ("--control", scratch / "c", "--log", scratch / "l")
    for words in (
        ("--size=8m", "--huge=never", "--mode=711", "--allow-other"),
        (
            "-osize=8m",
            "-o",
            "huge=never,,mode=711",
            "-oallow_other,defaults,rw,_netdev",
        ),
    ):
        cli("mount", *control, *words, point)
        try:
            assert support.status_of(point).size == 8 * MIB
            assert os.stat(point).st_mode & 0o7777 == 0o711
            output = run("findmnt", "-n", "-o", "FS-OPTIONS", point).stdout
            assert "allow_other" in output
        finally:
            cli("umount", point)


# --- where it can be mounted --------------------------------------------------


@pytest.mark.parametrize("name", ["with a space", "\t\\#,%s ünïcödé \N{SNOWMAN}"])
def test_a_mountpoint_may_have_any_name(scratch: Path, name: str) -> None:
    point = scratch / name
    point.mkdir()
    with background(point, scratch):
        new_file(point / "file", PAGE)
        status = support.status_of(point)
        assert status.mountpoint == str(point)
        found = json.loads(cli("status", "--json", point).stdout)
        assert found["mountpoint"] == str(point)
        assert cli("status", point).stdout.splitlines()[0] == str(point)
        cli("umount", point)


def test_a_mountpoint_may_be_reached_by_a_link_or_a_relative_path(
    point: Path, scratch: Path
) -> None:
    link = scratch / "link"
    link.symlink_to("mnt")
    for named in (link, f"../{scratch.name}/link/./"):
        control = ("--control", "control", "--log", "log")
        cli("mount", *control, named, cwd=scratch)
        try:
            assert support.is_mounted(point)
            # Any other way leads to the same mount.
            found = json.loads(cli("status", "--json", link, cwd=scratch).stdout)
            assert found["mountpoint"] == str(point)
            assert found["control"] == str(scratch / "control")
        finally:
            cli("umount", named, cwd=scratch)
        assert not support.is_mounted(point)


def test_two_mounts_at_once_know_nothing_of_each_other() -> None:
    with support.mounted() as first, support.mounted() as second:
        new_file(first.path / "file", PAGE)
        run("fallocate", "-l", MIB, new_file(second.path / "file"))
        assert os.stat(first.path / "file").st_size == PAGE
        assert first.status().allocated_pages == 0
        assert second.status().allocated_pages == MIB // PAGE
        assert first.pid != second.pid
        assert os.stat(first.path).st_dev != os.stat(second.path).st_dev


def test_a_mount_below_a_mount_works(mount: Mount) -> None:
    """A daemon must not wait for itself when it looks at where it is."""
    inner = mount.path / "inner"
    inner.mkdir()
    with support.mounted(inner) as below:
        new_file(below.path / "file", PAGE)
        assert os.listdir(mount.path) == ["inner"]
        assert mount.status().files == 0
    assert os.listdir(inner) == []


@support.needs_root
def test_two_mounts_can_wrap_the_same_directory(memory: Path) -> None:
    with (
        support.mounted(backing=memory) as first,
        support.mounted(backing=memory) as second,
    ):
        new_file(first.path / "file", PAGE)
        assert os.stat(second.path / "file").st_size == PAGE
        run("fallocate", "-l", PAGE, second.path / "file")
        assert support.allocated(first.path / "file") == PAGE
        os.unlink(first.path / "file")
        assert os.listdir(second.path) == []


# --- status -------------------------------------------------------------------


def test_status_shows_files_and_pages(mount: Mount) -> None:
    run("fallocate", "-l", 3 * PAGE, new_file(mount.path / "file"))
    new_file(mount.path / "other")
    status = mount.status()

    assert (status.files, status.allocated_pages) == (2, 3)
    assert status.page_size == PAGE
    assert status.backing == "private tmpfs"
    assert status.pid == mount.pid
    assert status.control == str(mount.control)
    assert status.version == inaccfs.__version__
    found = json.loads(cli("status", "--json", mount.path).stdout)
    fields = {name: getattr(status, name) for name in status.__struct_fields__}
    # It is there if a process traces the daemon.
    assert fields.pop("tracer") is None
    assert found == fields
    lines = cli("status", mount.path).stdout.splitlines()
    assert lines[0] == str(mount.path)
    shown = dict(line.split(maxsplit=1) for line in lines[1:])
    assert shown["backing"] == "private tmpfs"
    assert shown["files"] == "2"
    assert shown["allocated"] == "3 pages of 4 KiB"
    assert shown["mmap"] == status.mmap
    assert shown["pid"] == str(mount.pid)


@support.needs_root
def test_status_has_the_size(memory: Path) -> None:
    with support.mounted(size="8m") as mount:
        assert mount.status().size == 8 * MIB
        assert "8 MiB" in cli("status", mount.path).stdout
    with support.mounted(size=0) as mount:
        assert mount.status().size == 0
        assert "no limit" in cli("status", mount.path).stdout
        run("fallocate", "-l", 2 * PAGE, new_file(mount.path / "file"))
        assert mount.status().allocated_pages == 2
    with support.mounted(backing=memory) as mount:
        assert mount.status().backing == f"{memory} (tmpfs)"


def test_status_counts_each_file_once(mount: Mount) -> None:
    (mount.path / "d").mkdir()
    file = new_file(mount.path / "d" / "file")
    os.link(file, mount.path / "link")
    (mount.path / "symlink").symlink_to("link")
    os.mkfifo(mount.path / "fifo")
    run("fallocate", "-l", PAGE, file)

    assert mount.status().files == 1
    assert mount.status().allocated_pages == 1


def test_status_counts_open_files_without_a_name(mount: Mount) -> None:
    """status.py: "Regular files that have a name, or are open"."""
    with support.opened(mount.path, os.O_TMPFILE | os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, PAGE)
        assert mount.status().allocated_pages == 1
        assert mount.status().files == 1


def test_status_of_all_shows_each_mount() -> None:
    with support.mounted() as first, support.mounted() as second:
        ours = {str(first.path): first.pid, str(second.path): second.pid}
        # Others may have mounts here, dead ones even.
        ran = run(*inaccfs_command("status", "--json"), status=None)
        found = {one["mountpoint"]: one["pid"] for one in json.loads(ran.stdout)}
        assert ours.items() <= found.items()
        text = run(*inaccfs_command("status"), status=None).stdout
        assert set(ours) <= set(text.splitlines())


def test_status_of_a_dead_daemon_says_so() -> None:
    with support.doomed() as mount, support.mounted() as other:
        support.kill(mount)
        wanted = complaint("status", mount.path)
        assert f"{mount.path}: its daemon is dead" in wanted
        assert "inaccfs umount" in wanted
        # It does not prevent the lines of the other mounts.
        ran = cli("status", "--json", status=1)
        assert wanted in ran.stderr.splitlines()
        assert str(other.path) in {one["mountpoint"] for one in json.loads(ran.stdout)}


def test_where_there_is_no_mount_status_and_umount_say_so(
    point: Path, scratch: Path
) -> None:
    for path in (point, scratch / "missing", new_file(scratch / "file"), Path("/proc")):
        for command in ("status", "umount"):
            message = complaint(command, path)
            assert (
                f"{path} is not an inaccfs mount (inaccfs status lists them)" in message
            )


def test_a_file_in_a_mount_is_no_mount(mount: Mount) -> None:
    new_file(mount.path / "file")
    assert "is not an inaccfs mount" in complaint("umount", mount.path / "file")
    (mount.path / "directory").mkdir()
    assert "is not an inaccfs mount" in complaint("status", mount.path / "directory")


# --- the command itself -------------------------------------------------------


def test_help_and_version_are_printed() -> None:
    assert cli("--version").stdout == f"inaccfs {inaccfs.__version__}\n"
    for command in ("umount", "status"):
        assert f"usage: inaccfs {command}" in cli(command, "--help").stdout
    assert "inaccfs -h lists them all" in cli("nonsense", status=2).stderr


def test_output_without_a_reader_is_no_bug(mount: Mount) -> None:
    """`inaccfs status | head -0`."""
    command = " ".join(inaccfs_command("status", mount.path))
    ran = run("bash", "-c", f"{command} > >(exec true); wait $!", status=None)
    assert "Traceback" not in ran.stderr
