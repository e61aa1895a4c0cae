"""Mounts that cannot be made: each error is one line that says what to do."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

import pytest

import inaccfs
from inaccfs.cli import main
from tests.mount import support
from tests.mount.namespaces import private_namespace, quoted
from tests.mount.support import PAGE, complaint, inaccfs_command, new_file, run

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("_nothing_is_mounted")]


# --- the mountpoint -----------------------------------------------------------


@pytest.mark.parametrize(
    "extra", [(), ("--foreground",)], ids=["background", "foreground"]
)
def test_a_mountpoint_that_is_missing(scratch: Path, extra: tuple[str, ...]) -> None:
    missing = scratch / "missing"
    message = complaint("mount", *extra, "--control", scratch / "control", missing)
    assert message == (
        f"inaccfs: mountpoint {missing} does not exist: mkdir -p {missing}"
    )


def test_a_mountpoint_that_is_no_directory(scratch: Path) -> None:
    file = new_file(scratch / "file")
    message = complaint("mount", "--control", scratch / "control", file)
    assert message == f"inaccfs: mountpoint {file} is not a directory: name one that is"


def test_a_mountpoint_below_a_file(scratch: Path) -> None:
    below = new_file(scratch / "file") / "mnt"
    assert "Not a directory" in complaint(
        "mount", "--control", scratch / "control", below
    )


def test_a_mountpoint_that_is_a_mount_already(point: Path) -> None:
    with support.mounted(point):
        message = complaint("mount", point)
        assert f"{point} is an inaccfs mount already" in message
        assert f"inaccfs umount {point}" in message
        # The first mount still works.
        new_file(point / "file", PAGE)


def test_a_mountpoint_that_a_dead_daemon_left(point: Path) -> None:
    with support.doomed(point) as mount:
        support.kill(mount)
        message = complaint("mount", point)
        assert "left from a daemon that died" in message
        assert f"inaccfs umount {point}" in message


# --- options ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("-ononsense", "unknown mount option 'nonsense'"),
        ("-osize=1m,nonsense=1", "unknown mount option 'nonsense=1'"),
        ("-osuid", "always nosuid, nodev and noexec"),
        ("-orw,exec", "always nosuid, nodev and noexec"),
        ("--size=junk", "size 'junk' is not a size"),
        ("--size=-1", "size '-1' is not a size"),
        ("--size=", "option size has no value"),
        ("-osize=1x", "size '1x' is not a size"),
        ("--huge=sometimes", "huge 'sometimes' is not one of never, always"),
        ("-ohuge=1", "huge '1' is not one of never, always"),
        ("--mode=999", "mode '999' is not an octal mode"),
        ("--mode=77777", "mode '77777' is not an octal mode"),
        ("--uid=root", "uid 'root' is not a number"),
        ("--uid=-1", "uid '-1' is not a number"),
        ("--backing=/dev/shm --size=1m", "--size is for the private tmpfs"),
        ("-obacking=/dev/shm,huge=always", "--huge is for the private tmpfs"),
        ("--backing=/dev/shm --mode=700", "--mode is for the private tmpfs"),
    ],
)
def test_an_option_that_makes_no_sense(
    point: Path, capsys: pytest.CaptureFixture[str], words: str, reason: str
) -> None:
    """The command runs in this process, as it starts no daemon for wrong options."""
    assert main(["mount", *words.split(), str(point)]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("inaccfs: ")
    assert captured.err.count("\n") == 1
    assert reason in captured.err


def test_an_option_that_only_the_kernel_can_refuse(point: Path, scratch: Path) -> None:
    control = ("--control", scratch / "control")
    message = complaint("mount", *control, "--gid=99999999999", point)
    assert "gid=99999999999" in message
    message = complaint("mount", *control, "-o", "context=junk", point)
    assert f"cannot mount on {point}: Invalid argument" in message


def test_options_that_argparse_refuses(point: Path) -> None:
    for arguments in (["--nonsense"], [], ["--ready-fd", "x"]):
        ran = support.cli(
            "mount", *arguments, *([point] if arguments else []), status=2
        )
        assert "inaccfs mount -h" in ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_control_path_that_is_too_long(point: Path, scratch: Path) -> None:
    """sun_path of unix(7) has 108 bytes."""
    long = scratch / ("x" * 120)
    message = complaint("mount", "--control", long, point)
    assert "a socket's path can have 107" in message
    assert "name a shorter one with --control" in message


def test_a_temporary_directory_that_is_too_long_for_a_socket(scratch: Path) -> None:
    """Commands that make a private mount have no --control."""
    long = scratch / ("x" * 120)
    long.mkdir()
    script = new_file(scratch / "script.py")
    environment = {**support.ENVIRONMENT, "TMPDIR": str(long)}
    message = complaint("kvm", "run", script, env=environment)
    assert message.startswith(f"inaccfs: {os.path.realpath(long)}/inaccfs-")
    assert message.endswith("socket: set TMPDIR to a directory with a shorter path")
    assert os.listdir(long) == []


def test_where_no_temporary_directory_can_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert main(["kvm", "demo"]) == 1
    assert capsys.readouterr().err == (
        "inaccfs: cannot make a temporary directory: No such file or directory: set "
        "TMPDIR to a directory of yours\n"
    )


def test_a_mountpoint_whose_name_is_too_long_for_a_socket(scratch: Path) -> None:
    deep = scratch / ("d" * 120)
    deep.mkdir()
    run(*inaccfs_command("mount", deep))
    try:
        status = json.loads(run(*inaccfs_command("status", "--json", deep)).stdout)
        assert Path(status["control"]).is_socket()
        assert '"inaccfs"' in run(*inaccfs_command("qmp", deep, "query-version")).stdout
    finally:
        run(*inaccfs_command("umount", deep))
    assert not Path(status["control"]).exists()


def test_a_control_path_that_the_mount_would_cover(point: Path) -> None:
    for control in (point / "c", point / "." / "sub" / "c"):
        assert complaint("mount", "--control", control, point).endswith(
            "the mount would cover it: name another place with --control"
        )
    with (
        pytest.raises(inaccfs.MountError, match="the mount would cover it"),
        inaccfs.mounted(point, control=point / "c"),
    ):
        pytest.fail("nobody could connect")


@support.needs_root
@pytest.mark.parametrize("limit", [8, 20, 63])
def test_a_limit_of_open_files_that_is_no_use(point: Path, limit: int) -> None:
    """Without CAP_SYS_RESOURCE, with which the daemon would raise it."""
    words = ("mount", "--foreground", point)
    ran = run(
        "setpriv",
        "--bounding-set=-sys_resource",
        "prlimit",
        f"--nofile={limit}",
        *inaccfs_command(*words),
        status=1,
    )
    assert ran.stdout == ""
    assert re.fullmatch(r"inaccfs: .*open files.*\n", ran.stderr), ran.stderr


@support.needs_root
@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("mount --log LOG --control CONTROL POINT", 1),
        ("compare --semantics v8 --semantics v9 SCRIPT", 1),
        ("kvm stress", 1),
        ("probe memfd", 2),
        ("explore SCENARIO", 2),
    ],
)
def test_a_limit_of_processes_is_one_line(
    point: Path, scratch: Path, words: str, status: int
) -> None:
    """Other tests may have processes of that user, too: the limit is met anyway."""
    scratch.chmod(0o777)
    (scratch / "script.py").write_text("")
    places: dict[str, str | Path] = {
        "LOG": scratch / "log",
        "CONTROL": scratch / "c",
        "POINT": point,
        "SCRIPT": scratch / "script.py",
        "SCENARIO": f"{scratch / 'script.py'}:Mine",
    }
    ran = run(
        "prlimit",
        "--nproc=1",
        *inaccfs_command(*(places.get(word, word) for word in words.split())),
        status=status,
        user=support.NOBODY,
        group=support.NOBODY,
        env={**support.ENVIRONMENT, "TMPDIR": str(scratch)},
    )
    assert ran.stdout == ""
    assert re.fullmatch(
        "inaccfs: cannot start .*: no more processes are allowed: .*\n", ran.stderr
    ), ran.stderr


def test_a_control_path_that_cannot_be_bound(point: Path, scratch: Path) -> None:
    message = complaint("mount", "--control", scratch / "missing" / "socket", point)
    assert "cannot bind the control socket" in message
    assert "name another with --control" in message


def test_a_control_path_where_something_else_is(point: Path, scratch: Path) -> None:
    other = new_file(scratch / "precious")
    message = complaint("mount", "--control", other, point)
    assert f"control socket {other}: " in message
    assert "name another with --control" in message
    assert other.exists()


def test_a_control_path_that_another_daemon_has(point: Path, scratch: Path) -> None:
    with support.mounted() as mount:
        message = complaint("mount", "--control", mount.control, point)
        assert "is another daemon's" in message
        assert mount.control.is_socket()


def test_a_log_that_cannot_be_written(point: Path, scratch: Path) -> None:
    log = scratch / "missing" / "log"
    message = complaint("mount", "--control", scratch / "control", "--log", log, point)
    assert f"cannot write the log {log}" in message
    assert "--log" in message


# --- /dev/fuse and permissions ------------------------------------------------


@support.needs_root
@pytest.mark.parametrize(
    ("hide", "reason"),
    [
        (
            "mount --bind /dev/null /dev/fuse",
            "no such device or address|cannot|no permi",
        ),
        ("touch H/f; mount --bind H/f /dev/fuse", "/dev/fuse is not a device: mknod"),
        (
            "mount -t tmpfs none /dev",
            "no /dev/fuse: load the module with modprobe fuse",
        ),
    ],
    ids=["another device", "a file", "missing"],
)
def test_a_dev_fuse_that_is_none(
    point: Path, scratch: Path, hide: str, reason: str
) -> None:
    hide = hide.replace("H", quoted(scratch))
    with private_namespace(hide) as namespace:
        message = namespace.run(
            *inaccfs_command("mount", "--control", scratch / "control", "--foreground"),
            point,
            status=1,
        ).stderr
    assert message.count("\n") == 1, message
    assert any(part in message.lower() for part in reason.lower().split("|")), message


@support.needs_root
def test_root_without_cap_sys_admin(point: Path, scratch: Path) -> None:
    message = run(
        "setpriv",
        "--bounding-set=-sys_admin",
        "--inh-caps=-sys_admin",
        *inaccfs_command("mount", "--control", scratch / "control", point),
        status=1,
    ).stderr
    assert message.count("\n") == 1, message
    assert "CAP_SYS_ADMIN" in message


@support.needs_root
def test_root_without_cap_sys_admin_and_a_backing(
    point: Path, scratch: Path, memory: Path
) -> None:
    message = run(
        "setpriv",
        "--bounding-set=-sys_admin",
        "--inh-caps=-sys_admin",
        *inaccfs_command("mount", "--control", scratch / "control"),
        "--backing",
        memory,
        point,
        status=1,
    ).stderr
    assert message == (
        f"inaccfs: no permission to mount on {point}: it needs CAP_SYS_ADMIN\n"
    )


# --- mounted() ----------------------------------------------------------------


def test_mounted_raises_what_the_daemon_said(point: Path) -> None:
    with (
        pytest.raises(
            inaccfs.MountError, match=r"^size 'junk' is not a size: give bytes"
        ),
        inaccfs.mounted(point, size="junk"),
    ):
        pytest.fail("there is a mount")
    with (
        pytest.raises(inaccfs.MountError, match="does not exist: mkdir -p"),
        inaccfs.mounted(point / "missing"),
    ):
        pytest.fail("there is a mount")
