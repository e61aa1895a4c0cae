"""`InaccessibleFile` over a real memfd, with a fake allocator for long allocations."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.semantics import V8
from inaccfs.shim.allocating import SHORT_BYTES
from inaccfs.shim.file import InaccessibleFile
from inaccfs.shim.filestate import INLINE_BYTES
from inaccfs.shim.superblock import Superblock
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, PUNCH
from tests.unit.blocked_fakes import BlockedAllocator, BlockedCall, BlockedUndoing
from tests.unit.fakes import fallocate, fallocated_now, refused
from tests.unit.shim_files import LONG, PAGE, pages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@pytest.fixture
def file(blocked: BlockedAllocator) -> Iterator[InaccessibleFile]:
    fd = os.memfd_create("backing")
    yield InaccessibleFile(fd, Superblock(V8(), PAGE, allocator=blocked))
    os.close(fd)


# --- what is done at once ----------------------------------------------------------


def test_a_quick_allocation_grows_the_file(file: InaccessibleFile) -> None:
    assert fallocated_now(file, 0, PAGE, PAGE)
    assert (os.fstat(file.fd).st_size, pages(file)) == (2 * PAGE, 1)


def test_keep_size_keeps_it(file: InaccessibleFile) -> None:
    assert fallocated_now(file, FALLOC_FL_KEEP_SIZE, 0, PAGE)
    assert (os.fstat(file.fd).st_size, pages(file)) == (0, 1)


def test_an_unaligned_allocation_is_rounded_as_tmpfs_does(
    file: InaccessibleFile,
) -> None:
    assert fallocated_now(file, 0, 1, 1)
    assert (os.fstat(file.fd).st_size, pages(file)) == (2, 1)


def test_a_punch_frees_and_an_unaligned_one_does_not(file: InaccessibleFile) -> None:
    fallocated_now(file, 0, 0, 4 * PAGE)
    with refused(errno.EINVAL):
        fallocated_now(file, PUNCH, 1, PAGE)
    assert pages(file) == 4
    fallocated_now(file, PUNCH, PAGE, 2 * PAGE)
    assert (os.fstat(file.fd).st_size, pages(file)) == (4 * PAGE, 2)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "error"),
    [
        pytest.param(0, 0, 0, errno.EINVAL, id="no length"),
        pytest.param(FALLOC_FL_PUNCH_HOLE, 0, PAGE, errno.EOPNOTSUPP, id="bare punch"),
        pytest.param(0x10, 0, PAGE, errno.EOPNOTSUPP, id="ZERO_RANGE"),
        pytest.param(0, (1 << 63) - PAGE, PAGE, errno.EFBIG, id="past the largest"),
    ],
)
async def test_the_backing_has_the_last_word(
    file: InaccessibleFile, mode: int, offset: int, length: int, error: int
) -> None:
    """Both ways give the backing's own errno."""
    with refused(error):
        fallocated_now(file, mode, offset, length)
    with refused(error):
        await fallocate(file, mode, offset, length, trio.Event())


def test_a_long_call_is_not_done_at_once(file: InaccessibleFile) -> None:
    assert not fallocated_now(file, 0, 0, INLINE_BYTES + 1)
    assert pages(file) == 0


# --- what takes long --------------------------------------------------------------


async def test_a_longer_range_is_dealt_with_in_a_thread(
    file: InaccessibleFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = BlockedCall()
    monkeypatch.setattr(syscalls, "fallocate", call)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fallocate, file, PUNCH, 0, 2 * LONG, trio.Event())
        await call.entered.wait()
        assert call.arguments == (file.fd, PUNCH, 0, 2 * LONG)
        call.let_go()


async def test_the_rules_apply_to_long_calls(file: InaccessibleFile) -> None:
    with refused(errno.EINVAL):
        await fallocate(file, PUNCH, 1, LONG, trio.Event())


