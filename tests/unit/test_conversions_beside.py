"""Conversions while something else is under way: who waits, and who is refused."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from inaccfs.semantics import HugetlbRfc, LiveUpdate
from inaccfs.syscalls import PUNCH
from tests.unit.control_conversions import (
    PAGES,
    attributes,
    convert,
    serving,
    shim_of,
)
from tests.unit.control_fakes import PAGE
from tests.unit.fakes import fallocate

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing
    from tests.unit.control_fakes import Control, Peer

HUGE = 512


async def begun_and_gone(control: Control, vm: Peer) -> dict[str, Any]:
    """Another peer converts three huge pages, and goes after the first event.

    Returns the event.
    """
    control.make("large", 3 * HUGE)
    await vm.do("bind", file="/large", start=0, end=3 * HUGE)
    async with control.peer() as vmm:
        command = {"file": "/large", "offset": 0, "count": 3 * HUGE}
        line = vmm.line("set-memory-attributes", **command, private=False)
        await vmm.send(line + "\n")
        return await vm.event()


async def test_a_conversion_that_waited_for_the_lock_finds_the_file_frozen(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing, frozen="before the checks") as control,
        control.peer() as vm,
        control.peer() as vmm,
        control.peer() as other,
    ):
        await vm.do("bind", file="/guest", start=0, end=PAGES)
        outcomes: list[object] = []

        async def punch() -> None:
            await fallocate(shim_of(control), PUNCH, 0, PAGE, trio.Event())

        async def late() -> None:
            outcomes.append(await convert(vmm, 0, 1))

        async def freeze() -> None:
            outcomes.append(await other.do("freeze", file="/guest"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(punch)
            start = await vm.event()
            for call in (late, freeze):
                nursery.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()
            assert outcomes == []
            await vm.acknowledge(start)
            await vm.acknowledge(await vm.event())
        assert sorted(map(str, outcomes)) == ["EPERM: the file is frozen", "{}"]
        assert vm.events == []
        assert await attributes(vm) == [(0, PAGES, True)]


async def test_a_conversion_that_waited_for_the_lock_finds_the_file_closed(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing) as control,
        control.peer() as vm,
        control.peer() as vmm,
    ):
        await vm.do("bind", file="/guest", start=0, end=PAGES)
        outcomes: list[object] = []

        async def punch() -> None:
            await fallocate(shim_of(control), PUNCH, 0, PAGE, trio.Event())

        async def late() -> None:
            outcomes.append(await convert(vmm, 0, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(punch)
            start = await vm.event()
            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            shim_of(control).pages.abandoned = True
            await vm.acknowledge(start)
            await vm.acknowledge(await vm.event())
        assert outcomes == ["EFAULT: the file has been closed by all its users"]
        shim_of(control).pages.abandoned = False
        assert await attributes(vm) == [(0, PAGES, True)]


async def test_who_goes_while_it_waits_to_freeze_freezes_nothing(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing, LiveUpdate) as control,
        control.peer() as vm,
    ):
        await vm.do("bind", file="/guest", start=0, end=PAGES)

        async def punch() -> None:
            await fallocate(shim_of(control), PUNCH, 0, PAGE, trio.Event())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(punch)
            start = await vm.event()
            async with control.peer() as other:
                await other.send(other.line("freeze", file="/guest") + "\n")
                await trio.testing.wait_all_tasks_blocked()
                assert shim_of(control).frozen_by is not None
            await control.peers_down_to(1)
            assert shim_of(control).frozen_by is None
            await vm.acknowledge(start)
            await vm.acknowledge(await vm.event())
        assert await vm.do("freeze", file="/guest") == {}


async def test_who_goes_leaves_the_huge_pages_that_have_not_begun(
    scratch: Path, backing: Backing
) -> None:
    """There may be so many that nobody could wait for the last one."""
    async with serving(scratch, backing, HugetlbRfc) as control, control.peer() as vm:
        start = await begun_and_gone(control, vm)
        assert (start["start"], start["end"]) == (0, HUGE)
        assert "zaps" not in start
        await trio.testing.wait_all_tasks_blocked()
        await vm.acknowledge(start)
        end = await vm.event()
        assert (end["event"], end["end"]) == ("INVALIDATE_END", HUGE)
        await vm.acknowledge(end)
        await control.peers_down_to(1)
        rows = await vm.do("query-memory-attributes", file="/large")
        assert [(row["offset"], row["private"]) for row in rows] == [
            (0, False),
            (HUGE, True),
        ]
        assert vm.events == []


async def test_an_event_of_a_huge_page_has_the_pages_that_are_converted(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing, HugetlbRfc) as control,
        control.peer() as vm,
        control.peer() as vmm,
    ):
        control.make("large", HUGE)
        await vm.do("bind", file="/large", start=0, end=HUGE)
        command = {"file": "/large", "offset": 3, "count": 4, "private": False}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(vmm.do, "set-memory-attributes", **command))
            for name in ("INVALIDATE_START", "INVALIDATE_END"):
                event = await vm.event()
                assert event["event"] == name
                assert (event["start"], event["end"]) == (0, HUGE)
                assert event["zaps"] == {"start": 3, "end": 7}
                await vm.acknowledge(event)


async def test_what_is_converted_as_a_whole_is_so_though_who_asked_has_gone(
    scratch: Path, backing: Backing
) -> None:
    rules: dict[str, Any] = {"atomicity": "range"}
    async with (
        serving(scratch, backing, HugetlbRfc, None, **rules) as control,
        control.peer() as vm,
    ):
        start = await begun_and_gone(control, vm)
        await vm.acknowledge(start)
        await vm.acknowledge(await vm.event())
        await control.peers_down_to(1)
        (row,) = await vm.do("query-memory-attributes", file="/large")
        assert (row["count"], row["private"]) == (3 * HUGE, False)


async def test_pages_that_became_private_meanwhile_are_not_pinned(
    scratch: Path, backing: Backing
) -> None:
    """The faults of a large pin take a thread, and a conversion can come before it."""
    pages = 4 * HUGE
    async with (
        serving(scratch, backing, initial="shared") as control,
        control.peer() as vfio,
        control.peer() as vmm,
    ):
        control.make("large", pages)
        limiter = control.server.context.superblock.threads.changes
        limiter.total_tokens = 1
        limiter.acquire_on_behalf_of_nowait(backing)
        outcomes: dict[str, Any] = {}
        command = {"file": "/large", "offset": 0, "count": pages}

        async def pin() -> None:
            outcomes["pin"] = await vfio.do("pin-pages", **command)

        async def to_private() -> None:
            call = "set-memory-attributes"
            outcomes["convert"] = await vmm.do(call, **command, private=True)

        async with trio.open_nursery() as nursery:
            for each in (pin, to_private):
                nursery.start_soon(each)
                await trio.testing.wait_all_tasks_blocked()
            assert outcomes == {}
            limiter.release_on_behalf_of(backing)
        assert outcomes["convert"] == {}
        assert outcomes["pin"] == "EFAULT: SIGBUS: page 0 is private"
        assert (await vmm.do("query-pins"))["references"] == []


async def test_events_of_pages_that_have_moved_carry_kinds_too(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing) as control,
        control.peer() as peer,
        control.peer() as vmm,
    ):
        await convert(vmm, 3, 1)
        await peer.do("bind", file="/guest", start=0, end=PAGES)
        await peer.do("get-pfn", file="/guest", offset=0, count=6)
        control.frames.opened[0].moves = {3: 77}
        await peer.send(peer.line("get-pfn", file="/guest", offset=7) + "\n")
        for name in ("INVALIDATE_START", "INVALIDATE_END"):
            event = await peer.event()
            assert (event["event"], event["kinds"]) == (name, "shared")
            await peer.acknowledge(event)
        assert "pfn" in (await peer.answer())["return"]
