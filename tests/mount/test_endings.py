"""How a mount ends: by umount, by signals, by force, and while it is in use."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

import inaccfs
from tests.mount import raw, support
from tests.mount.support import (
    MIB,
    PAGE,
    PATIENCE,
    allocated,
    background,
    cli,
    complaint,
    inaccfs_command,
    kill,
    new_file,
    opened,
    outcome,
    run,
    used,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse


@pytest.fixture
def mount(new_mount: Mount) -> Mount:
    """Each test ends its own."""
    return new_mount


GONE = ("ENOTCONN", "ECONNABORTED")


# --- by umount ----------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["umount", "fusermount3 -u", "inaccfs umount", "inaccfs umount --lazy"]
)
def test_every_way_of_unmounting_ends_the_daemon_well(
    mount: Mount, command: str
) -> None:
    run("fallocate", "-l", MIB, new_file(mount.path / "file"))
    words = command.split()
    if words[0] == "inaccfs":
        words = inaccfs_command(*words[1:])

    ran = run(*words, mount.path)

    assert ran.stdout + ran.stderr == ""
    assert mount.process.wait(PATIENCE) == 0
    assert os.listdir(mount.path) == []


def test_umount_returns_after_the_daemon_has_ended(point: Path, scratch: Path) -> None:
    """Then the memory is free, and the next mount does not meet the old daemon."""
    with background(point, scratch) as pid:
        daemon = os.pidfd_open(pid)
        try:
            cli("umount", point)
            assert support.wait_readable(daemon, 0)
        finally:
            os.close(daemon)
        assert not (scratch / "background.sock").exists()


def test_a_busy_mount_stays_and_the_message_says_what_to_do(mount: Mount) -> None:
    with opened(new_file(mount.path / "file", PAGE)):
        message = complaint("umount", mount.path)
        assert f"{mount.path} is busy: close what is open there" in message
        assert "inaccfs umount --lazy" in message
        assert os.listdir(mount.path) == ["file"]
        assert mount.process.poll() is None


def test_lazily_the_name_goes_now_and_the_daemon_with_the_last_close(
    mount: Mount,
) -> None:
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        with opened(mount.path, os.O_RDONLY) as directory:
            cli("umount", "--lazy", mount.path)

            assert not support.is_mounted(mount.path)
            assert os.listdir(mount.path) == []
            assert os.listdir(directory) == ["file"]
        # Open files still work.
        raw.fallocate(fd, 0, 0, 4 * PAGE)
        raw.punch(fd, 0, PAGE)
        assert allocated(fd) == 3 * PAGE
        assert mount.process.poll() is None
    assert mount.process.wait(PATIENCE) == 0


def test_lazily_a_busy_directory_can_be_mounted_again(mount: Mount) -> None:
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        cli("umount", "-l", mount.path)
        # It has another control socket, because the first one is still in use.
        with support.mounted(mount.path) as second:
            assert os.listdir(second.path) == []
            raw.fallocate(fd, 0, 0, PAGE)
            assert used(second.path) == 0
            assert second.status().pid == second.pid
    assert mount.process.wait(PATIENCE) == 0


# --- by signals ---------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_ends_well(mount: Mount, number: signal.Signals) -> None:
    new_file(mount.path / "file", PAGE)

    mount.process.send_signal(number)

    assert mount.process.wait(PATIENCE) == 0
    assert not support.is_mounted(mount.path)
    assert os.listdir(mount.path) == []


def test_a_signal_ends_a_mount_in_use_too(mount: Mount) -> None:
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        mount.process.terminate()

        assert mount.process.wait(PATIENCE) == 0
        assert not support.is_mounted(mount.path)
        assert outcome(os.fstat, fd) in GONE
        assert outcome(raw.fallocate, fd, 0, 0, PAGE) in GONE


def test_two_signals_are_no_more_than_one(mount: Mount) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        mount.process.send_signal(number)
    assert mount.process.wait(PATIENCE) == 0


def test_a_mount_that_covers_the_daemons_stays(mount: Mount) -> None:
    """The daemon unmounts its own mount, and no mount on top of it."""
    run("mount", "-t", "tmpfs", "-o", "size=1m", "inaccfs-test", mount.path)
    try:
        new_file(mount.path / "precious")
        mount.process.terminate()
        assert mount.process.wait(PATIENCE) in (0, 1)
        assert os.listdir(mount.path) == ["precious"]
    finally:
        run("umount", mount.path)
        run("umount", "-l", mount.path, status=None)


# --- by force -----------------------------------------------------------------


@pytest.fixture
def to_kill(point: Path) -> Iterator[Mount]:
    """A mount whose daemon the test kills."""
    with support.doomed(point) as mount:
        yield mount


def test_a_dead_daemons_mountpoint_says_so_and_is_cleaned_up(to_kill: Mount) -> None:
    with opened(to_kill.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        kill(to_kill)

        assert outcome(os.stat, to_kill.path) == "ENOTCONN"
        assert outcome(os.listdir, to_kill.path) == "ENOTCONN"
        assert outcome(raw.fallocate, fd, 0, 0, PAGE) in GONE
    cli("umount", to_kill.path)
    assert not support.is_mounted(to_kill.path)
    assert os.listdir(to_kill.path) == []


def test_a_dead_daemons_memory_is_back(point: Path) -> None:
    """Its tmpfs is in no mount namespace, so it is freed with the process."""
    support.need_memory(256 * MIB)

    def shmem() -> tuple[int, int, int]:
        before = support.meminfo("Shmem")
        with support.doomed(point) as mount:
            run("fallocate", "-l", 256 * MIB, new_file(mount.path / "file"))
            during = support.meminfo("Shmem")
            kill(mount)
            cli("umount", mount.path)
            return before, during, support.meminfo("Shmem")

    # The figures are the whole machine's, and others may be at work: the best of three.
    assert any(
        during > before + 200 * MIB and after < before + 100 * MIB
        for before, during, after in (shmem() for _ in range(3))
    )


def test_a_dead_daemons_control_socket_is_replaced(to_kill: Mount) -> None:
    kill(to_kill)
    cli("umount", to_kill.path)
    assert to_kill.control.is_socket()
    with support.mounted(to_kill.path, control=to_kill.control):
        pass


def test_a_dead_daemon_of_a_mount_in_use_is_cleaned_up_lazily(to_kill: Mount) -> None:
    with opened(to_kill.path / "file", os.O_CREAT | os.O_RDWR):
        kill(to_kill)
        complaint("umount", to_kill.path)
        cli("umount", "--lazy", to_kill.path)
        assert os.listdir(to_kill.path) == []


# --- mounted() ----------------------------------------------------------------


class Wanted(Exception):
    """The exception of the block."""


def test_mounted_takes_everything_down_when_the_block_raises() -> None:
    with pytest.raises(Wanted), support.mounted() as mount:
        raise Wanted
    assert mount.process.returncode == 0
    assert not support.is_mounted(mount.path)
    assert not mount.path.exists()


def test_mounted_takes_everything_down_when_a_file_is_left_open() -> None:
    with support.mounted() as mount:
        fd = os.open(mount.path / "file", os.O_CREAT | os.O_RDWR)
        directory = os.open(mount.path, os.O_RDONLY)
    try:
        assert outcome(os.fstat, fd) in GONE
    finally:
        os.close(fd)
        os.close(directory)


def test_mounted_raises_when_the_daemon_ended_otherwise(point: Path) -> None:
    with support.doomed(point) as mount:
        kill(mount)
    assert not support.is_mounted(point)


def test_an_exception_of_the_block_counts_for_more(point: Path) -> None:
    def block() -> None:
        with inaccfs.mounted(point) as mount:
            kill(mount)
            raise Wanted

    with pytest.raises(Wanted):
        block()
    assert not support.is_mounted(point)


@pytest.mark.parametrize("way", ["control", "options", "both"])
def test_mounted_tells_where_socket_and_log_are(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """By whichever way they are given; relative paths, too, which do not stay so."""
    monkeypatch.chdir(scratch)
    given: dict[str, dict[str, Any]] = {
        "control": {"control": "c"},
        "options": {"options": ["size=4m,control=x,log=l", "control=c"]},
        "both": {"control": "x", "options": "control=c"},
    }
    with support.mounted(**given[way]) as mount:
        status = mount.status()
        assert str(mount.control) == status.control == str(scratch / "c")
        if way == "options":
            assert str(mount.log) == status.log == str(scratch / "l")
        with inaccfs.connect(mount.control) as shim:
            assert shim.query_status() == status


def test_mounted_says_why_it_failed_where_sigchld_is_ignored() -> None:
    """The kernel discards the daemon's exit status there."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with (
            pytest.raises(inaccfs.MountError, match="size 'x' is not a size"),
            inaccfs.mounted(size="x"),
        ):
            pytest.fail("there is no such size")
        with support.mounted():
            pass
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_mounted_leaves_a_directory_of_the_users_in_place(point: Path) -> None:
    with support.mounted(point) as mount:
        assert mount.path == point
        assert mount.status().mountpoint == str(point)
    assert os.listdir(point) == []
