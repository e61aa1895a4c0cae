"""Long answers come in pages, and long work in slices that let others go on."""

from __future__ import annotations

import gc
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from inaccfs.client import requests
from inaccfs.client.core import Conversation
from inaccfs.control import messages, qmp
from inaccfs.control.limits import Limits, Policy
from inaccfs.shim.slices import Slices
from tests.unit.control_fakes import BASE, PAGE, Control, Peer, controlling
from tests.unit.fakes import fallocate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from inaccfs.backing.root import Backing


def apart(control: Control, pages: int, name: str = "guest") -> None:
    """A file whose frames are not contiguous: each page is an extent."""
    node = control.make(name, pages)
    assert node.file is not None or control.namespace.opens.open(node, os.O_RDWR)
    assert node.file is not None
    memory = node.file.pages.memory_of(0, 1)
    frames = memory.frames
    frames.at = {page: BASE + 7 * pages - 3 * page for page in range(pages)}  # type: ignore[attr-defined] # a fake


async def pages_of(peer: Peer, command: str, **arguments: object) -> list[Any]:
    """All pages of a query."""
    found = []
    while True:
        answer = await peer.ask(peer.line(command, **arguments))
        value = answer["return"]
        found.append(value)
        following = answer.get("next") or (
            value.get("next") if isinstance(value, dict) else None
        )
        if following is None:
            return found
        arguments["start"] = following


# --- get-pfn and put-pfn --------------------------------------------------------------


async def test_get_pfn_takes_references_to_the_returned_pages_only(
    control: Control,
) -> None:
    apart(control, 2500)
    async with control.peer() as peer:
        (session,) = control.server.peers.values()
        got = await peer.do("get-pfn", file="/guest", offset=0, count=2500)
        assert len(got["extents"]) == 1000
        assert got["next"] == 1000
        assert session.page_room.used == 1000
        assert "EINVAL" in await peer.do("put-pfn", file="/guest", pfn=BASE + 1)
        rest = await peer.do("get-pfn", file="/guest", offset=1000, count=1500)
        last = await peer.do("get-pfn", file="/guest", offset=2000, count=500)
        assert rest["next"] == 2000
        assert "next" not in last
        assert session.page_room.used == 2500
        extents = [*got["extents"], *rest["extents"], *last["extents"]]
        assert [one["offset"] for one in extents] == list(range(2500))
        # Extents as they were returned, all or none.
        twice = [extents[0], extents[0]]
        assert "EINVAL" in await peer.do("put-pfn", file="/guest", extents=twice)
        for at in range(0, 2500, 500):
            part = extents[at : at + 500]
            assert await peer.do("put-pfn", file="/guest", extents=part) == {}
        assert session.page_room.used == 0
        assert "EINVAL" in await peer.do("put-pfn", file="/guest", extents=extents[:1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "neither"),
        ({"pfn": 1, "extents": [{"pfn": 1}]}, "without"),
        ({"count": 2, "extents": [{"pfn": 1}]}, "without"),
        ({"extents": []}, "EINVAL"),
    ],
)
async def test_put_pfn_takes_one_or_the_other(
    control: Control, arguments: dict[str, Any], said: str
) -> None:
    control.make("guest", 1)
    async with control.peer() as peer:
        reply = await peer.do("put-pfn", file="/guest", **arguments)
        assert "EINVAL" in reply
        assert said in reply


# --- queries --------------------------------------------------------------------------


async def test_pins_are_listed_once_each_for_any_page_size(
    control: Control,
) -> None:
    apart(control, 30, "a")
    apart(control, 3, "b")
    async with control.peer() as one, control.peer() as other:
        for peer, name, count in ((one, "/a", 30), (other, "/a", 5), (other, "/b", 3)):
            await peer.do("get-pfn", file=name, offset=0, count=count)
        (whole,) = await pages_of(one, "query-pins")
        assert len(whole["extents"]) == 33
        assert len(whole["references"]) == 38
        for limit in (1, 7, 30, 71):
            pages = await pages_of(one, "query-pins", limit=limit)
            for kind in ("extents", "references"):
                assert [row for page in pages for row in page[kind]] == whole[kind]
            sizes = [len(page["extents"]) + len(page["references"]) for page in pages]
            assert max(sizes) == min(limit, 71)
        for start in ("", "x", "1-2", "1-2-3-4-5", 7, "-1-0-0-0"):
            assert "EINVAL" in await one.do("query-pins", start=start)


