"""Long answers of the control socket come in pages."""

from __future__ import annotations

import os
from typing import Any

import pytest

from inaccfs.client import requests
from inaccfs.client.core import Conversation
from inaccfs.control import messages, qmp
from tests.unit.control_calls import apart
from tests.unit.control_fakes import BASE, Control, Peer


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
