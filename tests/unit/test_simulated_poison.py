"""Made-up frames that are poisoned, and do not come back."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.shim.frames import Extent
from inaccfs.shim.simulated import FIRST_PFN, SimulatedSource
from tests.unit.fakes import refused
from tests.unit.simulated_files import HUGE, MIB, File

if TYPE_CHECKING:
    from inaccfs.backing.root import Backing


def punched(file: File, start: int, end: int) -> list[Extent]:
    """Punch pages without references; return where they had been."""
    removed = file.punch(start, end).removed
    for _, pfn, count, _ in removed:
        file.frames.free(pfn, count)
    return removed


def numbers(extents: list[Extent]) -> set[int]:
    return {one.pfn + at for one in extents for at in range(one.count)}


@pytest.mark.parametrize("order", [0, 9])
def test_a_poisoned_frame_does_not_come_back(backing: Backing, order: int) -> None:
    source = SimulatedSource(SimulatedMemory(size=4 * MIB, order=order))
    file = File(backing, source, 2 * HUGE)
    (bad,) = file.fetch(3, 4)
    file.frames.poison(3)
    punched(file, 0, 2 * HUGE)
    # Neither to this file nor to another, also when nothing else is left.
    other = File(backing, source, 2 * HUGE, "other")
    assert bad.pfn not in numbers(other.fetch(0, 2 * HUGE - 1))
    with refused(errno.ENOMEM):
        file.frames.fetch(0, 1)
    other.frames.close()
    assert bad.pfn not in numbers(file.fetch(0, 2 * HUGE - 1))
    file.frames.close()
    assert source.buddy.free_frames == 2 * HUGE - 1
    os.close(other.fd)
    os.close(file.fd)


def test_a_poisoned_frame_that_is_referenced_does_not_come_back_either(
    backing: Backing,
) -> None:
    source = SimulatedSource(SimulatedMemory(size=2 * MIB, order=0))
    file = File(backing, source, HUGE)
    (bad,) = file.fetch(0, 1)
    file.frames.poison(0)
    file.punch(0, 1)
    assert file.fetch(0, 1) == [bad._replace(pfn=bad.pfn + 1)]
    # When it is put; and what is good comes back.
    file.frames.free(bad.pfn, 1)
    punched(file, 0, 1)
    assert file.fetch(0, 1) == [bad._replace(pfn=bad.pfn + 1)]
    file.frames.close()
    assert source.buddy.free_frames == HUGE - 1
    os.close(file.fd)


def test_a_poisoned_frame_does_not_come_back_when_its_file_goes(
    backing: Backing,
) -> None:
    source = SimulatedSource(SimulatedMemory(size=2 * MIB))
    file = File(backing, source, HUGE)
    file.fetch(0, HUGE)
    file.frames.poison(5)
    file.frames.close()
    assert source.buddy.free_frames == HUGE - 1
    file.frames.close()
    assert source.buddy.free_frames == HUGE - 1
    os.close(file.fd)


def test_a_page_that_was_poisoned_first_takes_its_frame_out(backing: Backing) -> None:
    """It gets one with the folio of another page."""
    source = SimulatedSource(SimulatedMemory(size=2 * MIB))
    file = File(backing, source, HUGE)
    file.frames.poison(5)
    file.fetch(9, 10)
    punched(file, 0, 5)
    assert source.buddy.free_frames == 5
    punched(file, 5, HUGE)
    assert source.buddy.free_frames == HUGE - 1
    # What is there now is good.
    file.fetch(0, HUGE - 1)
    punched(file, 0, HUGE)
    assert source.buddy.free_frames == HUGE - 1
    file.frames.close()
    os.close(file.fd)


def test_a_punch_that_fails_leaves_poison_as_it_was(backing: Backing) -> None:
    source = SimulatedSource(SimulatedMemory(size=2 * MIB, order=0))
    file = File(backing, source, HUGE)
    file.fetch(0, 1)
    file.frames.poison(0)

    def fail() -> None:
        raise OSError(errno.EIO, "no")

    with refused(errno.EIO):
        file.frames.punch(0, 1, fail)
    punched(file, 0, 1)
    assert source.buddy.free_frames == HUGE - 1
    os.close(file.fd)


def test_a_huge_page_is_poisoned_as_a_whole(backing: Backing) -> None:
    """dequeue_hugetlb_folio_node_exact() hands none out that has PG_hwpoison."""
    source = SimulatedSource(SimulatedMemory(size=16 * MIB))
    fd = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=backing.root)
    os.ftruncate(fd, 16 * MIB)
    opened = source.open(fd, 2 * MIB)
    opened.fetch(0, 2)
    opened.poison(0)
    opened.punch(0, 1, lambda: None)
    opened.free(FIRST_PFN, 1)
    assert opened.fetch(0, 1).extents == [Extent(0, FIRST_PFN + 2 * HUGE, 1, 9)]
    opened.close()
    assert source.buddy.free_frames == 7 * HUGE
    os.close(fd)