async def test_a_row_that_stays_is_listed_once_while_others_change(
    control: Control,
) -> None:
    apart(control, 30, "a")
    apart(control, 30, "b")
    async with control.peer() as peer, control.peer() as other:
        await peer.do("get-pfn", file="/b", offset=0, count=30)
        await other.do("get-pfn", file="/a", offset=0, count=30)
        first = await peer.do("query-pins", limit=10)
        # Positions before it and after it.
        await other.do(
            "put-pfn",
            file="/a",
            extents=[{"pfn": BASE + 210 - 3 * at} for at in range(30)],
        )
        await peer.do("get-pfn", file="/b", offset=0, count=2)
        rest = await pages_of(peer, "query-pins", limit=10, start=first["next"])
        offsets = [
            (row["file"], row["offset"])
            for page in [first, *rest]
            for row in page["extents"]
        ]
        assert sorted(offsets) == sorted(
            (name, at) for name in ("/a", "/b") for at in range(30)
        )


async def test_files_and_notifiers_are_listed_in_order_of_their_numbers(
    control: Control,
) -> None:
    for name in "abcdefg":
        control.namespace.opens.open(control.make(name, 1), os.O_RDWR)
    async with control.peer() as peer, control.peer() as other:
        numbers = [
            (await each.do("register-notifier", file="/a"))["notifier"]
            for each in (peer, other, other, peer, peer)
        ]
        for command, key, count in (
            ("query-files", "ino", 7),
            ("query-notifiers", "notifier", 5),
        ):
            whole = await peer.do(command)
            assert len(whole) == count
            assert [row[key] for row in whole] == sorted(row[key] for row in whole)
            for limit in (1, 2, 4, 100):
                pages = await pages_of(peer, command, limit=limit)
                assert [row for page in pages for row in page] == whole
                assert all(len(page) <= limit for page in pages)
        assert numbers == [row["notifier"] for row in whole]
        await other.do("unregister-notifier", notifier=numbers[1])
        page = await peer.ask(peer.line("query-notifiers", limit=1, start=numbers[1]))
        assert page["return"][0]["notifier"] == page["next"] - 1 == numbers[2]
    assert "EINVAL" in (await _refused(control, '{"limit": 0}'))


async def _refused(control: Control, arguments: str) -> str:
    async with control.peer() as peer:
        line = f'{{"execute": "query-files", "arguments": {arguments}}}'
        desc: str = (await peer.ask(line))["error"]["desc"]
        return desc


async def test_a_page_has_a_thousand_rows_and_less_of_long_names(
    control: Control,
) -> None:
    apart(control, 1500)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0, count=1000)
        pages = await pages_of(peer, "query-pins", limit=1_000_000)
        sizes = [len(page["extents"]) + len(page["references"]) for page in pages]
        assert sizes == [1000, 1000, 500]
        node = control.namespace.find(b"/guest")
        parent = node.parent
        assert parent is not None
        node.name = b"x" * 10_000
        pages = await pages_of(peer, "query-pins")
        assert len(pages) > 90
        assert sum(len(page["extents"]) for page in pages) == 1500
        node.name = b"guest"


# --- the client fetches all pages -----------------------------------------------------


class Daemon:
    """The other end of a conversation, which answers from a list of pages."""

    def __init__(self) -> None:
        self.conversation = Conversation("/run/socket")
        self.asked: list[dict[str, Any]] = []

    def answer(self, value: object, following: int | None = None) -> None:
        for outgoing in self.conversation.take_outgoing():
            command, number = qmp.decode_request(outgoing.data)
            self.asked.append({"command": command, "id": number})
        self.conversation.feed(
            qmp.encode_return(value, self.asked[-1]["id"], following)
        )

    @property
    def last(self) -> messages.Command:
        command: messages.Command = self.asked[-1]["command"]
        return command


def extent(offset: int) -> messages.Extent:
    return messages.Extent(offset, 70 + 2 * offset, 1, 0)


def test_a_client_asks_for_the_next_page_until_there_is_none() -> None:
    daemon = Daemon()
    call = daemon.conversation.start(requests.get_pfns("/a", 3, 7))
    daemon.answer(messages.Frames(extents=[extent(3), extent(4)], next=5))
    assert not call.done
    daemon.answer(messages.Frames(extents=[extent(5)], next=6))
    assert daemon.last == messages.GetPfn(file="/a", offset=5, count=5)
    daemon.answer(messages.Frames(extents=[extent(6)]))
    assert daemon.last == messages.GetPfn(file="/a", offset=6, count=4)
    assert call.result() == [extent(at) for at in (3, 4, 5, 6)]


