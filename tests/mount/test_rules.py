"""The rules of v8, through a mount: what may be allocated, punched and sized.

inaccessible_fallocate() and inaccessible_setattr() of mm/memfd_inaccessible.c, and
below them shmem_fallocate() of mm/shmem.c.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.mount import raw, support
from tests.mount.raw import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tests.mount.support import MIB, PAGE, allocated, new_file, opened, outcome, run

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse


# --- fallocate ----------------------------------------------------------------


def test_an_allocation_takes_memory_and_sets_the_size(mount: Mount) -> None:
    file = new_file(mount.path / "file")

    run("fallocate", "-l", 8 * PAGE, file)

    assert os.stat(file).st_size == 8 * PAGE
    assert allocated(file) == 8 * PAGE
    assert support.used(mount.path) == 8 * PAGE


def test_an_allocation_grows_a_file_whose_size_is_set(mount: Mount) -> None:
    """In v8 the size is final for truncate(2) only."""
    file = new_file(mount.path / "file", PAGE)

    run("fallocate", "-o", PAGE, "-l", PAGE, file)

    assert os.stat(file).st_size == 2 * PAGE
    assert allocated(file) == PAGE


def test_keep_size_allocates_beyond_the_end(mount: Mount) -> None:
    file = new_file(mount.path / "file")

    run("fallocate", "-n", "-o", PAGE, "-l", 2 * PAGE, file)

    assert os.stat(file).st_size == 0
    assert allocated(file) == 2 * PAGE


def test_an_allocation_may_be_unaligned_and_takes_whole_pages(mount: Mount) -> None:
    """v8 checks the alignment of a punch only."""
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        raw.fallocate(fd, 0, 100, PAGE)

        assert os.fstat(fd).st_size == 100 + PAGE
        assert allocated(fd) == 2 * PAGE


def test_a_punch_frees_memory_and_keeps_the_size(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    run("fallocate", "-l", 8 * PAGE, file)

    run("fallocate", "-p", "-o", PAGE, "-l", 2 * PAGE, file)

    assert os.stat(file).st_size == 8 * PAGE
    assert allocated(file) == 6 * PAGE
    assert support.used(mount.path) == 6 * PAGE


def test_a_punch_may_lie_beyond_the_end(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    run("fallocate", "-n", "-l", 4 * PAGE, file)

    run("fallocate", "-p", "-o", 2 * PAGE, "-l", 64 * PAGE, file)

    assert os.stat(file).st_size == 0
    assert allocated(file) == 2 * PAGE


def test_an_unaligned_punch_is_refused_and_frees_nothing(mount: Mount) -> None:
    with opened(mount.path / "file", os.O_CREAT | os.O_WRONLY) as fd:
        raw.fallocate(fd, 0, 0, 4 * PAGE)

        for offset, length in [
            (1, PAGE),
            (0, 1),
            (PAGE, PAGE - 1),
            (PAGE - 1, 1),
            (512, 2 * PAGE - 512),
            (10 * PAGE, 1),
        ]:
            assert outcome(raw.punch, fd, offset, length) == "EINVAL"
        assert allocated(fd) == 4 * PAGE


def test_the_modes_are_answered_as_by_a_tmpfs(mount: Mount, memory: Path) -> None:
    """No mode is ENOSYS, after which the kernel would refuse every later call."""
    file, plain = mount.path / "file", memory / "file"
    modes = [*range(0x80), 0x100, 1 << 30]
    with (
        opened(file, os.O_CREAT | os.O_RDWR) as fd,
        opened(plain, os.O_CREAT | os.O_RDWR) as plain_fd,
    ):
        for mode in modes:
            wanted = outcome(raw.fallocate, plain_fd, mode, 0, PAGE)
            assert outcome(raw.fallocate, fd, mode, 0, PAGE) == wanted, hex(mode)
            assert os.fstat(fd).st_size == os.fstat(plain_fd).st_size
            assert allocated(fd) == allocated(plain_fd)
        for mode in (
            ZERO_RANGE,
            ZERO_RANGE | KEEP_SIZE,
            raw.COLLAPSE_RANGE,
            raw.INSERT_RANGE,
            raw.UNSHARE_RANGE,
            PUNCH_HOLE,
        ):
            assert outcome(raw.fallocate, fd, mode, 0, PAGE) == "EOPNOTSUPP", hex(mode)

        # Calls with other modes still work.
        raw.fallocate(fd, 0, 0, 3 * PAGE)
        assert allocated(fd) == 3 * PAGE
    run("fallocate", "-l", PAGE, new_file(mount.path / "next"))


def test_ranges_that_no_file_has_are_refused_as_by_a_tmpfs(
    mount: Mount, memory: Path
) -> None:
    most = (1 << 63) - 1
    with (
        opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd,
        opened(memory / "file", os.O_CREAT | os.O_RDWR) as plain_fd,
    ):
        for mode in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE):
            for offset, length in [
                (0, 0),
                (-1, PAGE),
                (0, -1),
                (most, PAGE),
                (most - PAGE + 1, PAGE),
            ]:
                wanted = outcome(raw.fallocate, plain_fd, mode, offset, length)
                assert wanted != "ok"
                result = outcome(raw.fallocate, fd, mode, offset, length)
                assert result == wanted, (mode, offset, length)


def test_only_users_with_write_permission_may_allocate(mount: Mount) -> None:
    new_file(mount.path / "file")
    with opened(mount.path / "file", os.O_RDONLY) as fd:
        assert outcome(raw.fallocate, fd, 0, 0, PAGE) == "EBADF"
        assert outcome(raw.punch, fd, 0, PAGE) == "EBADF"
        assert outcome(os.ftruncate, fd, PAGE) == "EINVAL"
    with opened(mount.path, os.O_RDONLY) as fd:
        assert outcome(raw.fallocate, fd, 0, 0, PAGE) == "EBADF"


@support.needs_root
@pytest.mark.parametrize("quick", [True, False], ids=["in the loop", "in a thread"])
def test_a_full_backing_says_enospc_and_keeps_the_file(quick: bool) -> None:
    with support.mounted(size="16m") as mount:
        first, second = new_file(mount.path / "a"), new_file(mount.path / "b")
        taken = 15 * MIB if quick else 8 * MIB
        run("fallocate", "-l", taken, first)

        ran = run("fallocate", "-l", 16 * MIB - taken + PAGE, second, status=1)

        assert os.strerror(errno.ENOSPC) in ran.stderr
        assert allocated(second) == 0
        assert os.stat(second).st_size == 0
        assert allocated(first) == taken
        # Up to the last page, and again after pages were freed.
        run("fallocate", "-l", 16 * MIB - taken, second)
        assert os.statvfs(mount.path).f_bfree == 0
        os.unlink(first)
        run("fallocate", "-l", 16 * MIB, second)


def test_long_ranges_obey_the_rules_of_short_ones(mount: Mount) -> None:
    """They are allocated in a thread and not in the loop."""
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        raw.fallocate(fd, 0, 0, 64 * MIB)
        assert os.fstat(fd).st_size == allocated(fd) == 64 * MIB

        assert outcome(raw.punch, fd, 1, 32 * MIB) == "EINVAL"
        assert allocated(fd) == 64 * MIB
        raw.punch(fd, 16 * MIB, 32 * MIB)
        assert allocated(fd) == 32 * MIB
        raw.fallocate(fd, KEEP_SIZE, 64 * MIB, 32 * MIB)
        assert os.fstat(fd).st_size == 64 * MIB
        assert allocated(fd) == 64 * MIB


def test_posix_fallocate_works_without_glibc_emulating_it(mount: Mount) -> None:
    """The emulation reads and writes, which are refused."""
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 3 * PAGE)
        assert os.fstat(fd).st_size == allocated(fd) == 3 * PAGE


# --- the size -----------------------------------------------------------------


def test_the_size_is_set_once(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    run("truncate", "-s", 2 * PAGE, file)

    for size in (PAGE, 2 * PAGE, 3 * PAGE, 0):
        ran = run("truncate", "-s", size, file, status=1)
        assert os.strerror(errno.EPERM) in ran.stderr
    assert os.stat(file).st_size == 2 * PAGE


def test_setting_a_size_allocates_nothing(mount: Mount) -> None:
    file = new_file(mount.path / "file", 1 << 40)

    assert os.stat(file).st_size == 1 << 40
    assert allocated(file) == 0


def test_nothing_to_nothing_is_allowed_any_number_of_times(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    for _ in range(3):
        os.truncate(file, 0)
        os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    os.truncate(file, PAGE)
    assert os.stat(file).st_size == PAGE


def test_an_unaligned_size_is_refused_and_may_be_tried_again(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    for size in (1, PAGE - 1, PAGE + 1, PAGE + 512):
        assert outcome(os.truncate, file, size) == "EINVAL"
    assert os.stat(file).st_size == 0
    os.truncate(file, PAGE)
    # If there is a size, it is checked first.
    assert outcome(os.truncate, file, PAGE + 1) == "EPERM"


def test_an_allocation_settles_the_size_too(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    with opened(file) as fd:
        raw.fallocate(fd, 0, 0, PAGE)
    assert outcome(os.truncate, file, 4 * PAGE) == "EPERM"

    # But one that keeps the size does not.
    other = new_file(mount.path / "other")
    with opened(other) as fd:
        raw.fallocate(fd, KEEP_SIZE, 0, PAGE)
        os.ftruncate(fd, 4 * PAGE)
        assert allocated(fd) == PAGE


def test_ftruncate_obeys_the_same_rules(mount: Mount) -> None:
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        assert outcome(os.ftruncate, fd, 1) == "EINVAL"
        assert outcome(os.ftruncate, fd, 0) == "ok"
        assert outcome(os.ftruncate, fd, 4 * PAGE) == "ok"
        assert outcome(os.ftruncate, fd, 4 * PAGE) == "EPERM"
        assert outcome(os.ftruncate, fd, 4 * PAGE + 1) == "EPERM"

        # The same is true after the name is removed.
        os.unlink(mount.path / "file")
        assert outcome(os.ftruncate, fd, 0) == "EPERM"
        assert os.fstat(fd).st_size == 4 * PAGE


def test_o_trunc_is_a_truncation_and_a_refused_one_opens_nothing(mount: Mount) -> None:
    file = new_file(mount.path / "file", PAGE)
    with opened(file) as fd:
        raw.fallocate(fd, 0, 0, PAGE)

    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT):
        assert outcome(os.open, file, flags | os.O_TRUNC) == "EPERM"
    ran = run("sh", "-c", f": > {file}", status=None)
    assert os.strerror(errno.EPERM) in ran.stderr
    assert os.stat(file).st_size == PAGE
    assert allocated(file) == PAGE
    # The refused calls keep nothing: the memory is freed with the name.
    os.unlink(file)
    support.wait_until_unused(mount.path)


def test_the_size_stays_set_across_opens_and_names(mount: Mount) -> None:
    file = new_file(mount.path / "file", PAGE)
    os.link(file, mount.path / "link")
    os.rename(file, mount.path / "moved")
    os.unlink(mount.path / "moved")

    assert outcome(os.truncate, mount.path / "link", 2 * PAGE) == "EPERM"
