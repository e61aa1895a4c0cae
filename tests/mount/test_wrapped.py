"""A wrapped directory, which others may change, too."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.mount import raw, support
from tests.mount.support import PAGE, allocated, new_file, opened, outcome, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fuse


@support.needs_root
def test_names_that_change_in_the_backing_show_at_once(memory: Path) -> None:
    with support.mounted(backing=memory) as mount:
        assert not (mount.path / "file").exists()
        new_file(memory / "file", PAGE)
        assert os.stat(mount.path / "file").st_size == PAGE

        os.rename(memory / "file", memory / "moved")
        assert not (mount.path / "file").exists()
        assert os.stat(mount.path / "moved").st_size == PAGE

        os.unlink(memory / "moved")
        new_file(memory / "moved", 2 * PAGE)
        assert os.stat(mount.path / "moved").st_size == 2 * PAGE

        os.unlink(memory / "moved")
        (memory / "moved").mkdir()
        new_file(memory / "moved" / "inner", 3 * PAGE)
        assert os.stat(mount.path / "moved/inner").st_size == 3 * PAGE
        os.chmod(memory / "moved", 0o711)
        assert stat.S_IMODE(os.stat(mount.path / "moved").st_mode) == 0o711
        assert os.listdir(mount.path) == ["moved"]


@support.needs_root
def test_open_files_survive_changes_in_the_backing(
    memory: Path,
) -> None:
    with support.mounted(backing=memory) as mount:
        with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
            raw.fallocate(fd, 0, 0, PAGE)
            os.unlink(memory / "file")
            assert os.fstat(fd).st_nlink == 0
            raw.fallocate(fd, 0, PAGE, PAGE)
            assert allocated(fd) == 2 * PAGE
            new_file(memory / "file", 8 * PAGE)
            assert os.stat(mount.path / "file").st_size == 8 * PAGE
            assert os.fstat(fd).st_size == 2 * PAGE
        support.wait_until_unused(mount.path)


@support.needs_root
def test_the_files_of_a_wrapped_directory_stay_after_the_mount(memory: Path) -> None:
    with support.mounted(backing=memory) as mount:
        run("fallocate", "-l", PAGE, new_file(mount.path / "file"))
    assert allocated(memory / "file") == PAGE
    with support.mounted(backing=memory) as mount:
        assert allocated(mount.path / "file") == PAGE
        assert outcome(os.truncate, mount.path / "file", 0) == "EPERM"


@support.needs_root
def test_another_file_system_below_a_wrapped_directory_is_left_out(
    memory: Path,
) -> None:
    """Its inode numbers could be those of files of the wrapped one."""
    with (
        support.tmpfs(memory / "other") as other,
        support.mounted(backing=memory) as mount,
    ):
        new_file(other / "file")
        assert outcome(os.stat, mount.path / "other/file") in ("EXDEV", "ENOENT")
        assert os.listdir(mount.path) == []