def test_a_client_puts_pages_it_got_before_a_refusal() -> None:
    daemon = Daemon()
    call = daemon.conversation.start(requests.get_pfns("/a", 0, 7))
    daemon.answer(messages.Frames(extents=[extent(0), extent(1)], next=2))
    (asked,) = daemon.conversation.take_outgoing()
    _, number = qmp.decode_request(asked.data)
    daemon.conversation.feed(
        qmp.encode_error("GenericError", "ENOSPC: no space", number)
    )
    with pytest.raises(OSError, match="no space"):
        call.result()
    (put,) = daemon.conversation.take_outgoing()
    command, _ = qmp.decode_request(put.data)
    assert command == messages.PutPfn(
        file="/a", extents=[messages.PutExtent(pfn=70), messages.PutExtent(pfn=72)]
    )


def test_a_client_gives_back_all_pages_of_an_abandoned_command() -> None:
    daemon = Daemon()
    call = daemon.conversation.start(requests.get_pfns("/a", 0, 7))
    daemon.answer(messages.Frames(extents=[extent(0)], next=1))
    daemon.conversation.abandon(call)
    daemon.answer(messages.Frames(extents=[extent(1)], next=2))
    (put,) = daemon.conversation.take_outgoing()
    command, _ = qmp.decode_request(put.data)
    assert isinstance(command, messages.PutPfn)
    assert [one.pfn for one in command.extents or []] == [70, 72]


def test_a_page_has_the_start_of_the_next() -> None:
    daemon = Daemon()
    query = messages.QueryNotifiers(limit=1)
    call = daemon.conversation.start(requests.execute(query, None))
    daemon.answer([], 5)
    assert call.result() == []
    assert call.result().next == 5


# --- slices and limits ----------------------------------------------------------------


