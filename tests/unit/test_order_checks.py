"""A check of an operation: it may refuse before any event, under each driver."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from inaccfs.semantics.rules import INVALIDATE_END, INVALIDATE_START
from inaccfs.shim.order import Changed, in_order
from tests.unit.order_worlds import (
    AFTER_FAILURE,
    BEFORE,
    BRACKET,
    HOWS,
    NO_SPACE,
    How,
    World,
    answers,
    hows,
    new_world,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from inaccfs.semantics import Plan


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


class RefusedAtError(OSError):
    """An errno with its page, as error_offset of a KVM ioctl."""

    def __init__(self, offset: int) -> None:
        super().__init__(errno.EAGAIN, "pages are in use")
        self.offset = offset


@pytest.mark.parametrize("how", HOWS[1:])
@pytest.mark.parametrize("plan", [AFTER_FAILURE, BEFORE, BRACKET], ids=str)
async def test_a_refusal_by_a_check_sends_no_event(
    world: World, how: How, plan: Plan
) -> None:
    await world.listener(then=answers)
    refusal = RefusedAtError(8192)

    def check() -> None:
        raise refusal

    assert await world.drive(how, in_order(plan, 0, 4, check=check)) is refusal
    assert world.log == []
    world.assert_free()


@pytest.mark.parametrize("how", HOWS[1:])
async def test_a_check_looks_while_the_list_is_locked(world: World, how: How) -> None:
    await world.listener(then=answers)

    def check() -> None:
        assert not world.notifiers.take()
        world.log.append("check")

    assert await world.drive(how, in_order(BRACKET, 0, 4, check=check)) is None
    assert world.log == ["check", INVALIDATE_START, "change", INVALIDATE_END]
    world.assert_free()


@pytest.mark.parametrize("how", HOWS[1:])
async def test_a_bug_of_a_check_costs_one_call(world: World, how: How) -> None:
    def check() -> None:
        raise RuntimeError("a bug of the check")

    steps = in_order(BRACKET, 0, 4, check=check)
    if how == "at once":
        assert isinstance(await world.drive(how, steps), RuntimeError)
    else:
        with pytest.raises(RuntimeError, match="a bug of the check"):
            await world.drive(how, steps)
    assert world.log == []
    world.assert_free()


@hows
async def test_a_result_is_settled_before_it_is_reported(
    world: World, how: How
) -> None:
    await world.listener(then=answers)
    settled: list[Changed] = []

    def settle(changed: Changed) -> None:
        world.log.append("settled")
        settled.append(changed)

    world.changed = Changed(refusal=NO_SPACE)
    steps = in_order(BRACKET, 0, 4, settle=settle)
    assert await world.drive(how, steps) is NO_SPACE
    assert world.log == [INVALIDATE_START, "change", "settled", INVALIDATE_END]
    assert settled == [world.changed]
