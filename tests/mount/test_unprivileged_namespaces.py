"""Mounts of a user who is root of a user namespace, or may not make one."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from inaccfs.runtime import escape
from tests.mount import support
from tests.mount.nobody import Nobody, need_user_namespace
from tests.mount.support import NOBODY

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.fuse, support.needs_root]


# --- where the user is root of a user namespace -------------------------------


@pytest.mark.parametrize("runtime", ["$XDG_RUNTIME_DIR", "/tmp"])
def test_root_of_a_user_namespace_has_places_of_its_own(
    nobody: Nobody, runtime: str
) -> None:
    """There /run belongs to another user, and the test sets XDG_RUNTIME_DIR."""
    need_user_namespace(nobody)
    if runtime == "/tmp":
        # This path is as long as a socket's may be.
        del nobody.environment["XDG_RUNTIME_DIR"]
        runtime = "/tmp/inaccfs-0"
        if os.path.lexists(runtime):
            pytest.skip(f"somebody has {runtime}")
    else:
        runtime = f"{nobody.runtime}/inaccfs"
    python = " ".join(nobody.python("-m", "inaccfs")[-3:])
    script = f"""
    set -eu
    {python} mount {nobody.point}
    {python} status --json {nobody.point}
    {python} umount {nobody.point}
    ls -A {runtime}
    [ {runtime} != /tmp/inaccfs-0 ] || rmdir {runtime}
    """
    ran = nobody.run(
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script
    )
    first, *rest = ran.stdout.splitlines()
    found = json.loads(first)
    name = escape(str(nobody.point))
    assert found["control"] == f"{runtime}/{name}.sock"
    assert found["log"] == f"{runtime}/{name}.log"
    assert rest == []


# --- where user namespaces are forbidden --------------------------------------


def fallback(user: Nobody) -> Path:
    """The directory that replaces the private tmpfs."""
    (name,) = set(user.run("ls", "-A", user.runtime).stdout.split()) - {"inaccfs"}
    return user.runtime / name


def test_without_user_namespaces_a_directory_takes_the_tmpfss_place(
    confined: Nobody,
) -> None:
    with confined.mounted() as warnings:
        assert (
            "warning: no user namespace (Operation not permitted): the memory"
            in warnings
        )
        place = fallback(confined)
        assert f"is in {place}, which your own processes can read" in warnings
        output = confined.run("stat", "-c", "%a %u %F", place).stdout
        assert output == f"700 {NOBODY} directory\n"
        confined.run("fallocate", "-l", "4k", confined.point / "file")
        assert confined.run("ls", place).stdout == "file\n"


def test_options_of_a_tmpfs_need_one_of_ones_own(confined: Nobody) -> None:
    message = confined.complaint(
        "mount", "--log", confined.log, "--size=1m", confined.point
    )
    assert "a user namespace was refused (Operation not permitted)" in message
    assert "leave them out, or mount as root" in message


def test_a_killed_daemons_directory_is_removed_by_umount(confined: Nobody) -> None:
    with confined.mounted():
        confined.run("fallocate", "-l", "4k", confined.point / "file")
        place = fallback(confined)
        pid = int(confined.pid())
        os.kill(pid, signal.SIGKILL)
        support.wait_for_exit(pid)
        assert confined.run("ls", place).stdout == "file\n"
        message = confined.complaint("mount", confined.point)
        assert "left from a daemon that died: inaccfs umount" in message

        confined.inaccfs("umount", confined.point)
