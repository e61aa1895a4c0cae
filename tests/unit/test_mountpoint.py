"""The path of a mountpoint: empty, missing, or by symbolic links."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs import cli
from inaccfs.errors import MountError, OptionError
from inaccfs.fuse import finding
from inaccfs.fuse.mountpoint import Mountpoint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere", "mkdir -p"), ("file", "not a directory")]
)
def test_a_path_that_cannot_be_mounted_on_is_reported(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match=reason):
        Mountpoint.open(str(tmp_path / name))


def test_an_empty_path_is_not_the_working_directory(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The shell passes an empty path for `inaccfs mount "$unset"`."""
    monkeypatch.chdir(tmp_path)
    for words in (["mount"], ["umount"], ["status"]):
        assert cli.main([*words, ""]) == 2
        assert "mountpoint is empty: name a directory" in capsys.readouterr().err
    assert cli.main(["qmp", "", "query-version"]) == 2
    with pytest.raises(OptionError, match="empty"), inaccfs.mounted(""):
        pass


def test_a_loop_of_links_is_reported(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MountError, match=r"loop: Too many levels of symbolic links$"):
        Mountpoint.open(str(tmp_path / "loop"))


def test_a_mountpoint_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for path in ("link", "real", "real/../link"):
        with Mountpoint.open(str(tmp_path / path)) as found:
            assert found.path == os.path.realpath(tmp_path / "real")
            assert os.path.samestat(os.fstat(found.fd), os.stat(found.path))


def test_a_link_that_is_replaced_while_it_is_resolved_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)

    def readlink(path: str) -> str:
        raise FileNotFoundError(errno.ENOENT, "replaced", path)

    monkeypatch.setattr(os, "readlink", readlink)
    assert finding.resolve(str(link)) == str(link)
