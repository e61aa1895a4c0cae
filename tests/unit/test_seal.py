"""The backing file of an open file, and the messages if there is none."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from inaccfs.fuse import seal
from inaccfs.fuse.seal import OwnMemory, Seal, make_seal
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from inaccfs.semantics.rules import Mmap

HUGE = 2 << 20


def test_memory_of_huge_pages_is_not_shared() -> None:
    """FUSE does not choose addresses for it, so the device is not even opened."""
    made = make_seal(-1, passthrough=True, rule="shared", page_size=HUGE)
    assert not made.is_kept
    assert str(made) == "not sealed (memory of a hugetlbfs is not mapped through FUSE)"
    assert made.backing_id(5, -1) == 0


@pytest.mark.parametrize("rule", ["refused", "SIGBUS", "shared"])
def test_a_kernel_without_passthrough_is_reported(rule: Mmap) -> None:
    made = make_seal(-1, passthrough=False, rule=rule)
    assert (made.is_kept, made.sealed, made.rule) == (False, False, rule)
    assert str(made).startswith("not sealed (needs Linux 6.9")


@pytest.mark.parametrize("rule", ["refused", "SIGBUS", "shared"])
def test_a_backing_file_that_the_kernel_refuses_is_reported(rule: Mmap) -> None:
    with open(os.devnull) as device:
        made = make_seal(device.fileno(), passthrough=True, rule=rule)
    assert not made.is_kept
    assert "Inappropriate ioctl" in str(made)


def test_only_a_mount_that_refuses_mmap_is_sealed() -> None:
    assert Seal("refused", 3).sealed
    assert not Seal("SIGBUS", 3).sealed
    assert Seal("SIGBUS", 3).is_kept


def test_all_opens_of_an_inode_have_the_same_backing_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the same until the last close; then the number may be another inode's."""
    opened: list[int] = []
    closed: list[int] = []

    def backing_open(device: int, fd: int) -> int:
        opened.append(fd)
        return 100 + len(opened)

    monkeypatch.setattr(seal, "_backing_open", backing_open)
    monkeypatch.setattr(seal, "_backing_close", lambda _, number: closed.append(number))
    own = OwnMemory(9)
    assert [own.backing_id(5, 31), own.backing_id(6, 32), own.backing_id(5, 33)] == [
        101,
        102,
        101,
    ]
    own.closed(5)
    assert closed == []
    own.closed(5)
    assert closed == [101]
    assert own.backing_id(5, 34) == 103
    assert opened == [31, 32, 34]


def test_an_empty_file_stays_empty() -> None:
    fd = seal._empty_file()
    try:
        with refused(errno.EPERM):
            os.ftruncate(fd, 4096)
        with refused(errno.EPERM):
            os.write(fd, b"x")
    finally:
        os.close(fd)
