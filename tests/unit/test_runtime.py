"""Where sockets and logs are, and how they are named after a mountpoint."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from inaccfs import runtime
from inaccfs.errors import MountError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


PATHS = [
    "/",
    "/mnt",
    "/mnt/guest memory",
    "//mnt///a/",
    "/with-dash/and_underscore",
    "/.hidden/.also",
    "/a.b:c",
    "/tab\there\nand\\backslash",
    "/ünïcode/€",
    '/"quotes"/$HOME/%i',
]


@pytest.mark.skipif(
    shutil.which("systemd-escape") is None, reason="no systemd-escape(1)"
)
@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_escaped_as_systemd_does(path: str) -> None:
    ran = subprocess.run(
        ["systemd-escape", "--path", "--", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert runtime.escape(path) == ran.stdout.removesuffix("\n")


def test_root_has_run_if_it_is_his(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For root of a user namespace it is usually another user's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setattr(runtime, "_ROOTS", "/nowhere/inaccfs")
    assert runtime.directory() == "/run/user/0/inaccfs"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert runtime.directory() == "/tmp/inaccfs-0"
    (tmp_path / "other").mkdir()
    if os.getuid() == 0:
        os.chown(tmp_path / "other", 1, 1)
        monkeypatch.setattr(runtime, "_ROOTS", str(tmp_path / "other"))
        assert runtime.directory() == "/tmp/inaccfs-0"
        monkeypatch.setattr(runtime, "_ROOTS", str(tmp_path / "new"))
        assert runtime.directory() == str(tmp_path / "new")


def test_the_socket_of_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime.control_path("/mnt/a", None) == "/run/inaccfs/mnt-a.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert runtime.control_path("/mnt", None) == "/run/user/1000/inaccfs/mnt.sock"
    assert runtime.control_path("/mnt", "/elsewhere") == "/elsewhere"
    # It is /tmp/inaccfs-UID itself, because make_directory() checks a directory in
    # /tmp.
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime.directory() == "/tmp/inaccfs-1000"
    assert runtime.control_path("/mnt", None) == "/tmp/inaccfs-1000/mnt.sock"
    assert runtime.log_path("/mnt") == "/tmp/inaccfs-1000/mnt.log"


@pytest.mark.parametrize("path", ["/" + "x" * 106, "/" + "ü" * 53])
def test_a_sockets_path_may_have_107_bytes(path: str) -> None:
    assert runtime.control_path("/mnt", path) == path
    with pytest.raises(MountError, match=r"has 108 bytes.*--control"):
        runtime.control_path("/mnt", path + "x")


@pytest.mark.parametrize("runtime_directory", ["/run/user/1000", "/run/" + "d" * 70])
def test_the_default_socket_of_a_long_mountpoint(
    monkeypatch: pytest.MonkeyPatch, runtime_directory: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_directory)
    mountpoints = [f"/{parent}/{'ü' * 120}/guests" for parent in "ab"]
    paths = {runtime.control_path(mountpoint, None) for mountpoint in mountpoints}
    assert len(paths) == len(mountpoints)
    for path in paths:
        assert len(os.fsencode(path)) <= 107
        assert re.fullmatch(r"[0-9a-f]{12}-.*uests\.sock", os.path.basename(path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/" + "d" * 90)
    with pytest.raises(MountError, match="name a shorter one with --control"):
        runtime.control_path(mountpoints[0], None)


def test_the_name_of_a_mountpoint_is_cut_only_where_it_must() -> None:
    assert runtime.short_name("/mnt/abc", 7) == "mnt-abc"
    shortened = runtime.short_name("/mnt/abcdefghijklmnop", 20)
    assert len(shortened) == 20
    assert shortened.endswith("jklmnop"), shortened
    assert shortened != runtime.short_name("/other/abcdefghijklmnop", 20)


def test_a_log_has_a_name_that_a_file_can_have() -> None:
    path = "/" + "/".join(["deep-er"] * 100)
    for name in (runtime.log_path, runtime.fallback_name):
        assert len(os.path.basename(name(path))) <= 255
        assert name(path) != name(f"/other{path}")


def test_the_directory_is_made_and_closed_to_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "inaccfs"
    monkeypatch.setattr(runtime, "directory", lambda: str(path))
    assert runtime.make_directory() == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o755)
    runtime.make_directory()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def _file(path: Path) -> None:
    path.touch()


def _link(path: Path) -> None:
    path.symlink_to("/tmp")


@pytest.mark.parametrize("make", [_file, _link])
def test_a_directory_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "inaccfs")
    monkeypatch.setattr(runtime, "directory", lambda: str(tmp_path / "inaccfs"))
    with pytest.raises(MountError):
        runtime.make_directory()
