"""The census itself: it must show leftovers."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.hard import census
from tests.hard.census import Census
from tests.mount import support
from tests.mount.peers import peer
from tests.mount.support import MIB, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hard.census import Ground

pytestmark = pytest.mark.fuse


def test_leftovers_of_a_test_are_reported(ground: Ground, point: Path) -> None:
    assert set(ground.left()) == {"files"}
    sleeper = subprocess.Popen(["sleep", "100"], env=support.ENVIRONMENT)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(ground.path / "socket"))
    with support.tmpfs(ground.path / "tmpfs"), tempfile.TemporaryFile():
        left = ground.left()
        assert left["processes"] == [(sleeper.pid, "sleep 100 ")]
        assert left["mounts"] == [str(ground.path / "tmpfs")]
        assert left["sockets"] == [str(ground.path / "socket")]
        assert left["files"] == ["mnt", "socket", "tmpfs"]
        assert left["fds of the test"] == {"socket:[N]": 1, **_of_temporary(left)}
    (ground.path / "tmpfs").rmdir()
    (ground.path / "socket").unlink()
    bound.close()
    sleeper.kill()
    sleeper.wait()


def _of_temporary(left: dict[str, object]) -> dict[str, int]:
    fds = left["fds of the test"]
    assert isinstance(fds, dict)
    return {kind: count for kind, count in fds.items() if "deleted" in kind}


def test_resources_of_a_mount_are_reported(ground: Ground, point: Path) -> None:
    with support.mounted(point) as mount:
        ground.remember(point)
        before = Census.of(mount.pid, point)
        with peer(mount.control) as shim:
            run("fallocate", "-l", MIB, point / "file")
            shim.do("query-version")
            held = Census.of(mount.pid, point)
        os.unlink(point / "file")

    assert held.memory == before.memory + MIB
    assert held.inodes == before.inodes + 1
    assert held.fds["socket:[N]"] == before.fds["socket:[N]"] + 1
    assert before.mounts == held.mounts == 1


def test_a_connection_that_stays_is_reported_and_not_the_next_with_its_number(
    ground: Ground, point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount of another test may get the number as soon as it is free."""
    connections, following = ground.path / "connections", ground.path / "following"
    connections.mkdir()
    monkeypatch.setattr(census, "_CONNECTIONS", str(connections))
    with support.mounted(point):
        number = str(os.minor(os.stat(point).st_dev))
        (connections / number).mkdir()
        ground.remember(point)
    assert ground.left()["connections"] == [number]
    following.mkdir()
    following.rename(connections / number)
    assert "connections" not in ground.left()
    (connections / number).rmdir()
    connections.rmdir()