@pytest.mark.parametrize("mode", [0, FALLOC_FL_KEEP_SIZE])
async def test_a_long_allocation_is_the_allocators(
    file: InaccessibleFile, blocked: BlockedAllocator, mode: int
) -> None:
    """With the mode and range that were asked for; the file is busy meanwhile."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fallocate, file, mode, PAGE, LONG, trio.Event())
        await blocked.entered.wait()
        assert blocked.arguments == (file.fd, mode, PAGE, LONG)
        assert file.turn in file.superblock.busy
        assert file.turn.undoing is None
        blocked.let_go()
    assert not file.turn.taken


@pytest.mark.parametrize(
    ("mode", "length"),
    [
        pytest.param(0, SHORT_BYTES, id="soon over"),
        pytest.param(PUNCH, 2 * SHORT_BYTES, id="a punch"),
    ],
)
async def test_calls_that_need_no_interrupt_run_in_a_thread(
    file: InaccessibleFile,
    blocked: BlockedAllocator,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    length: int,
) -> None:
    call = BlockedCall()
    monkeypatch.setattr(syscalls, "fallocate", call)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fallocate, file, mode, 0, length, trio.Event())
        await call.entered.wait()
        assert not blocked.entered.is_set()
        call.let_go()


async def test_without_an_allocator_a_thread_does_it(
    file: InaccessibleFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inaccfs.shim.allocating.SHORT_BYTES", 0)
    plain = InaccessibleFile(file.fd, Superblock(V8(), PAGE))
    await fallocate(plain, 0, 0, PAGE, trio.Event())
    assert pages(plain) == 1


async def test_the_errno_of_the_allocator_is_the_callers(
    file: InaccessibleFile, blocked: BlockedAllocator
) -> None:
    blocked.let_go(errno.ENOSPC)
    with refused(errno.ENOSPC):
        await fallocate(file, 0, 0, LONG, trio.Event())
    # The file can be used as before.
    assert fallocated_now(file, 0, 0, PAGE)


# --- a busy file ------------------------------------------------------------------


async def test_a_busy_file_has_one_long_operation_at_a_time(
    file: InaccessibleFile, blocked: BlockedAllocator
) -> None:
    """The others wait in the trio loop and not for the backing's lock in a thread."""
    ended: list[str] = []

    async def allocate(length: int) -> None:
        await fallocate(file, 0, 0, length, trio.Event())
        ended.append(f"{length}")

    async def set_size() -> None:
        await file.set_size(PAGE)
        ended.append("size")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(allocate, LONG)
        await blocked.entered.wait()
        assert not fallocated_now(file, 0, 0, PAGE)
        nursery.start_soon(set_size)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        assert os.fstat(file.fd).st_size == 0
        blocked.let_go()
    assert ended == [f"{LONG}", "size"]
    assert os.fstat(file.fd).st_size == PAGE
    assert fallocated_now(file, 0, 0, PAGE)


async def test_of_several_long_operations_each_waits_for_its_turn(
    file: InaccessibleFile, blocked: BlockedAllocator
) -> None:
    """Otherwise the first of them to end would report the file as idle."""
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(fallocate, file, 0, 0, LONG, trio.Event())
        await trio.testing.wait_all_tasks_blocked()
        blocked.let_go()
    assert not file.superblock.busy
    assert blocked.most == 1


async def _after(passes: int, call: Callable[[], Awaitable[None]]) -> None:
    for _ in range(passes):
        await trio.lowlevel.checkpoint()
    await call()


@pytest.mark.parametrize("second", [0, 1, 2, 3])
async def test_tasks_that_wait_for_idle_are_woken(
    file: InaccessibleFile, autojump_clock: trio.testing.MockClock, second: int
) -> None:
    """Whenever in the course of two long operations the wait begins."""
    hung = []
    for third in range(10):
        blocked = BlockedAllocator()
        other = InaccessibleFile(file.fd, Superblock(V8(), PAGE, allocator=blocked))
        allocate = partial(fallocate, other, 0, 0, LONG, trio.Event())
        with trio.move_on_after(1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(allocate)
                nursery.start_soon(_after, second, allocate)
                nursery.start_soon(_after, third, other.turn.wait)
                await trio.testing.wait_all_tasks_blocked()
                blocked.let_go()
        if scope.cancelled_caught:
            hung.append(third)
    assert hung == []


async def test_a_call_that_waits_for_a_busy_file_can_be_interrupted(
    file: InaccessibleFile, blocked: BlockedAllocator
) -> None:
    interrupted = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fallocate, file, 0, 0, LONG, trio.Event())
        await blocked.entered.wait()
        async with trio.open_nursery() as second:
            second.start_soon(_expect_eintr, file, interrupted)
            await trio.testing.wait_all_tasks_blocked()
            interrupted.set()
        # The first one goes on.
        assert file.turn in file.superblock.busy
        blocked.let_go()


