"""The trace: which peer or process did what to which pages, and the outcome."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.semantics import V8, V9, V10, GuestMemfd, InPlaceV8
from inaccfs.semantics.rules import INVALIDATE, INVALIDATE_END, INVALIDATE_START
from inaccfs.shim.call import Begun, Call, Conversion
from inaccfs.shim.conversions import convert
from inaccfs.shim.freezing import freeze, unfreeze
from inaccfs.shim.memoryfailure import report
from inaccfs.shim.migration import migrate
from inaccfs.shim.populating import populate
from inaccfs.shim.references import PAGES_A_STEP
from inaccfs.syscalls import PUNCH
from tests.unit.control_fakes import BASE, PAGE
from tests.unit.fakes import fallocate, refused
from tests.unit.one_file import mine
from tests.unit.pages_fakes import ACK_SECONDS, KEEP, Holder, World, world_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.semantics import Semantics
    from inaccfs.shim.trace import Happened


class FreeSize(V10):
    """A file may be truncated as often as one likes."""

    size = "free"


pytestmark = pytest.mark.usefixtures("_no_strays")

PID = 4711
PEER = 5


@contextmanager
def traced(world: World) -> Iterator[list[Happened]]:
    found: list[Happened] = []
    trace = world.file.superblock.trace
    trace.listen(found.append)
    yield found
    trace.stop(found.append)
    ino = os.fstat(world.file.fd).st_ino
    assert {one.file for one in found} <= {ino}
    times = [one.time for one in found]
    assert times == sorted(times)


def begin(world: World, mode: int, start: int, end: int) -> Begun:
    """A call of process PID."""
    length = (end - start) * PAGE
    return world.file.begin(
        mode, start * PAGE, length, lambda: lambda exc: None, who=PID
    )


def calls(found: list[Happened]) -> list[tuple[str, int, int, int, int]]:
    return [(one.what, one.start, one.end, one.who, one.error) for one in found]


async def test_quick_calls_are_traced_with_their_outcome() -> None:
    world = world_of(GuestMemfd(), pages=8)
    with traced(world) as found:
        begin(world, KEEP, 0, 4)
        begin(world, PUNCH, 1, 2)
        # Refused by the rules, by the size, and by the backing.
        with refused(errno.EOPNOTSUPP):
            begin(world, 0, 0, 4)
        with refused(errno.EINVAL):
            begin(world, KEEP, 8, 9)
        with refused(errno.EINVAL):
            begin(world, KEEP, 4, 4)
    assert calls(found) == [
        ("allocate", 0, 4 * PAGE, PID, 0),
        ("punch", PAGE, 2 * PAGE, PID, 0),
        ("allocate", 0, 4 * PAGE, PID, errno.EOPNOTSUPP),
        ("allocate", 8 * PAGE, 9 * PAGE, PID, errno.EINVAL),
        ("allocate", 4 * PAGE, 4 * PAGE, PID, errno.EINVAL),
    ]


async def test_a_listener_that_has_stopped_gets_nothing() -> None:
    world = world_of(V8())
    with traced(world) as found:
        begin(world, 0, 0, 1)
    begin(world, 0, 0, 1)
    assert len(found) == 1


async def test_a_punch_is_traced_after_its_events_by_each_driver() -> None:
    streams = []
    for inline in (True, False):
        world = world_of(V8())
        await world.listener()
        async with trio.open_nursery() as nursery:
            if inline:
                nursery.start_soon(world.ack_timeouts.run)
                await trio.testing.wait_all_tasks_blocked()
            with traced(world) as found:
                begun = begin(world, PUNCH, 2, 4)
                if begun is Begun.LATER:
                    call = Call(PUNCH, 2 * PAGE, 2 * PAGE, PID)
                    await world.file.finish(call, trio.Event())
            assert (begun is Begun.UNDER_WAY) is inline
            nursery.cancel_scope.cancel()
        streams.append([without_times(one) for one in found])
    assert streams[0] == streams[1]
    assert streams[0] == [
        ("event", 2 * PAGE, 4 * PAGE, 8, 0, INVALIDATE, 1, 3),
        ("answer", 2 * PAGE, 4 * PAGE, 8, 0, INVALIDATE, 1, 3),
        ("punch", 2 * PAGE, 4 * PAGE, PID, 0, "", 0, 0),
    ]


def without_times(one: Happened) -> tuple[object, ...]:
    fields = ("what", "start", "end", "who", "error", "event", "sequence", "notifier")
    return tuple(getattr(one, name) for name in fields)


@pytest.mark.parametrize("rules", [V8(), V9()])
async def test_events_and_answers_name_their_call(rules: Semantics) -> None:
    """By when it began, whoever drives it; a truncation does so, too."""
    world = world_of(rules)
    await world.listener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.ack_timeouts.run)
        await trio.testing.wait_all_tasks_blocked()
        with traced(world) as found:
            begun = begin(world, PUNCH, 2, 4)
            if begun is Begun.LATER:
                began = time.monotonic_ns()
                call = Call(PUNCH, 2 * PAGE, 2 * PAGE, PID, began)
                await world.file.finish(call, trio.Event())
        nursery.cancel_scope.cancel()
    *events, punch = found
    assert punch.what == "punch"
    assert len(events) == (2 if begun is Begun.UNDER_WAY else 4)
    assert {one.cause for one in events} == {punch.began}
    for sent, answered in zip(events[::2], events[1::2], strict=True):
        assert (sent.what, answered.what) == ("event", "answer")
        assert punch.began < sent.time <= answered.time < punch.time
        assert sent.began == 0
        # The time of sending is read before the event is told, and that before it goes.
        assert punch.began < answered.began <= sent.time


async def test_a_truncation_is_the_cause_of_its_events() -> None:
    world = world_of(FreeSize(), pages=4)
    await world.listener()
    with traced(world) as found:
        await world.file.set_size(PAGE, who=PID)
    assert [one.what for one in found][-1] == "truncate"
    assert {one.cause for one in found[:-1]} == {found[-1].began}
    assert found[-1].began < found[0].time


async def test_what_began_before_anybody_listened_has_no_beginning() -> None:
    world = world_of(V8())
    await world.listener(answers=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.punch, 0, 1)
        await trio.testing.wait_all_tasks_blocked()
        with traced(world) as found:
            (notifier,) = world.file.notifiers
            world.file.notifiers.answer(notifier, 1)
            await trio.testing.wait_all_tasks_blocked()
    assert [(one.what, one.began, one.cause) for one in found] == [
        ("answer", 0, 0),
        ("punch", 0, 0),
    ]


async def test_a_call_that_fails_late_is_traced_with_its_error() -> None:
    world = world_of(V9(), pages=4)
    await world.listener()
    with traced(world) as found, refused(errno.EOPNOTSUPP):
        # ZERO_RANGE: the backing refuses it, between the two events.
        await fallocate(world.file, 0x10, 0, PAGE, trio.Event())
    assert [(one.what, one.event, one.error) for one in found] == [
        ("event", INVALIDATE_START, 0),
        ("answer", INVALIDATE_START, 0),
        ("event", INVALIDATE_END, 0),
        ("answer", INVALIDATE_END, 0),
        ("allocate", "", errno.EOPNOTSUPP),
    ]


async def test_a_truncation_is_traced_with_both_sizes() -> None:
    world = world_of(V8(), pages=0)
    with traced(world) as found:
        await world.file.set_size(4 * PAGE, who=PID)
        with refused(errno.EPERM):
            await world.file.set_size(PAGE, who=PID)
    assert calls(found) == [
        ("truncate", 4 * PAGE, 0, PID, 0),
        ("truncate", PAGE, 4 * PAGE, PID, errno.EPERM),
    ]


async def test_pages_are_traced_when_got_moved_put_and_poisoned() -> None:
    world, holder = world_of(V10()), Holder()
    with traced(world) as found:
        await world.get(holder, 2, 6)
        world.put(holder, 3, 2)
        await report(world.file, 2, who=9)
        world.frames.moves = {5: 0x9000}
        await world.punch(2, 3)
    assert calls(found) == [
        ("get", 2 * PAGE, 6 * PAGE, 7, 0),
        ("put", (BASE + 3) * PAGE, (BASE + 5) * PAGE, 7, 0),
        ("poison", 2 * PAGE, 3 * PAGE, 9, 0),
        ("move", 5 * PAGE, 6 * PAGE, 0, 0),
        ("punch", 2 * PAGE, 3 * PAGE, 0, 0),
    ]


async def test_a_notifier_that_does_not_answer_is_traced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = world_of(V8())
    await world.listener(answers=False)
    with traced(world) as found:
        await world.punch(0, 1)
    assert trio.current_time() == ACK_SECONDS
    assert [(one.what, one.who, one.sequence) for one in found] == [
        ("event", 8, 1),
        ("evict", 8, 1),
        ("punch", 0, 0),
    ]


async def test_the_counters_agree_with_the_trace() -> None:
    world, holder = world_of(V8()), Holder()
    await world.listener()
    with traced(world) as found:
        await world.get(holder, 0, 4)
        world.put(holder, 0, 2)
        await world.punch(0, 4)
        await world.fallocate(0, 0, 4)
    counters = world.file.superblock.trace.counters

    def pages(what: str) -> int:
        return sum(one.end - one.start for one in found if one.what == what) // PAGE

    def number(*what: str) -> int:
        return sum(one.what in what for one in found)

    assert counters.pages_got == pages("get") == 4
    assert counters.pages_put == pages("put") == 2
    assert counters.events == number("event") == 2
    assert counters.punches == number("punch") == 1
    assert counters.fallocates == number("punch", "allocate") == 2


async def test_references_that_were_put_before_a_peer_went_count() -> None:
    """Many are put in steps, and the peer may disconnect in between."""
    world, holder = world_of(V8()), Holder()
    counters = world.file.superblock.trace.counters
    await world.get(holder, 0, 2 * PAGES_A_STEP)
    memory = world.file.pages.memory
    assert memory is not None
    all_of_them = memory.references_count
    with traced(world) as found:
        for _ in memory.put_all(holder, [(BASE, 2 * PAGES_A_STEP)]):
            if memory.references_count < all_of_them:
                break
    assert counters.pages_put == PAGES_A_STEP
    assert memory.references_count == all_of_them - PAGES_A_STEP
    assert [(one.what, one.start, one.end) for one in found] == [
        ("put", BASE * PAGE, (BASE + PAGES_A_STEP) * PAGE)
    ]


# --- commands ---------------------------------------------------------------------


EVERYTHING = mine(
    InPlaceV8,
    initial="shared",
    migration="bracket",
    frozen="before the checks",
    scope="file",
)
"""Rules with every command that changes a file."""


async def test_commands_are_traced_with_their_errors() -> None:
    world, holder = world_of(EVERYTHING, 8), Holder()
    file = world.file
    await convert(file, Conversion(4, 6, private=True))
    await world.get(holder, 0, 1)
    await world.get(holder, 2, 3)
    world.put(holder, 2)
    with traced(world) as found:
        with refused(errno.EAGAIN):
            await migrate(file, 0, 1, PEER)
        await migrate(file, 2, 3, PEER)
        with refused(errno.EINVAL):
            await populate(file, 3, 5, None, PEER)
        assert await populate(file, 4, 8, None, PEER) == 2
        await freeze(file, holder, PEER)
        with refused(errno.EPERM):
            unfreeze(file, Holder(), PEER + 1)
        unfreeze(file, holder, PEER)
        assert all(one.began for one in found if one.what != "move")
    whole = 0, 8 * PAGE
    assert calls(found) == [
        ("migrate", 0, PAGE, PEER, errno.EAGAIN),
        ("move", 2 * PAGE, 3 * PAGE, PEER, 0),
        ("migrate", 2 * PAGE, 3 * PAGE, PEER, 0),
        ("populate", 3 * PAGE, 5 * PAGE, PEER, errno.EINVAL),
        ("populate", 4 * PAGE, 6 * PAGE, PEER, 0),
        ("freeze", *whole, PEER, 0),
        ("unfreeze", *whole, PEER + 1, errno.EPERM),
        ("unfreeze", *whole, PEER, 0),
    ]


async def test_a_cancelled_command_is_traced() -> None:
    world = world_of(EVERYTHING)
    with traced(world) as found, world.file.turn.take():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(freeze, world.file, Holder(), PEER)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert [(one.what, one.error) for one in found] == [("freeze", errno.EINTR)]
    assert not world.file.is_frozen
