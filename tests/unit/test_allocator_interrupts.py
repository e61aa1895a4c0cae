"""Interrupting an allocation: all memory is given back, however long it takes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE
from tests.unit.allocator_fakes import (
    HUGE,
    PAGE,
    Worker,
    Working,
    allocated,
    has_ended,
    until_it_is_in_the_middle,
    working,
)
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from inaccfs.shim.allocator import Allocator, Undoing

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


# --- interrupting a real one ------------------------------------------------------


async def test_an_interrupted_allocation_gives_all_back(
    allocator: Working, memory: int
) -> None:
    interrupted = trio.Event()

    async def allocate() -> None:
        try:
            undoing = await allocator.allocate(memory, 0, 0, HUGE, interrupted)
        except OSError as exc:
            assert exc.errno == errno.EINTR  # noqa: PT017
        else:
            assert undoing is not None, "it was over before it could be interrupted"
            await undoing.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(allocate)
        await until_it_is_in_the_middle(memory)
        interrupted.set()
    assert (os.fstat(memory).st_size, allocated(memory)) == (0, 0)


async def test_close_waits_until_all_has_been_given_back(memory: int) -> None:
    with working() as allocator:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(allocator.allocate, memory, 0, 0, HUGE, trio.Event())
            await until_it_is_in_the_middle(memory)
            nursery.cancel_scope.cancel()
    assert allocated(memory) == 0


# --- interrupting, step by step ---------------------------------------------------


async def test_a_worker_that_dies_at_once_is_eintr(
    worker: Worker, memory: int, mock_clock: trio.testing.MockClock
) -> None:
    """The clock stands still, so the call waits only for the worker's end."""
    interrupted = trio.Event()

    async def allocate(with_: Allocator) -> None:
        with refused(errno.EINTR):
            await with_.allocate(memory, FALLOC_FL_KEEP_SIZE, 0, PAGE, interrupted)

    with working() as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(allocate, made)
            pidfd = await worker.works()
            interrupted.set()
        assert has_ended(pidfd, 10)
        os.close(pidfd)


async def test_an_interrupt_before_the_call_is_not_lost(
    worker: Worker, memory: int, mock_clock: trio.testing.MockClock
) -> None:
    interrupted = trio.Event()
    interrupted.set()
    with working() as allocator, refused(errno.EINTR):
        await allocator.allocate(memory, FALLOC_FL_KEEP_SIZE, 0, PAGE, interrupted)


async def _interrupt(allocator: Working, worker: Worker, memory: int) -> Undoing:
    """Interrupt an allocation that takes long to be undone."""
    interrupted = trio.Event()
    found: list[Undoing | None] = []

    async def allocate() -> None:
        mode = FALLOC_FL_KEEP_SIZE
        found.append(await allocator.allocate(memory, mode, 0, PAGE, interrupted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(allocate)
        pidfd = await worker.works()
        begun = trio.current_time()
        interrupted.set()
    assert trio.current_time() - begun < 0.1
    # It was killed, not only forgotten.
    assert has_ended(pidfd, 10)
    os.close(pidfd)
    (undoing,) = found
    assert undoing is not None
    return undoing


async def test_an_undo_that_takes_long_is_reported_within_a_tenth_of_a_second(
    undoing_worker: Worker, memory: int, autojump_clock: trio.testing.MockClock
) -> None:
    with working() as allocator:
        undoing = await _interrupt(allocator, undoing_worker, memory)
        before = len(os.listdir("/proc/self/fd"))
        undoing_worker.let_go()
        await undoing.wait()
        # A socket and a pidfd.
        assert len(os.listdir("/proc/self/fd")) == before - 2


async def test_any_number_can_wait_for_an_undoing(
    undoing_worker: Worker, memory: int
) -> None:
    over = 0

    async def wait() -> None:
        nonlocal over
        await undoing.wait()
        over += 1

    with working() as allocator:
        undoing = await _interrupt(allocator, undoing_worker, memory)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(wait)
            # The first of them is cancelled.
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_when_blocked, scope)
                await undoing.wait()
            assert over == 0
            undoing_worker.let_go()
        assert over == 5
        # And a late caller.
        await wait()
        assert over == 6


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_a_task_that_waits_for_an_undo_may_give_up(
    undoing_worker: Worker, memory: int
) -> None:
    """The others go on waiting."""
    over = trio.Event()

    async def wait() -> None:
        await undoing.wait()
        over.set()

    with working() as allocator:
        undoing = await _interrupt(allocator, undoing_worker, memory)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as first:
                first.start_soon(undoing.wait)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert not over.is_set()
            undoing_worker.let_go()
        assert over.is_set()


async def test_one_that_is_stuck_holds_up_no_other(worker: Worker, memory: int) -> None:
    with working() as allocator:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                allocator.allocate, memory, FALLOC_FL_KEEP_SIZE, 0, PAGE, trio.Event()
            )
            os.close(await worker.works())
            assert await allocator.allocate(memory, 0, 0, PAGE, trio.Event()) is None
            nursery.cancel_scope.cancel()
    assert allocated(memory) == PAGE
