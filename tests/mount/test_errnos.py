"""Errnos of rules that the kernel would misunderstand or refuse."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

import inaccfs
from tests.mount import raw, support
from tests.mount.support import PAGE, new_file, opened, outcome

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fuse

RULES = """
from inaccfs.semantics import V8

class Odd(V8):
    def __init__(self):
        self.asked = 0

    def check_fallocate(self, mode, offset, length, page_size):
        self.refuse()

    def check_size(self, current, new, page_size):
        self.refuse()

    def refuse(self):
        self.asked += 1
        if self.asked == {at}:
            raise {error}
"""


def rules(scratch: Path, error: str, at: int = 1) -> str:
    path = scratch / "odd.py"
    path.write_text(RULES.format(error=error, at=at))
    return f"{path}:Odd"


def test_a_rule_that_says_enosys_once_turns_nothing_off(scratch: Path) -> None:
    """After ENOSYS the kernel would never ask for an allocation again."""
    semantics = rules(scratch, f"OSError({errno.ENOSYS}, 'no')")
    with (
        support.mounted(semantics=semantics) as mount,
        opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd,
    ):
        assert outcome(raw.fallocate, fd, 0, 0, PAGE) == "EOPNOTSUPP"
        raw.fallocate(fd, 0, 0, PAGE)
        raw.punch(fd, 0, PAGE)


def test_enosys_at_o_trunc_opens_nothing_unasked(scratch: Path) -> None:
    """The kernel would open it, and every file from then on, without the daemon."""
    semantics = rules(scratch, f"OSError({errno.ENOSYS}, 'no')")
    with support.mounted(semantics=semantics) as mount:
        file = new_file(mount.path / "file")
        assert outcome(os.open, file, os.O_RDWR | os.O_TRUNC) == "EOPNOTSUPP"
        os.truncate(file, PAGE)
        with opened(file) as fd:
            if mount.status().sealed:
                assert outcome(mmap.mmap, fd, PAGE, mmap.MAP_PRIVATE) == "ENODEV"
            assert outcome(os.read, fd, 1) == "EINVAL"
            assert outcome(os.pread, fd, 1, 0) in ("EINVAL", "ESPIPE")


@pytest.mark.parametrize("number", [-1, 0, 512, 515, 1000, 5000, 1 << 31, 1 << 70])
def test_a_number_that_is_no_errno_is_eio_and_a_traceback(
    scratch: Path, number: int
) -> None:
    """The kernel would refuse the reply, and the caller would wait for ever."""
    semantics = rules(scratch, f"OSError({number}, 'odd')", at=2)
    with inaccfs.mounted(semantics=semantics) as mount:
        file = new_file(mount.path / "file")
        with opened(file) as fd:
            raw.fallocate(fd, 0, 0, PAGE)
            assert outcome(raw.fallocate, fd, 0, 0, PAGE) == "EIO"
            raw.fallocate(fd, 0, 0, PAGE)
        assert "without an errno" in mount.log.read_text()


@pytest.mark.parametrize("error", ["OSError(511, 'odd')", "OSError(1, 'odd')"])
def test_an_oserror_is_the_callers_errno(scratch: Path, error: str) -> None:
    with support.mounted(semantics=rules(scratch, error)) as mount:
        number = int(error[8:].partition(",")[0])
        with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
            with pytest.raises(OSError) as caught:  # noqa: PT011
                raw.fallocate(fd, 0, 0, PAGE)
            assert caught.value.errno == number
            raw.fallocate(fd, 0, 0, PAGE)


@pytest.mark.parametrize("number", [errno.ENOSYS, 512, -1])
def test_a_truncation_by_path_is_answered_too(scratch: Path, number: int) -> None:
    semantics = rules(scratch, f"OSError({number}, 'odd')")
    with inaccfs.mounted(semantics=semantics) as mount:
        file = new_file(mount.path / "file")
        wanted = "EOPNOTSUPP" if number == errno.ENOSYS else "EIO"
        assert outcome(os.truncate, file, PAGE) == wanted
        os.truncate(file, PAGE)
