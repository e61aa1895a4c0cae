"""A file's turn, without a file."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from inaccfs.shim.loop import TRIO
from inaccfs.shim.turn import Turn
from tests.unit.blocked_fakes import BlockedUndoing


class World:
    """A turn, those of its mount that are taken, and how often it has changed."""

    def __init__(self) -> None:
        self.all: set[Turn] = set()
        self.changes: list[bool] = []
        self.turn = Turn(self.all, self._changed, TRIO)

    def _changed(self) -> None:
        self.changes.append(self.turn.taken)


@pytest.fixture
def world() -> World:
    return World()


def test_a_turn_is_taken_for_the_length_of_a_block(world: World) -> None:
    assert not world.turn.taken
    with world.turn.take():
        assert world.turn.taken
        assert world.all == {world.turn}
    assert not world.turn.taken
    assert not world.all
    assert world.changes == [True, False]


def test_a_bug_in_the_block_ends_the_turn(world: World) -> None:
    with pytest.raises(RuntimeError), world.turn.take():
        raise RuntimeError
    assert not world.turn.taken


async def test_of_those_that_wait_each_gets_its_turn(world: World) -> None:
    """One that has waited may take the turn before the others wake."""
    most = 0

    async def take() -> None:
        nonlocal most
        await world.turn.wait()
        with world.turn.take():
            most = max(most, len(world.all))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(take)
    assert most == 1
    assert not world.turn.taken


async def test_an_undoing_keeps_the_turn_until_it_has_ended(world: World) -> None:
    undoing = BlockedUndoing()
    with world.turn.take():
        world.turn.undoing = undoing
    assert world.turn.taken
    async with trio.open_nursery() as nursery:
        for wait in (world.turn.wait, world.turn.wait_undone, world.turn.wait_undone):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert world.turn.taken
        undoing.end()
    assert world.turn.undoing is None
    assert world.changes == [True, False]


async def test_a_wait_ends_when_it_is_interrupted(world: World) -> None:
    interrupted = trio.Event()
    found: list[bool] = []

    async def wait() -> None:
        found.append(await world.turn.wait_unless(interrupted))

    async with trio.open_nursery() as nursery:
        with world.turn.take():
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            interrupted.set()
            await trio.testing.wait_all_tasks_blocked()
            assert found == [False]
    assert await world.turn.wait_unless(trio.Event())
