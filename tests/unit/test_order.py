"""The order of a change and its events, under each driver."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.semantics.rules import (
    INVALIDATE,
    INVALIDATE_END,
    INVALIDATE_START,
    POPULATE,
)
from inaccfs.shim.order import Changed, InlineDrive, drive, in_order
from tests.unit.fakes import refused
from tests.unit.order_worlds import (
    ACK_SECONDS,
    AFTER,
    AFTER_FAILURE,
    BEFORE,
    BRACKET,
    HOWS,
    NO_SPACE,
    POPULATED,
    SILENT,
    How,
    Listener,
    World,
    answers,
    fails,
    goes,
    hows,
    new_world,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from inaccfs.semantics import Plan
    from inaccfs.shim.order import Steps


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


# --- the order --------------------------------------------------------------------


@hows
@pytest.mark.parametrize(
    ("plan", "wanted", "refused_"),
    [
        (SILENT, ["change"], ["change"]),
        (AFTER, ["change", INVALIDATE], ["change"]),
        (AFTER_FAILURE, ["change", INVALIDATE], ["change", INVALIDATE]),
        (BEFORE, [INVALIDATE, "change"], [INVALIDATE, "change"]),
        (
            BRACKET,
            [INVALIDATE_START, "change", INVALIDATE_END],
            [INVALIDATE_START, "change", INVALIDATE_END],
        ),
        (POPULATED, ["change", POPULATE], ["change"]),
    ],
    ids=["silent", "after", "after failure", "before", "bracket", "populate"],
)
@pytest.mark.parametrize("refusal", [None, NO_SPACE, RuntimeError("a bug")], ids=str)
async def test_each_plan_has_its_order(
    world: World,
    how: How,
    plan: Plan,
    wanted: list[str],
    refused_: list[str],
    refusal: Exception | None,
) -> None:
    """The order holds if the change succeeds, is refused, or has a bug."""
    await world.listener(then=answers)
    if isinstance(refusal, RuntimeError):
        world.changed = refusal
    elif refusal is not None:
        world.changed = Changed(refusal=refusal)
    assert await world.drive(how, in_order(plan, 0, 4)) is refusal
    assert world.log == (wanted if refusal is None else refused_)
    world.assert_free()


@hows
async def test_nothing_goes_on_before_all_have_answered(world: World, how: How) -> None:
    one, other = await world.listener("1 "), await world.listener("2 ")
    logs = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.drive, how, in_order(BRACKET, 0, 4))
        for _ in range(2):
            await trio.testing.wait_all_tasks_blocked()
            other.answer()
            await trio.testing.wait_all_tasks_blocked()
            logs.append(list(world.log))
            one.answer()
    start = [f"1 {INVALIDATE_START}", f"2 {INVALIDATE_START}"]
    assert logs[0] == start
    assert logs[1] == [*start, "change", f"1 {INVALIDATE_END}", f"2 {INVALIDATE_END}"]
    assert world.log == logs[1]
    world.assert_free()


@hows
async def test_without_notifiers_nothing_waits(world: World, how: How) -> None:
    assert await world.drive(how, in_order(BRACKET, 0, 4)) is None
    assert world.log == ["change"]
    world.assert_free()


async def test_at_once_is_at_once(world: World) -> None:
    """Without an answer to wait for, the operation ends before the call returns."""
    over: list[Exception | None] = []
    assert world.notifiers.take()
    InlineDrive(
        in_order(AFTER, 0, 1),
        world.notifiers,
        world.ack_timeouts,
        world.change,
        over.append,
    ).go_on()
    assert over == [None]


# --- missing answers --------------------------------------------------------------


@hows
async def test_silent_notifiers_delay_no_call_beyond_the_timeout(
    world: World, how: How, autojump_clock: trio.testing.MockClock
) -> None:
    """Silent notifiers are removed before the second event."""
    quick, silent = await world.listener("1 ", answers), await world.listener("2 ")
    begun = trio.current_time()
    assert await world.drive(how, in_order(BRACKET, 0, 4)) is None
    assert silent.evicted_at == trio.current_time() == begun + ACK_SECONDS
    assert quick.evicted_at is None
    assert world.log[2:] == ["change", f"1 {INVALIDATE_END}"]
    assert list(world.notifiers) == [quick]
    world.assert_free()


@hows
async def test_each_event_has_the_whole_time(
    world: World, how: How, autojump_clock: trio.testing.MockClock
) -> None:
    slow = await world.listener()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.drive, how, in_order(BRACKET, 0, 4))
        for _ in range(2):
            await trio.sleep(ACK_SECONDS - 1)
            slow.answer()
    assert trio.current_time() == begun + 2 * (ACK_SECONDS - 1)
    assert slow.evicted_at is None


@hows
@pytest.mark.parametrize("plan", [AFTER, BEFORE, BRACKET], ids=str)
async def test_all_notifiers_may_leave_while_the_event_is_sent(
    world: World, how: How, plan: Plan
) -> None:
    for name in ("1 ", "2 ", "3 "):
        await world.listener(name, goes)
    assert await world.drive(how, in_order(plan, 0, 4)) is None
    assert len(world.notifiers) == 0
    assert world.log.count("change") == 1
    assert len(world.log) == 4
    world.assert_free()


@hows
async def test_one_may_take_the_others_with_it(world: World, how: How) -> None:
    """Notifiers of one peer are removed together; a removed one gets no event."""
    listeners: list[Listener] = []

    def all_go(listener: Listener, sequence: int) -> None:
        for one in listeners:
            world.notifiers.drop(one)

    listeners += [await world.listener(name, all_go) for name in ("1 ", "2 ")]
    assert await world.drive(how, in_order(BRACKET, 0, 4)) is None
    assert world.log == [f"1 {INVALIDATE_START}", "change"]
    world.assert_free()


@hows
async def test_a_notifier_that_unregisters_in_its_callback_waits_for_the_end(
    world: World, how: How
) -> None:
    one, other = await world.listener("1 "), await world.listener("2 ", answers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.drive, how, in_order(AFTER, 0, 4))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(world.notifiers.unregister, one)
    assert list(world.notifiers) == [other]
    world.assert_free()


# --- bugs -------------------------------------------------------------------------


@hows
@pytest.mark.parametrize("plan", [AFTER, BEFORE, BRACKET], ids=str)
async def test_a_bug_of_a_notifier_costs_one_call(
    world: World, how: How, plan: Plan, autojump_clock: trio.testing.MockClock
) -> None:
    """The list is unlocked, and a late answer is harmless."""
    one = await world.listener("1 ")
    await world.listener("2 ", fails)
    if how == "at once":
        found = await world.drive(how, in_order(plan, 0, 4))
        assert isinstance(found, RuntimeError)
    else:
        with pytest.raises(RuntimeError, match="a bug of tell"):
            await world.drive(how, in_order(plan, 0, 4))
    world.assert_free()
    with refused(errno.EINVAL):
        one.answer()
    await trio.sleep(2 * ACK_SECONDS)
    assert one.evicted_at is None
    world.assert_free()


@hows
async def test_a_bug_of_the_steps_costs_one_call(world: World, how: How) -> None:
    def steps() -> Steps:
        yield from in_order(BEFORE, 0, 1)
        raise RuntimeError("a bug of the steps")

    await world.listener(then=answers)
    if how == "at once":
        assert isinstance(await world.drive(how, steps()), RuntimeError)
    else:
        with pytest.raises(RuntimeError, match="a bug of the steps"):
            await world.drive(how, steps())
    world.assert_free()


@pytest.mark.parametrize("how", HOWS[:2])
async def test_a_cancelled_operation_unlocks_the_list(
    world: World, how: How, autojump_clock: trio.testing.MockClock
) -> None:
    await world.listener()
    closed = []

    def steps() -> Steps:
        try:
            return (yield from in_order(BEFORE, 0, 1))
        finally:
            closed.append(True)

    with trio.move_on_after(1):
        await world.drive(how, steps())
    assert closed == [True]
    assert world.log == [INVALIDATE]
    world.assert_free()


# --- calls within calls -----------------------------------------------------------


async def test_the_list_is_free_when_done_is_called(world: World) -> None:
    """Then an operation that waits for the first can begin in that moment."""
    await world.listener(then=answers)
    results: list[Exception | None] = []

    def again(failure: Exception | None) -> None:
        results.append(failure)
        if len(results) < 50:
            begin()

    def begin() -> None:
        assert world.notifiers.take()
        InlineDrive(
            in_order(AFTER, 0, 1),
            world.notifiers,
            world.ack_timeouts,
            world.change,
            again,
        ).go_on()

    begin()
    assert results == [None] * 50
    assert world.log == ["change", INVALIDATE] * 50
    world.assert_free()


async def test_the_answer_drives_on_and_gets_no_errors(world: World) -> None:
    """An error of fallocate(2) must not reach the peer that answers."""
    one = await world.listener()
    results: list[Exception | None] = []

    def steps() -> Steps:
        yield from in_order(AFTER, 0, 1)
        raise RuntimeError("a bug of the steps")

    assert world.notifiers.take()
    InlineDrive(
        steps(), world.notifiers, world.ack_timeouts, world.change, results.append
    ).go_on()
    assert results == []
    one.answer()
    assert [type(one) for one in results] == [RuntimeError]
    world.assert_free()


# --- how long the list is locked ----------------------------------------------------


@pytest.mark.parametrize("how", HOWS[:2])
async def test_a_registration_between_start_and_end(world: World, how: How) -> None:
    """Sean Christopherson, 13 January 2023: v9 and v10 send an end without a start.

    If the list is locked for the whole call, the registration waits and gets neither.
    """
    first = await world.listener("1 ")
    late = Listener(world, "2 ", answers)
    changing = trio.Event()
    may_end = trio.Event()

    async def change() -> Changed:
        world.log.append("change")
        changing.set()
        await may_end.wait()
        return Changed()

    async with trio.open_nursery() as nursery:

        async def call() -> None:
            await drive(
                in_order(BRACKET, 0, 4),
                world.notifiers,
                change,
                whole_call=how == "the whole call",
            )

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        first.answer()
        await changing.wait()
        nursery.start_soon(world.notifiers.register, late)
        await trio.testing.wait_all_tasks_blocked()
        assert (late in list(world.notifiers)) is (how == "each walk")
        may_end.set()
        await trio.testing.wait_all_tasks_blocked()
        first.answer()
    unpaired = [f"2 {INVALIDATE_END}"] if how == "each walk" else []
    assert world.log == [
        f"1 {INVALIDATE_START}",
        "change",
        f"1 {INVALIDATE_END}",
        *unpaired,
    ]
    assert list(world.notifiers) == [first, late]
    world.assert_free()
