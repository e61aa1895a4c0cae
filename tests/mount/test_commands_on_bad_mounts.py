"""Commands for a mount that is stopped, or another user's: each prints one line."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.mount.support import (
    ENVIRONMENT,
    NOBODY,
    PAGE,
    PATIENCE,
    hasty_command,
    inaccfs_command,
    mounted,
    needs_root,
    new_file,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fuse

COMMANDS = {
    "status": "{mount}",
    "map": "{mount}/f",
    "trace": "{mount}",
    "metrics": "{mount}",
}


def words(command: str, mount: Path) -> list[str]:
    return [command, COMMANDS[command].format(mount=mount)]


def test_a_daemon_that_has_stopped_is_one_line() -> None:
    with mounted() as mount:
        new_file(mount.path / "f", PAGE)
        os.kill(mount.pid, signal.SIGSTOP)
        try:
            # They run at the same time, as each waits for the daemon.
            running = {
                command: subprocess.Popen(
                    hasty_command(*words(command, mount.path)),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=ENVIRONMENT,
                )
                for command in COMMANDS
            }
            reporting = subprocess.Popen(
                hasty_command("report", mount.path),
                stdout=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT,
            )
            for command, process in running.items():
                out, err = process.communicate(timeout=PATIENCE)
                assert (process.returncode, out) == (1, ""), command
                assert len(err.splitlines()) == 1, err
                assert "its daemon does not answer (stopped?)" in err
            out, _ = reporting.communicate(timeout=PATIENCE)
            assert reporting.returncode == 0
            assert "its daemon does not answer (stopped?)" in out
        finally:
            os.kill(mount.pid, signal.SIGCONT)


@needs_root
def test_the_mount_of_another_user_is_one_line() -> None:
    with mounted() as mount:
        mount.path.parent.chmod(0o755)
        new_file(mount.path / "f", PAGE)
        for command in COMMANDS:
            line = inaccfs_command(*words(command, mount.path))
            found = run(*line, status=1, user=NOBODY, group=NOBODY)
            assert found.stdout == ""
            assert len(found.stderr.splitlines()) == 1, found.stderr
            assert "another user's, and without allow_other" in found.stderr


@needs_root
@pytest.mark.parametrize("lazily", [False, True])
def test_the_mount_of_another_user_is_not_unmounted(lazily: bool) -> None:
    with mounted() as mount:
        mount.path.parent.chmod(0o755)
        words = ["--lazy"] if lazily else []
        command = inaccfs_command("umount", *words, mount.path)
        found = run(*command, status=1, user=NOBODY, group=NOBODY)
        assert found.stderr == (
            f"inaccfs: cannot unmount {mount.path}: it is a mount of uid 0: only that "
            "user and root may unmount it\n"
        )


@pytest.mark.parametrize("command", [*COMMANDS, "report"])
def test_another_file_system_is_one_line(command: str) -> None:
    target = "/proc/version" if command == "map" else "/proc"
    found = run(*inaccfs_command(command, target), status=1)
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert "inaccfs mount" in found.stderr
