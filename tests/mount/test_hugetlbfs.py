"""A hugetlbfs as the backing: its huge page is the unit of all rules."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

import inaccfs
from inaccfs.errors import BusError
from tests import hugepages
from tests.mount import raw, support
from tests.mount.support import (
    MIB,
    PAGE,
    allocated,
    cli,
    new_file,
    opened,
    outcome,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.fuse, support.needs_root]

PAGES: Final = 8
HUGE: Final = 2 * MIB


@pytest.fixture
def pool(scratch: Path) -> Iterator[Path]:
    """A hugetlbfs for the test, with free pages."""
    path = scratch / "huge"
    path.mkdir()
    with hugepages.reserved(PAGES):
        options = f"pagesize=2M,size={PAGES * HUGE},mode=700"
        if run(
            "mount", "-t", "hugetlbfs", "-o", options, "none", path, status=None
        ).returncode:
            pytest.skip("no hugetlbfs")
        try:
            yield path
        finally:
            run("umount", "-l", path)


def test_the_huge_page_is_the_unit(pool: Path) -> None:
    with support.mounted(backing=pool) as mount:
        status = mount.status()
        assert status.page_size == HUGE
        assert status.backing == f"{pool} (hugetlbfs)"
        file = new_file(mount.path / "file")
        assert os.stat(file).st_blksize == HUGE
        assert os.statvfs(mount.path).f_frsize == HUGE

        for size in (PAGE, HUGE - PAGE, HUGE + PAGE):
            assert outcome(os.truncate, file, size) == "EINVAL"
        os.truncate(file, 4 * HUGE)
        assert outcome(os.truncate, file, 0) == "EPERM"
        with opened(file) as fd:
            raw.fallocate(fd, 0, 0, 4 * HUGE)
            assert allocated(fd) == 4 * HUGE
            assert mount.status().allocated_pages == 4
            for offset, length in [(0, PAGE), (PAGE, HUGE), (HUGE, HUGE + PAGE)]:
                assert outcome(raw.punch, fd, offset, length) == "EINVAL"
            assert allocated(fd) == 4 * HUGE
            raw.punch(fd, HUGE, 2 * HUGE)
            assert allocated(fd) == 2 * HUGE
        assert "2 pages of 2 MiB" in cli("status", mount.path).stdout


def test_a_pool_that_is_empty_says_enospc(pool: Path) -> None:
    with support.mounted(backing=pool) as mount:
        first, second = new_file(mount.path / "a"), new_file(mount.path / "b")
        run("fallocate", "-l", PAGES * HUGE, first)
        with opened(second) as fd:
            assert outcome(raw.fallocate, fd, 0, 0, HUGE) == "ENOSPC"
        assert allocated(second) == 0
        os.unlink(first)
        support.wait_until_unused(mount.path)
        run("fallocate", "-l", HUGE, second)


def test_names_and_refusals_are_those_of_a_tmpfs(pool: Path) -> None:
    with support.mounted(backing=pool) as mount:
        (mount.path / "directory").mkdir()
        file = new_file(mount.path / "file", HUGE)
        os.link(file, mount.path / "directory" / "link")
        os.rename(file, mount.path / "moved")
        assert sorted(os.listdir(mount.path)) == ["directory", "moved"]
        assert os.stat(mount.path / "directory" / "link").st_nlink == 2
        with opened(mount.path / "moved") as fd:
            assert outcome(os.read, fd, 1) == "EINVAL"
            assert outcome(os.write, fd, b"x") == "EINVAL"
        # Linux 6.18 refuses this call on a hugetlbfs; other kernels do not.
        result = outcome(os.symlink, "file", mount.path / "symlink")
        assert result == outcome(os.symlink, "file", pool / "plain")
        run("sh", "-c", "rm -rf *", cwd=mount.path)
        assert os.listdir(mount.path) == []


def test_the_pages_go_back_to_the_pool_with_the_last_close(pool: Path) -> None:
    with support.mounted(backing=pool) as mount:
        file = new_file(mount.path / "file")
        with opened(file) as fd:
            raw.fallocate(fd, 0, 0, 4 * HUGE)
            os.unlink(file)
            assert support.used(mount.path) == 4 * HUGE
        support.wait_until_unused(mount.path)


def test_conversions_windows_and_population_of_huge_pages(pool: Path) -> None:
    """A hugetlbfs has no write(2) of its own: content is set through a mapping."""
    with (
        support.mounted(backing=pool, semantics="in-place-v8") as mount,
        inaccfs.connect(mount.control) as client,
        opened(mount.path / "guest", os.O_RDWR | os.O_CREAT) as fd,
        opened(mount.path / "source", os.O_RDWR | os.O_CREAT) as source_fd,
    ):
        os.ftruncate(fd, 4 * HUGE)
        os.ftruncate(source_fd, HUGE)
        file, source = client.file(fd), client.file(source_fd)
        source.set_memory_attributes(0, 1, False)
        source.shared_window().write(HUGE - 5, b"image")
        assert file.populate(2, 1, source) == 1
        file.set_memory_attributes(2, 1, False)
        window = file.shared_window()
        assert window.read(3 * HUGE - 5, 5) == b"image"
        with pytest.raises(BusError) as caught:
            window.read(3 * HUGE - 1, 2)
        assert caught.value.offset == 3
        assert allocated(mount.path / "guest") == HUGE
