"""Conversions, population and freezes by the control socket: outcomes and refusals.

The rules themselves are in test_conversions.py and test_proposed_errnos.py.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from inaccfs.control.limits import Limits, Policy
from inaccfs.semantics import (
    VERSIONS,
    InPlaceNext,
    InPlaceV8,
    LiveUpdate,
    Semantics,
)
from inaccfs.shim import freezing
from inaccfs.syscalls import PUNCH
from tests.unit.control_fakes import BASE, PAGE, controlling
from tests.unit.fakes import fallocate
from tests.unit.one_file import mine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from inaccfs.backing.root import Backing
    from inaccfs.shim.file import InaccessibleFile
    from tests.unit.control_fakes import Control, Peer

PAGES = 8


@asynccontextmanager
async def serving(
    scratch: Path,
    backing: Backing,
    base: type[Semantics] = InPlaceV8,
    policy: Policy | None = None,
    **chosen: object,
) -> AsyncIterator[Control]:
    """A control socket with these rules, and a file of eight pages, /guest."""
    with trio.fail_after(10):
        path = str(scratch / "control")
        async with controlling(path, backing, policy, mine(base, **chosen)) as control:
            control.make("guest", PAGES)
            yield control


async def convert(peer: Peer, offset: int, count: int, private: bool = False) -> Any:
    return await peer.do(
        "set-memory-attributes",
        file="/guest",
        offset=offset,
        count=count,
        private=private,
    )


async def attributes(peer: Peer) -> list[tuple[int, int, bool]]:
    rows = await peer.do("query-memory-attributes", file="/guest")
    return [(row["offset"], row["count"], row["private"]) for row in rows]


def shim_of(control: Control) -> InaccessibleFile:
    (found,) = [
        each for each in control.server.context.files.all() if each.name == "/guest"
    ]
    return found.file


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


# --- freezing -------------------------------------------------------------------------


async def test_a_freeze_ends_with_its_connection(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing, LiveUpdate) as control,
        control.peer() as other,
    ):
        async with control.peer() as peer:
            assert await peer.do("freeze", file="/guest") == {}
            info = await other.do("query-file", file="/guest")
            assert info["frozen"] is True
            for command in ("freeze", "unfreeze"):
                answer = await other.do(command, file="/guest")
                assert answer == "EPERM: another peer has frozen it"
            with pytest.raises(OSError, match="not permitted"):
                await fallocate(shim_of(control), 1, 0, PAGE, trio.Event())
        await control.peers_down_to(1)
        assert "frozen" not in await other.do("query-file", file="/guest")
        assert await other.do("unfreeze", file="/guest") == ("EINVAL: it is not frozen")
        assert await other.do("freeze", file="/guest") == {}
        assert await other.do("unfreeze", file="/guest") == {}


async def test_a_freeze_waits_for_what_runs_and_nothing_is_allocated_after_it(
    scratch: Path, backing: Backing
) -> None:
    """A call that passed its checks before the freeze, but waits, is refused, too."""
    async with (
        serving(scratch, backing, LiveUpdate) as control,
        control.peer() as peer,
    ):
        opened = control.server.context.files.open_path("/guest")
        file = opened.file
        outcomes: list[str] = []

        async def allocate() -> None:
            try:
                # An allocation of this size takes the file's turn.
                await fallocate(file, 1, 0, PAGE, trio.Event())
            except OSError as exc:
                outcomes.append(exc.strerror or "")

        async def freeze() -> None:
            await freezing.freeze(file, peer)
            outcomes.append("frozen")

        async with trio.open_nursery() as nursery:
            with file.turn.take():
                nursery.start_soon(freeze)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(allocate)
                await trio.testing.wait_all_tasks_blocked()
                assert "frozen" not in outcomes
        assert sorted(outcomes) == ["Operation not permitted", "frozen"]
        freezing.release(file, peer)
        opened.close()


async def test_a_punch_whose_start_was_sent_is_done_before_the_freeze(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing, LiveUpdate) as control,
        control.peer() as peer,
        control.peer() as other,
    ):
        opened = control.server.context.files.open_path("/guest")
        file = opened.file
        bound = {"file": "/guest", "start": 0, "end": PAGES}
        assert "notifier" in await peer.do("bind", **bound)
        outcomes: list[str] = []

        async def punch() -> None:
            await fallocate(file, PUNCH, 0, PAGE, trio.Event())
            outcomes.append("punched")

        async def freeze() -> None:
            assert await other.do("freeze", file="/guest") == {}
            outcomes.append("frozen")

        async with trio.open_nursery() as nursery:
            # It has to wait, so it is not executed inline.
            with file.turn.take():
                nursery.start_soon(punch)
                await trio.testing.wait_all_tasks_blocked()
            for _ in range(2):
                data = await peer.event()
                if not outcomes and file.frozen_by is None:
                    nursery.start_soon(freeze)
                    await trio.testing.wait_all_tasks_blocked()
                    assert outcomes == []
                await peer.acknowledge(data)
        assert outcomes == ["punched", "frozen"]
        opened.close()


# --- population -----------------------------------------------------------------------


async def test_populate_copies_from_shared_pages_of_a_named_file(
    scratch: Path, backing: Backing
) -> None:
    async with serving(scratch, backing) as control, control.peer() as peer:
        node = control.make("source", PAGES)
        fd = control.backing_fd(node)
        await peer.do("getfd", fd, fdname="source")
        os.pwrite(fd, b"image", 3 * PAGE)
        arguments = {"file": "/guest", "offset": 1, "source": "source"}
        arguments["source-offset"] = 3
        line = json.dumps(
            {"execute": "populate", "arguments": arguments | {"count": 2}}
        )
        # Pages of a source that are private cannot be read.
        refusal = (await peer.ask(line))["error"]
        assert refusal["desc"].startswith("EFAULT: page 3 of the source is private")
        assert refusal["offset"] == 3
        await peer.do(
            "set-memory-attributes", file="source", offset=3, count=1, private=False
        )
        # The second page is refused, and so only the first has been done.
        assert (await peer.ask(line))["return"] == {"count": 1}
        guest = os.open(f"/proc/self/fd/{shim_of(control).fd}", os.O_RDONLY)
        assert os.pread(guest, 5, PAGE) == b"image"
        os.close(guest)
        os.close(fd)


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "none"},
        {"source": "/guest"},
        {"source": ""},
        {"source": 3},
        {"source-offset": 1},
        {"source": "source", "source-offset": -1},
        {"source": "source", "source-offset": PAGES},
        {"count": 0},
        {"count": PAGES + 1},
        {"count": 1 << 50},
        {"offset": 2.5},
    ],
    ids=str,
)
async def test_bad_sources_are_one_clear_line(
    scratch: Path, backing: Backing, wrong: dict[str, Any]
) -> None:
    async with serving(scratch, backing) as control, control.peer() as peer:
        fd = control.backing_fd(control.make("source", PAGES))
        await peer.do("getfd", fd, fdname="source")
        os.close(fd)
        arguments = {"file": "/guest", "offset": 0, "count": 1} | wrong
        answer = await peer.do("populate", **arguments)
        assert answer.startswith(("EINVAL: ", "ENOENT: ", "EFAULT: ")), answer
        assert answer.isprintable()
        # A closed fdname does not exist.
        await peer.do("closefd", fdname="source")
        answer = await peer.do(
            "populate", file="/guest", offset=0, count=1, source="source"
        )
        assert answer.startswith("ENOENT: no fdname 'source'")


# --- shared windows and pins ----------------------------------------------------------


async def test_a_window_reads_and_writes_what_is_shared(
    scratch: Path, backing: Backing
) -> None:
    async with serving(scratch, backing) as control, control.peer() as peer:
        await convert(peer, 1, 1)
        data = b64encode(b"hello").decode()
        where = {"file": "/guest", "offset": PAGE + 7}
        assert await peer.do("write-shared", **where, data=data) == {}
        assert await peer.do("read-shared", **where, count=5) == {"data": data}
        refusal = await peer.ask(
            peer.line("read-shared", file="/guest", offset=2 * PAGE - 1, count=2)
        )
        assert refusal["error"]["offset"] == 2
        assert refusal["error"]["desc"] == "EFAULT: SIGBUS: page 2 is private"
        for wrong in ("?", "====", "", "aGVsbG8", "a b"):
            answer = await peer.do("write-shared", **where, data=wrong)
            assert answer.startswith("EINVAL: `data` is"), answer


async def test_pins_are_counted_listed_and_limited(
    scratch: Path, backing: Backing
) -> None:
    policy = Policy(limits=Limits(pages=3))
    async with (
        serving(scratch, backing, InPlaceNext, policy, initial="shared") as control,
        control.peer() as peer,
    ):
        found = await peer.do("pin-pages", file="/guest", offset=2, count=2)
        (row,) = (await peer.do("query-pins"))["references"]
        assert (row["offset"], row["count"], row["pinned"]) == (2, 2, True)
        answer = await peer.do("pin-pages", file="/guest", offset=0, count=2)
        assert answer.startswith("EDQUOT: ")
        assert (await convert(peer, 0, PAGES, True)).startswith("EAGAIN: page 2 ")
        parts = [{"pfn": one["pfn"], "count": one["count"]} for one in found["extents"]]
        assert await peer.do("unpin-pages", file="/guest", extents=parts) == {}
        answer = await peer.do("unpin-pages", file="/guest", pfn=BASE + 2)
        assert answer.startswith("EINVAL: ")
        assert await convert(peer, 0, PAGES, True) == {}


async def test_pins_and_references_have_one_limit_together(
    scratch: Path, backing: Backing
) -> None:
    policy = Policy(limits=Limits(pages=4))
    async with (
        serving(scratch, backing, policy=policy, initial="shared") as control,
        control.peer() as peer,
    ):
        await peer.do("bind", file="/guest", start=0, end=PAGES)
        place = {"file": "/guest", "offset": 0}
        assert "extents" in await peer.do("get-pfn", **place, count=2)
        answer = await peer.do("pin-pages", **place, count=3)
        assert answer.startswith("EDQUOT: 2 pages are got or pinned and 3 more")
        await peer.do("pin-pages", **place, count=2)
        for command in ("get-pfn", "pin-pages"):
            answer = await peer.do(command, **place)
            assert answer.startswith("EDQUOT: 4 pages are got or pinned"), command
        assert await peer.do("unpin-pages", file="/guest", pfn=BASE) == {}
        assert "pfn" in await peer.do("get-pfn", **place)
        assert await peer.do("put-pfn", file="/guest", pfn=BASE, count=2) == {}
        assert "extents" in await peer.do("pin-pages", **place, count=2)


async def test_pins_that_never_go_end_with_their_peer(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing, initial="shared") as control,
        control.peer() as peer,
    ):
        async with control.peer() as vfio:
            await vfio.do("pin-pages", file="/guest", offset=2)
            assert (await convert(peer, 0, PAGES, True)).startswith("EAGAIN: ")
        await control.peers_down_to(1)
        assert await convert(peer, 0, PAGES, True) == {}


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
