"""Conversions and bindings by the control socket: outcomes and refusals.

The rules themselves are in test_conversions.py and test_proposed_errnos.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from inaccfs.semantics import VERSIONS, InPlaceNext, Semantics
from tests.unit.control_conversions import PAGES, attributes, convert, serving
from tests.unit.control_fakes import BASE

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing


# --- conversions ----------------------------------------------------------------------


async def test_a_conversion_and_its_events(scratch: Path, backing: Backing) -> None:
    async with (
        serving(scratch, backing) as control,
        control.peer() as vm,
        control.peer() as vmm,
    ):
        await vm.do("bind", file="/guest", start=0, end=PAGES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(convert, vmm, 2, 3)
            for name in ("INVALIDATE_START", "INVALIDATE_END"):
                event = await vm.event()
                assert event["event"] == name
                assert (event["start"], event["end"]) == (2, 5)
                assert event["kinds"] == "private"
                assert "frames" not in event
                await vm.acknowledge(event)
        assert await attributes(vmm) == [(0, 2, True), (2, 3, False), (5, 3, True)]


async def test_who_converts_can_be_the_one_who_is_notified(
    scratch: Path, backing: Backing
) -> None:
    """On one connection an answer overtakes the command that waits for it."""
    async with serving(scratch, backing) as control, control.peer() as peer:
        await peer.do("bind", file="/guest", start=0, end=PAGES)
        line = peer.line(
            "set-memory-attributes", file="/guest", offset=0, count=1, private=False
        )
        await peer.send(line + "\n")
        for name in ("INVALIDATE_START", "INVALIDATE_END"):
            event = await peer.event()
            assert event["event"] == name
            await peer.acknowledge(event)
        assert await peer.answer() == {"return": {}}
        assert await attributes(peer) == [(0, 1, False), (1, PAGES - 1, True)]


async def test_eagain_carries_the_page(scratch: Path, backing: Backing) -> None:
    async with (
        serving(scratch, backing, initial="shared") as control,
        control.peer() as peer,
    ):
        await peer.do("bind", file="/guest", start=6, end=PAGES)
        assert await peer.do("get-pfn", file="/guest", offset=6) == {
            "pfn": BASE + 6,
            "order": 0,
            "private": False,
        }
        line = peer.line(
            "set-memory-attributes", file="/guest", offset=1, count=7, private=True
        )
        assert await peer.ask(line) == {
            "error": {
                "class": "GenericError",
                "desc": "EAGAIN: page 6 has references, or is pinned",
                "offset": 6,
            }
        }
        assert peer.events == []
        # Errors of other commands have no page.
        assert (
            "offset"
            not in (await peer.ask(peer.line("freeze", file="/guest")))["error"]
        )


async def test_extents_tell_the_attribute_and_are_cut_there(
    scratch: Path, backing: Backing
) -> None:
    async with serving(scratch, backing) as control, control.peer() as peer:
        await convert(peer, 2, 1)
        await peer.do("bind", file="/guest", start=0, end=PAGES)
        found = await peer.do("get-pfn", file="/guest", offset=0, count=4)
        assert [
            (one["offset"], one["count"], one["private"]) for one in found["extents"]
        ] == [(0, 2, True), (2, 1, False), (3, 1, True)]


async def test_ranges_come_in_pages(scratch: Path, backing: Backing) -> None:
    async with serving(scratch, backing) as control, control.peer() as peer:
        for page in (1, 3, 5):
            await convert(peer, page, 1)
        rows: list[dict[str, Any]] = []
        start: int | None = 0
        while start is not None:
            line = peer.line(
                "query-memory-attributes", file="/guest", start=start, limit=2
            )
            answer = await peer.ask(line)
            assert len(answer["return"]) <= 2
            rows += answer["return"]
            start = answer.get("next")
        assert [row["count"] for row in rows] == [1, 1, 1, 1, 1, 1, 2]
        assert await peer.do("query-memory-attributes", file="/guest", start=99) == []


BAD = (
    # First the refusals of the message types, then those of the rules.
    {"count": 0},
    {"count": -1},
    {"offset": -1},
    {"offset": 1.5},
    {"count": 1e30},
    {"count": 1 << 60},
    {"offset": (1 << 51) - 1, "count": (1 << 51) - 1},
    {"private": 1},
    {"private": "yes"},
    {"private": None},
    {"executable": True},
    {"flags": 1},
    {"offset": PAGES},
    {"count": PAGES + 1},
    {"file": "/none"},
    {"file": "fdname"},
    {"file": ""},
    {"file": 3},
)


@pytest.mark.parametrize("wrong", BAD, ids=str)
async def test_bad_arguments_are_one_clear_line(
    scratch: Path, backing: Backing, wrong: dict[str, Any]
) -> None:
    arguments = {"file": "/guest", "offset": 0, "count": 1, "private": False} | wrong
    async with serving(scratch, backing) as control, control.peer() as peer:
        answer = await peer.do("set-memory-attributes", **arguments)
        assert answer.startswith(("EINVAL: ", "ENOENT: ")), answer
        assert answer.isprintable()
        assert await attributes(peer) == [(0, PAGES, True)]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_versions_without_refuse_in_clear_words(
    scratch: Path, backing: Backing, version: type[Semantics]
) -> None:
    rules = {"granule": "page"}
    async with (
        serving(scratch, backing, version, None, **rules) as control,
        control.peer() as peer,
    ):
        rules_sent = await peer.do("query-semantics")
        commands = set(rules_sent["commands"])
        answers = {
            "set-memory-attributes": await convert(peer, 0, 1),
            "populate": await peer.do("populate", file="/guest", offset=0, count=1),
            "freeze": await peer.do("freeze", file="/guest"),
            "unfreeze": await peer.do("unfreeze", file="/guest"),
            "commit-bind": await peer.do("commit-bind", notifier=99),
        }
        for command, answer in answers.items():
            refusal = answer if isinstance(answer, str) else ""
            unknown = refusal.startswith(("EOPNOTSUPP: ", "ENOENT: "))
            assert unknown is (command not in commands or command == "commit-bind"), (
                command,
                answer,
            )
        # The attributes of each can be queried.
        (row,) = await peer.do("query-memory-attributes", file="/guest", limit=1)
        began = rules_sent["initial"] == "private"
        assert row["private"] is began or row["count"] == 1


async def test_who_asks_and_goes_leaves_no_bracket_open(
    scratch: Path, backing: Backing
) -> None:
    async with serving(scratch, backing) as control, control.peer() as vm:
        await vm.do("bind", file="/guest", start=0, end=PAGES)
        async with control.peer() as vmm:
            await vmm.send(
                vmm.line(
                    "set-memory-attributes",
                    file="/guest",
                    offset=0,
                    count=1,
                    private=False,
                )
                + "\n"
            )
            start = await vm.event()
        assert start["event"] == "INVALIDATE_START"
        for name in ("INVALIDATE_START", "INVALIDATE_END"):
            event = start if name == start["event"] else await vm.event()
            assert event["event"] == name
            await vm.acknowledge(event)
        await control.peers_down_to(1)
        assert await attributes(vm) == [(0, 1, False), (1, PAGES - 1, True)]


async def test_a_notifier_that_goes_between_start_and_end_holds_up_nothing(
    scratch: Path, backing: Backing
) -> None:
    async with serving(scratch, backing) as control, control.peer() as vmm:
        async with trio.open_nursery() as nursery, control.peer() as vm:
            await vm.do("bind", file="/guest", start=0, end=PAGES)
            nursery.start_soon(convert, vmm, 0, 1)
            assert (await vm.event())["event"] == "INVALIDATE_START"
        assert await attributes(vmm) == [(0, 1, False), (1, PAGES - 1, True)]


async def test_get_pfn_waits_for_the_end_of_a_conversion(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing) as control,
        control.peer() as vm,
        control.peer() as vmm,
        control.peer() as vcpu,
    ):
        await vm.do("bind", file="/guest", start=0, end=PAGES)
        found: list[Any] = []

        async def fault() -> None:
            found.append(await vcpu.do("get-pfn", file="/guest", offset=0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(convert, vmm, 0, 1)
            for name in ("INVALIDATE_START", "INVALIDATE_END"):
                event = await vm.event()
                if name == "INVALIDATE_START":
                    nursery.start_soon(fault)
                await trio.testing.wait_all_tasks_blocked()
                assert found == []
                await vm.acknowledge(event)
        assert found == [{"pfn": BASE, "order": 0, "private": False}]


# --- prepared bindings ----------------------------------------------------------------


async def test_a_prepared_binding_takes_effect_when_it_is_committed(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing, InPlaceNext) as control,
        control.peer() as peer,
        control.peer() as other,
    ):
        place = {"file": "/guest", "start": 0, "end": 4}
        made = await peer.do("bind", **place, prepare=True)
        # It is not bound yet.
        (row,) = await other.do("query-notifiers")
        assert (row["start"], row["end"], row["effective"]) == (0, 4, False)
        answer = await peer.do("get-pfn", file="/guest", offset=0)
        assert answer.startswith("EIO: ")
        assert await convert(other, 0, 1) == {}
        assert await peer.do("commit-bind", **made) == {}
        (row,) = await other.do("query-notifiers")
        assert (row["start"], row["end"], row["effective"]) == (0, 4, True)
        assert "pfn" in await peer.do("get-pfn", file="/guest", offset=0)
        answer = await peer.do("commit-bind", **made)
        assert answer.startswith("ENOENT: this peer has not prepared")
        # Of two for the same pages the second is refused, and forgotten.
        late = await other.do("bind", **place, prepare=True)
        assert (await other.do("commit-bind", **late)).startswith(
            "EEXIST: pages 0 to 4"
        )
        assert (await other.do("commit-bind", **late)).startswith("ENOENT: ")
        assert await peer.do("unbind", **made) == {}
        again = await other.do("bind", **place, prepare=True)
        assert await other.do("unbind", **again) == {}


async def test_without_that_rule_nothing_is_prepared(
    scratch: Path, backing: Backing
) -> None:
    async with serving(scratch, backing) as control, control.peer() as peer:
        answer = await peer.do("bind", file="/guest", start=0, end=4, prepare=True)
        assert answer.startswith("EOPNOTSUPP: bindings take effect at once")
