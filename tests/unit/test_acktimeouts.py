"""AckTimeouts evicts notifiers that do not answer, in time and at no cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from inaccfs.shim.acktimeouts import AckTimeouts
from inaccfs.shim.deadlines import in_time
from inaccfs.shim.notifiers import Notice, Notifiers
from inaccfs.shim.trace import FileTrace, Trace

SECONDS = 10.0


@dataclass(eq=False)
class Silent:
    """A notifier that does not answer by itself."""

    name: str
    evictions: list[tuple[str, float]]
    sequence: int = 0

    who = number = 0

    def tell(self, notice: Notice, sequence: int | None) -> None:
        assert sequence is not None
        self.sequence = sequence

    def evict(self) -> None:
        self.evictions.append((self.name, trio.current_time()))


@dataclass
class File:
    """The notifiers of a file; at first there is one."""

    ack_timeouts: AckTimeouts
    evictions: list[tuple[str, float]]
    name: str
    notifiers: Notifiers = field(init=False)
    notifier: Silent = field(init=False)

    def __post_init__(self) -> None:
        self.notifiers = Notifiers(FileTrace(Trace()), SECONDS)
        self.notifier = Silent(self.name, self.evictions)

    async def registered(self) -> File:
        await self.notifiers.register(self.notifier)
        return self

    def invalidate(self) -> None:
        """Send an event, and let `AckTimeouts` watch it."""
        assert self.notifiers.take()
        sequence = self.notifiers.begin(Notice("INVALIDATE", 0, 1), self.over)
        assert sequence is not None
        self.ack_timeouts.watch(self.notifiers, sequence)

    def over(self) -> None:
        self.ack_timeouts.forget(self.notifiers)
        self.notifiers.release()

    def answer(self) -> None:
        self.notifiers.answer(self.notifier, self.notifier.sequence)


class Steps(trio.abc.Instrument):
    """Counts how often the task of `AckTimeouts.run` runs."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "AckTimeouts.run" in task.name


@dataclass
class World:
    ack_timeouts: AckTimeouts
    nursery: trio.Nursery
    evictions: list[tuple[str, float]] = field(default_factory=list)

    async def file(self, name: str = "") -> File:
        return await File(self.ack_timeouts, self.evictions, name).registered()