class Longest(trio.abc.Instrument):
    """How long a step of any task took at most, in CPU time of the thread."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.name = ""
        self._began = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        seconds = time.thread_time() - self._began
        if seconds > self.seconds:
            self.seconds, self.name = seconds, task.name


@asynccontextmanager
async def slices() -> AsyncIterator[None]:
    """More than 20 ms of work at once would delay all callers."""
    longest = Longest()
    # The garbage collector would look at all objects of pytest here.
    gc.disable()
    trio.lowlevel.add_instrument(longest)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(longest)
        gc.enable()
    assert longest.seconds < 0.02, longest.name


async def test_queries_of_many_peers_keep_no_caller_waiting(control: Control) -> None:
    apart(control, 20_000)
    async with control.peer() as peer:
        for start in range(0, 20_000, 1000):
            await peer.do("get-pfn", file="/guest", offset=start, count=1000)
        lines = [
            peer.line(command)
            for command in ("query-pins", "query-qmp-schema", "query-files")
        ]
        await peer.ask(lines[1])
        async with slices():
            await peer.send("".join(lines * 30))
            for _ in range(90):
                await peer.answer()
    async with slices():
        await control.peers_down_to(0)


@pytest.mark.parametrize("text", ["{}", "x\n"])
async def test_much_data_with_an_fd_keeps_no_caller_waiting(
    scratch: Path, backing: Backing, text: str
) -> None:
    """All of it is parsed before any command is executed."""
    # Room for all replies: this test is not about slow readers.
    policy = Policy(Limits(output=16 << 20), ack_seconds=60)
    with trio.fail_after(60):
        async with (
            controlling(str(scratch / "control"), backing, policy) as control,
            control.peer() as peer,
        ):
            async with slices():
                await peer.send(text * 22_000 + "\n", 0)
                for _ in range(22_000):
                    await peer.receive()
            assert "return" in await peer.ask(peer.line("query-stats"))


async def test_a_late_reader_gets_all_refusals(control: Control) -> None:
    async with control.peer() as peer:
        await peer.send("x\n" * 22_000, 0)
        await trio.testing.wait_all_tasks_blocked(0.01)
        for _ in range(22_000):
            assert "error" in await peer.receive()


async def test_of_long_work_one_slice_is_done_in_a_turn_of_the_loop() -> None:
    slices_done: list[int] = []
    busy = [True]

    async def work(number: int) -> None:
        slices = Slices()
        for _ in range(4):
            until = time.perf_counter() + 0.003
            while time.perf_counter() < until:
                pass
            await slices.give()
            slices_done.append(number)
        busy[0] = number < 3

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(work, number)
        while busy[0]:
            before = len(slices_done)
            await trio.lowlevel.checkpoint()
            assert len(slices_done) - before <= 1
    assert len(slices_done) == 16


async def test_events_to_many_notifiers_are_sent_in_slices(control: Control) -> None:
    node = control.make("guest", 4)
    control.namespace.opens.open(node, os.O_RDWR)
    assert node.file is not None
    async with control.peer() as peer:
        count = 1000
        for _ in range(count):
            await peer.send(peer.line("register-notifier", file="/guest"))
        for _ in range(count):
            await peer.answer()

        async def answer_all() -> None:
            answered = 0
            while answered < count:
                data = (await peer.receive()).get("data")
                if data is not None:
                    answered += 1
                    done = {key: data[key] for key in ("notifier", "sequence")}
                    await peer.send(peer.line("invalidate-done", **done))

        async with slices(), trio.open_nursery() as nursery:
            nursery.start_soon(answer_all)
            await fallocate(node.file, 3, 0, PAGE, trio.Event())
        assert not node.file.notifiers.running


async def test_no_notifier_answers_an_event_that_it_did_not_get(
    control: Control,
) -> None:
    node = control.make("guest", 4)
    control.namespace.opens.open(node, os.O_RDWR)
    assert node.file is not None
    async with control.peer() as peer:
        number = (await peer.do("register-notifier", file="/guest"))["notifier"]
        # As between the slices of a long list, before this one's turn.
        node.file.notifiers._expect(list(node.file.notifiers), lambda: None)
        for sequence in (0, 1):
            assert "EINVAL" in await peer.do(
                "invalidate-done", notifier=number, sequence=sequence
            )
        (row,) = await peer.do("query-notifiers")
        # Whoever asks which notifiers have answered must not take it for one of these.
        assert (row["events_sent"], row["waiting"]) == (0, 1)


@asynccontextmanager
async def limited(
    scratch: Path, backing: Backing, **limits: int
) -> AsyncIterator[Control]:
    policy = Policy(Limits(**limits), ack_seconds=5)
    with trio.fail_after(60):
        async with controlling(str(scratch / "control"), backing, policy) as control:
            yield control


async def test_notifiers_have_a_limit_in_sum(scratch: Path, backing: Backing) -> None:
    async with limited(scratch, backing, total_notifiers=3) as control:
        control.make("guest", 1)
        async with control.peer() as peer:
            async with control.peer() as other:
                for each in (peer, peer, other):
                    await each.do("register-notifier", file="/guest")
                for each in (peer, other):
                    said = await each.do("register-notifier", file="/guest")
                    assert "EDQUOT" in said
                    assert "total_notifiers" in said
            await control.peers_down_to(1)
            assert "notifier" in await peer.do("register-notifier", file="/guest")


async def test_replies_have_a_limit_in_sum(scratch: Path, backing: Backing) -> None:
    """Peers that have read everything are still answered."""
    async with (
        limited(scratch, backing, total_output=200_000) as control,
        control.peer() as witness,
    ):
        peers = []
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                peer = await nursery.start(_connected, control)
                peers.append(peer)
                nursery.start_soon(peer.send, '{"execute": "query-qmp-schema"}\n' * 40)
            await trio.testing.wait_all_tasks_blocked()
            one = len(qmp.encode_return(_schema(), qmp.NO_ID))
            assert control.server.parts.backlog.bytes <= 200_000 + 9 * one
            assert "qemu" in await witness.do("query-version")
            for peer in peers:
                for _ in range(40):
                    assert "return" in await peer.answer()
            assert control.server.parts.backlog.bytes == 0
            nursery.cancel_scope.cancel()


def _schema() -> object:
    from inaccfs.control import queries

    return queries.schema()


async def _connected(
    control: Control, *, task_status: trio.TaskStatus[Peer] = trio.TASK_STATUS_IGNORED
) -> None:
    async with control.peer() as peer:
        task_status.started(peer)
        await trio.sleep_forever()


async def test_events_beyond_it_cost_the_one_that_reads_least(
    scratch: Path, backing: Backing, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        limited(scratch, backing, total_output=100_000) as control,
        control.peer() as peer,
        control.peer(),
    ):
        first, second = control.server.peers
        event = b"x" * 1000 + b"\n"
        for _ in range(1000):
            second.outlet.send(event)
            if second.reason:
                break
        assert second.reason
        assert not first.reason
        assert control.server.parts.backlog.bytes == 0
        assert "qemu" in await peer.do("query-version")
    assert "leave too much unread" in caplog.text
