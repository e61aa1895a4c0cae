"""A punch without a task, and how often the rules are asked."""

from __future__ import annotations

import errno
import os

import pytest
import trio
import trio.testing

from inaccfs.backing.options import TmpfsOptions
from inaccfs.backing.private import private_tmpfs
from inaccfs.semantics import V7, V8, V9, GuestMemfd, Semantics, V8AsPosted
from inaccfs.semantics.rules import INVALIDATE
from inaccfs.shim.call import Begun, Call
from inaccfs.syscalls import PUNCH
from tests.unit.control_fakes import PAGE
from tests.unit.fakes import fallocated_now, refused
from tests.unit.one_file import mine
from tests.unit.pages_fakes import KEEP, Holder, World, world_of

pytestmark = pytest.mark.usefixtures("_no_strays")


async def at_once(world: World, start: int, end: int) -> bool:
    """Punch without a task, if that is possible, and wait for it.

    The file must have notifiers, or pages that were fetched.
    """
    over = trio.Event()
    failures: list[Exception | None] = []

    def done(failure: Exception | None) -> None:
        failures.append(failure)
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.ack_timeouts.run)
        await trio.testing.wait_all_tasks_blocked()
        length = (end - start) * PAGE
        begun = world.file.begin(PUNCH, start * PAGE, length, lambda: done)
        assert begun is not Begun.DONE
        if begun is Begun.UNDER_WAY:
            await over.wait()
            assert failures == [None]
        nursery.cancel_scope.cancel()
    return begun is Begun.UNDER_WAY


@pytest.mark.parametrize(
    ("semantics", "possible"),
    [
        (V8(), True),
        (V8AsPosted(), True),
        (mine(list_locked="the whole call"), True),
        (mine(references="locked"), False),
        (V7(), False),
        (V9(), False),
        (GuestMemfd(), False),
    ],
    ids=["v8", "v8-as-posted", "whole call", "locked", "v7", "v9", "guest_memfd"],
)
async def test_a_punch_needs_a_task_if_something_is_to_be_waited_for_first(
    semantics: Semantics, possible: bool
) -> None:
    world = world_of(semantics)
    await (world.bound(0, 8) if semantics.scope == "range" else world.listener())
    assert await at_once(world, 0, 4) is possible
    # Without the task that evicts notifiers the call needs its own task.
    assert not fallocated_now(world.file, PUNCH, 0, PAGE)


async def test_a_punch_without_a_task_does_all_that_one_with_a_task_does() -> None:
    results = []
    for way in (at_once, World.punch):
        world, holder = world_of(mine(tells_frames=True)), Holder()
        await world.get(holder, 0, 8)
        listener = await world.listener()
        world.frames.moves = {6: 0x9000}
        await way(world, 2, 4)
        results.append(
            (
                *(listener.events, listener.frames, world.is_punched(holder)),
                *(world.allocated, world.frames.freed),
                world.file.superblock.trace.counters,
            )
        )
    assert results[0] == results[1]
    assert results[0][0] == [(INVALIDATE, 2, 4), (INVALIDATE, 6, 7)]


async def test_the_rules_hold_without_a_task() -> None:
    world = world_of(V8())
    await world.listener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.ack_timeouts.run)
        await trio.testing.wait_all_tasks_blocked()
        with refused(errno.EINVAL):
            fallocated_now(world.file, PUNCH, 1, PAGE)
        nursery.cancel_scope.cancel()


# --- how often the rules are asked ------------------------------------------------


class Asked(V8):
    """v8, and records the calls of its rules."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def check_fallocate(
        self, mode: int, offset: int, length: int, page_size: int
    ) -> None:
        self.calls.append((mode, offset, length))
        super().check_fallocate(mode, offset, length, page_size)


async def test_rules_are_asked_once_for_a_call_that_waits_for_the_list() -> None:
    """A rule may count its calls, or refuse the third."""
    semantics = Asked()
    world = world_of(semantics)
    await world.listener()
    async with trio.open_nursery() as nursery, world.file.notifiers.fixed():
        nursery.start_soon(world.ack_timeouts.run)
        await trio.testing.wait_all_tasks_blocked()
        assert not fallocated_now(world.file, PUNCH, 0, PAGE)
        call = Call(PUNCH, 0, PAGE)
        nursery.start_soon(world.file.finish, call, trio.Event())
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert semantics.calls == [(PUNCH, 0, PAGE)]


async def test_an_allocation_that_finds_no_space_at_once_is_asked_once() -> None:
    """The next punch of the same range is executed at once again."""
    semantics = Asked()
    backing = private_tmpfs(TmpfsOptions(size=str(8 * PAGE)), fallback_name="test")
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=backing.root)
    world = world_of(semantics, fd=fd)
    for times in (1, 2, 3):
        assert not fallocated_now(world.file, KEEP, 0, 9 * PAGE)
        with refused(errno.ENOSPC):
            await world.file.finish(Call(KEEP, 0, 9 * PAGE), trio.Event())
        assert semantics.calls == [(KEEP, 0, 9 * PAGE)] * times
    await world.fallocate(KEEP, 0, 8)
    assert semantics.calls[3:] == [(KEEP, 0, 8 * PAGE)]
    backing.close()