@pytest.fixture
async def world(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> World:
    made = World(AckTimeouts(SECONDS), nursery)
    nursery.start_soon(made.ack_timeouts.run)
    await trio.testing.wait_all_tasks_blocked()
    return made


async def test_it_runs_from_its_start_to_its_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Otherwise no caller could rely on it."""
    ack_timeouts = AckTimeouts(SECONDS)
    assert not ack_timeouts.running
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ack_timeouts.run)
        await trio.testing.wait_all_tasks_blocked()
        assert ack_timeouts.running
        nursery.cancel_scope.cancel()
    assert not ack_timeouts.running


async def test_the_silent_are_evicted_when_their_time_is_over(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    file = await world.file("one")
    await trio.sleep(3)
    file.invalidate()
    await trio.sleep(SECONDS - 0.01)
    assert world.evictions == []
    await trio.sleep(0.02)
    assert world.evictions == [("one", 3 + SECONDS)]
    assert len(file.notifiers) == 0
    assert not file.notifiers.running


async def test_each_has_its_own_time_in_order(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    files = [await world.file(str(number)) for number in range(5)]
    for file in files:
        file.invalidate()
        await trio.sleep(1)
    # In the middle one notifier answers and gets another event: its time begins again.
    files[2].answer()
    files[2].invalidate()
    await trio.sleep(3 * SECONDS)
    assert world.evictions == [
        *((str(number), number + SECONDS) for number in (0, 1, 3, 4)),
        ("2", 5 + SECONDS),
    ]


async def test_several_of_one_time_go_together(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    files = [await world.file(str(number)) for number in range(3)]
    for file in files:
        file.invalidate()
    await trio.sleep(2 * SECONDS)
    assert world.evictions == [(str(number), SECONDS) for number in range(3)]


async def test_a_notifier_that_answers_just_in_time_stays(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    file = await world.file()
    for _ in range(3):
        file.invalidate()
        await trio.sleep(SECONDS - 0.001)
        file.answer()
    await trio.sleep(3 * SECONDS)
    assert world.evictions == []
    assert len(file.notifiers) == 1


async def test_all_notifiers_without_an_answer_are_evicted(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    file = await world.file("one")
    quick = Silent("quick", world.evictions)
    await file.notifiers.register(quick)
    await file.notifiers.register(Silent("other", world.evictions))
    file.invalidate()
    file.notifiers.answer(quick, quick.sequence)
    await trio.sleep(2 * SECONDS)
    assert world.evictions == [("one", SECONDS), ("other", SECONDS)]
    assert list(file.notifiers) == [quick]


async def test_it_begins_again_after_a_rest(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    for round_ in range(3):
        file = await world.file(str(round_))
        await trio.sleep(100 - trio.current_time() % 100)
        file.invalidate()
        await trio.sleep(2 * SECONDS)
    assert world.evictions == [
        (str(round_), 100 * (round_ + 1) + SECONDS) for round_ in range(3)
    ]


async def test_the_task_rests_while_all_answer(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """One wake-up in a quarter of the timeout, and not one for each event."""
    file = await world.file()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    events = 10_000
    for _ in range(events):
        file.invalidate()
        file.answer()
        await trio.sleep(0.01)
    trio.lowlevel.remove_instrument(steps)
    assert steps.count <= 4 * 2 * events * 0.01 / SECONDS + 2


async def test_the_task_rests_while_the_silent_have_their_time(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    silent, quick = await world.file("silent"), await world.file()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    silent.invalidate()
    for _ in range(1000):
        quick.invalidate()
        quick.answer()
        await trio.sleep(0.005)
    trio.lowlevel.remove_instrument(steps)
    assert steps.count <= 4
    await trio.sleep(SECONDS)
    assert world.evictions == [("silent", SECONDS)]


async def test_an_event_that_was_answered_is_not_kept(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Even if another notifier does not answer."""
    silent, quick = await world.file("silent"), await world.file()
    silent.invalidate()
    for _ in range(1000):
        quick.invalidate()
        quick.answer()
        assert len(world.ack_timeouts) == 1
    for _ in range(1000):
        other = await world.file()
        other.invalidate()
        other.answer()
    assert len(world.ack_timeouts) == 1
    silent.answer()
    assert len(world.ack_timeouts) == 0


async def test_an_event_that_is_over_before_it_is_watched_is_not_kept(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """All were removed while the event was sent."""
    file = await world.file()
    assert file.notifiers.take()
    sequence = file.notifiers.begin(Notice("INVALIDATE", 0, 1), file.over)
    assert sequence is not None
    file.notifiers.drop(file.notifier)
    world.ack_timeouts.watch(file.notifiers, sequence)
    assert len(world.ack_timeouts) == 0


# --- a process that is stopped --------------------------------------------------------


@pytest.mark.parametrize("before", [0.0, 2.0, 4.9, 9.9])
@pytest.mark.parametrize("stopped", [SECONDS, 100 * SECONDS])
async def test_answers_that_arrived_while_stopped_are_read_first(
    world: World, autojump_clock: trio.testing.MockClock, before: float, stopped: float
) -> None:
    file = await world.file()
    file.invalidate()
    await trio.sleep(before)
    # As after SIGCONT: all deadlines have passed at once, and there is data to read.
    autojump_clock.jump(stopped)
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    file.answer()
    await trio.sleep(2 * SECONDS)
    assert world.evictions == []


@pytest.mark.parametrize("before", [0.0, 2.0, 9.9])
async def test_the_silent_are_evicted_also_after_that(
    world: World, autojump_clock: trio.testing.MockClock, before: float
) -> None:
    """They get at most a quarter of their time more."""
    file = await world.file("silent")
    file.invalidate()
    await trio.sleep(before)
    autojump_clock.jump(100 * SECONDS)
    await trio.sleep(0.6 * (SECONDS - before))
    assert world.evictions == []
    await trio.sleep(SECONDS)
    assert len(world.evictions) == 1


async def test_a_wait_is_over_in_time_or_not(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    event = trio.Event()
    assert not await in_time(SECONDS, event.wait)
    assert trio.current_time() == SECONDS

    async def set_later() -> None:
        await trio.sleep(SECONDS - 0.1)
        event.set()

    nursery.start_soon(set_later)
    assert await in_time(SECONDS, event.wait)
    assert trio.current_time() == 2 * SECONDS - 0.1


async def test_a_wait_does_not_count_time_while_stopped(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    event = trio.Event()
    over: list[tuple[bool, float]] = []

    async def wait() -> None:
        over.append((await in_time(SECONDS, event.wait), trio.current_time()))

    for _ in range(5):
        nursery.start_soon(wait)
        await trio.sleep(0.9 * SECONDS)
        autojump_clock.jump(50 * SECONDS)
        await trio.lowlevel.checkpoint()
        event.set()
        await trio.lowlevel.checkpoint()
        await trio.sleep(0.1)
        event = trio.Event()
    assert [kept for kept, _ in over] == [True] * 5
    began = trio.current_time()
    nursery.start_soon(wait)
    await trio.sleep(0.9 * SECONDS)
    autojump_clock.jump(50 * SECONDS)
    await trio.sleep(2 * SECONDS)
    kept, ended = over[-1]
    assert not kept
    assert 51 * SECONDS <= ended - began <= 51.5 * SECONDS
