"""Mounts of a user whose daemon does not answer, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mount import support

if TYPE_CHECKING:
    from tests.mount.nobody import Nobody

pytestmark = [pytest.mark.fuse, support.needs_root]


def test_a_users_stopped_daemon_is_unmounted_and_reported(nobody: Nobody) -> None:
    # Where the machine has fusectl mounted, its user could abort the connection.
    nobody.namespace.shell("umount /sys/fs/fuse/connections || true")
    nobody.inaccfs("mount", "--log", nobody.log, nobody.point)
    pid = int(nobody.pid())
    daemon = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGSTOP)
        message = nobody.umount_stopped()
        assert message.startswith(
            f"inaccfs: {nobody.point} is unmounted; its daemon did not answer, and "
            "only root can abort its connection (echo 1 > /sys/fs/fuse/connections/"
        )
        assert f"{pid} is still there with its memory: kill -CONT {pid} " in message
        assert message.count("\n") == 1
        assert nobody.run("ls", "-A", nobody.point).stdout == ""
        os.kill(pid, signal.SIGCONT)
        assert support.wait_readable(daemon)
        support.assert_clean(nobody.run("cat", nobody.log, status=None).stdout)
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        support.wait_readable(daemon)
        os.close(daemon)


@pytest.mark.parametrize("state", ["works", "stopped", "dead"])
def test_root_unmounts_a_users_mount(nobody: Nobody, state: str) -> None:
    """root may not access it: only its owner may."""
    nobody.inaccfs("mount", "--log", nobody.log, nobody.point)
    pid = int(nobody.pid())
    daemon = os.pidfd_open(pid)
    try:
        umount = support.inaccfs_command("umount", nobody.point)
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
            umount = support.hasty_command("umount", nobody.point)
        elif state == "dead":
            os.kill(pid, signal.SIGKILL)
            support.wait_readable(daemon)
        message = nobody.namespace.run(*umount).stderr
        if state == "works":
            assert message == ""
            assert support.wait_readable(daemon, 0)
        elif state == "stopped":
            assert "did not answer, so its connection is aborted" in message
        else:
            assert "its daemon was dead" in message
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        support.wait_readable(daemon)
        os.close(daemon)


def test_a_user_aborts_by_fusectl(nobody: Nobody) -> None:
    """The files of fusectl belong to the mounts' owners."""
    place = f"{nobody.home}/connections"
    nobody.namespace.shell(f"mkdir {place}; mount -t fusectl none {place}")
    nobody.inaccfs("mount", "--log", nobody.log, nobody.point)
    pid = int(nobody.pid())
    daemon = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGSTOP)
        message = nobody.umount_stopped()
        assert "its daemon did not answer, so its connection is aborted" in message
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        support.wait_readable(daemon)
        os.close(daemon)


def test_a_users_mounted_goes_with_its_holder(nobody: Nobody) -> None:
    source = (
        "import inaccfs, os, signal\n"
        "with inaccfs.mounted() as mount:\n"
        "    print(mount.pid, mount.path, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        nobody.python("-c", source),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        pid, path = holder.stdout.readline().split()
        daemon = os.pidfd_open(int(pid))
        holder.kill()
        assert support.wait_readable(daemon)
        os.close(daemon)
    assert path not in nobody.namespace.run("cat", "/proc/self/mountinfo").stdout
    assert nobody.run("ls", Path(path).parent, status=None).returncode == 2