async def test_a_bug_in_a_long_operation_does_not_leave_the_file_busy(
    file: InaccessibleFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*_: int) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(syscalls, "fallocate", buggy)
    with pytest.raises(RuntimeError):
        await fallocate(file, PUNCH, 0, LONG, trio.Event())
    await file.turn.wait()
    assert not file.superblock.busy


# --- interrupting -----------------------------------------------------------------


async def _expect_eintr(file: InaccessibleFile, interrupted: trio.Event) -> None:
    with refused(errno.EINTR):
        await fallocate(file, 0, 0, LONG, interrupted)


async def test_an_interrupted_call_returns_before_the_file_has_settled(
    file: InaccessibleFile, blocked: BlockedAllocator
) -> None:
    """The backing still frees the pages: later calls wait for that."""
    blocked.undoing = BlockedUndoing()
    interrupted = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect_eintr, file, interrupted)
        await blocked.entered.wait()
        interrupted.set()
    assert file.turn.undoing is not None
    assert not fallocated_now(file, 0, 0, PAGE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.turn.wait_undone)
        nursery.start_soon(file.turn.wait_undone)
        nursery.start_soon(file.turn.wait)
        nursery.start_soon(file.set_size, PAGE)
        await trio.testing.wait_all_tasks_blocked()
        assert os.fstat(file.fd).st_size == 0
        blocked.undoing.end()
    assert file.turn.undoing is None
    assert not file.superblock.busy
    assert os.fstat(file.fd).st_size == PAGE


async def test_an_allocation_that_dies_at_once_leaves_a_settled_file(
    file: InaccessibleFile, blocked: BlockedAllocator
) -> None:
    interrupted = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect_eintr, file, interrupted)
        await blocked.entered.wait()
        interrupted.set()
    assert file.turn.undoing is None
    assert fallocated_now(file, 0, 0, PAGE)


async def test_an_interrupt_before_the_call_is_not_lost(
    file: InaccessibleFile, blocked: BlockedAllocator
) -> None:
    interrupted = trio.Event()
    interrupted.set()
    with refused(errno.EINTR):
        await fallocate(file, 0, 0, LONG, interrupted)
    assert not file.superblock.busy


async def test_a_cancelled_allocation_leaves_no_busy_file(
    file: InaccessibleFile, blocked: BlockedAllocator
) -> None:
    """The daemon ends, and its workers with it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fallocate, file, 0, 0, LONG, trio.Event())
        await blocked.entered.wait()
        nursery.cancel_scope.cancel()
    assert blocked.cancelled
    assert not file.superblock.busy


# --- sizes ------------------------------------------------------------------------


async def test_a_size_is_set_once(file: InaccessibleFile) -> None:
    await file.set_size(0)
    with refused(errno.EINVAL):
        await file.set_size(1)
    await file.set_size(2 * PAGE)
    for size in (0, 1, 2 * PAGE, 3 * PAGE):
        with refused(errno.EPERM):
            await file.set_size(size)
    assert os.fstat(file.fd).st_size == 2 * PAGE


@pytest.mark.parametrize("length", [4 * PAGE, INLINE_BYTES + PAGE])
async def test_memory_beyond_the_end_is_tmpfs_business(
    file: InaccessibleFile, length: int
) -> None:
    """A size of 0 frees the memory that KEEP_SIZE put there; a larger size keeps it."""
    for size, left in ((0, 0), (PAGE, length // PAGE)):
        syscalls.fallocate(file.fd, FALLOC_FL_KEEP_SIZE, 0, length)
        await file.set_size(size)
        assert (os.fstat(file.fd).st_size, pages(file)) == (size, left)


async def test_an_allocation_counts_as_a_size(file: InaccessibleFile) -> None:
    fallocated_now(file, 0, 0, 1)
    with refused(errno.EPERM):
        await file.set_size(PAGE)


def test_reopened_uses_the_other_fd(file: InaccessibleFile) -> None:
    other = os.memfd_create("other")
    os.ftruncate(other, PAGE)
    file.reopened(other, writable=False)
    assert os.fstat(file.fd).st_size == PAGE
    assert not file.writable
    os.close(other)
