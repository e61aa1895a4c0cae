"""Page frames over the control socket, without a mount."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
import trio

from inaccfs.fuse.nodes import let_go
from inaccfs.shim.slices import Slices
from inaccfs.syscalls import PUNCH
from tests.unit.control_calls import fallocate, notified
from tests.unit.control_fakes import BASE, PAGE, Control

if TYPE_CHECKING:
    from inaccfs.backing.root import Backing


async def test_a_page_has_a_frame_and_an_order(control: Control) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        got = await peer.do("get-pfn", file="/guest", offset=3)
        assert got == {"pfn": BASE + 3, "order": 0}
        assert os.fstat(node.fd).st_blocks * 512 == PAGE
        got = await peer.do("get-pfn", file="/guest", offset=2, count=4)
        assert got == {
            "extents": [{"offset": 2, "pfn": BASE + 2, "count": 4, "order": 0}]
        }
        info = await peer.do("query-file", file="/guest")
        assert (info["fetched"], info["referenced"], info["allocated"]) == (4, 5, 4)


async def test_past_the_end_is_refused_where_the_seed_would_allocate(
    control: Control,
) -> None:
    control.make("guest", 4)
    async with control.peer() as peer:
        said = await peer.do("get-pfn", file="/guest", offset=7)
        assert said == "EINVAL: offset 7 lies past the end (4 pages)"
        said = await peer.do("get-pfn", file="/guest", offset=2, count=3)
        assert said == "EINVAL: offset 4 lies past the end (4 pages)"
        assert (await peer.do("query-file", file="/guest"))["referenced"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"offset": -1},
        {"offset": 2**63},
        {"offset": 2**51},
        {"offset": 0, "count": 0},
        {"offset": 0, "count": -1},
        {"offset": "0"},
        {"offset": 1.5},
        {"offset": None},
        {},
        {"offset": 0, "page": 1},
    ],
    ids=str,
)
async def test_a_wrong_argument_is_einval(
    control: Control, arguments: dict[str, object]
) -> None:
    control.make("guest", 4)
    async with control.peer() as peer:
        assert "EINVAL" in await peer.do("get-pfn", file="/guest", **arguments)
    await control.still_serves()


async def test_a_page_can_be_put_as_often_as_it_was_got(
    control: Control,
) -> None:
    control.make("guest", 8)
    async with control.peer() as peer, control.peer() as other:
        for _ in range(2):
            await peer.do("get-pfn", file="/guest", offset=1, count=3)
        assert "EINVAL" in await other.do("put-pfn", file="/guest", pfn=BASE + 1)
        assert "EINVAL" in await peer.do(
            "put-pfn", file="/guest", pfn=BASE + 1, count=4
        )
        assert await peer.do("put-pfn", file="/guest", pfn=BASE + 1, count=3) == {}
        assert await peer.do("put-pfn", file="/guest", pfn=BASE + 2) == {}
        assert "EINVAL" in await peer.do("put-pfn", file="/guest", pfn=BASE + 2)
        (first, last) = (await peer.do("query-pins"))["references"]
        assert (first["pfn"], first["references"]) == (BASE + 1, 1)
        assert (last["pfn"], last["punched"]) == (BASE + 3, False)
        for pfn in (BASE + 1, BASE + 3):
            assert await peer.do("put-pfn", file="/guest", pfn=pfn) == {}
        pins = await peer.do("query-pins")
        assert pins["references"] == []
        # The pages stay in their frames all the same.
        assert [extent["count"] for extent in pins["extents"]] == [3]
        stats = await peer.do("query-stats")
        assert (stats["pages_got"], stats["pages_put"]) == (6, 6)


async def test_a_punched_page_is_listed_until_it_is_put(control: Control) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0, count=4)
        await fallocate(control, node, PUNCH, 1, 2)
        pins = await peer.do("query-pins")
        assert [(one["offset"], one["count"]) for one in pins["extents"]] == [
            (0, 1),
            (3, 1),
        ]
        punched = [one for one in pins["references"] if one["punched"]]
        assert [(one["offset"], one["count"]) for one in punched] == [(1, 2)]
        frames = control.frames.opened[0]
        assert frames.freed == []
        await peer.do("put-pfn", file="/guest", pfn=BASE + 1, count=2)
        assert frames.freed == [(BASE + 1, 2)]


async def test_a_punched_page_without_references_is_free_at_once(
    control: Control,
) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0)
        await peer.do("put-pfn", file="/guest", pfn=BASE)
        await fallocate(control, node, PUNCH, 0, 1)
        assert control.frames.opened[0].freed == [(BASE, 1)]


async def test_pages_that_move_in_a_punch_are_invalidated_like_punched_ones(
    control: Control,
) -> None:
    async with notified(control) as (node, [(peer, _)]):
        await peer.do("get-pfn", file="/guest", offset=0, count=8)
        control.frames.opened[0].moves = {6: 77, 7: 78}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 2)
            for start, end in ((0, 2), (6, 8)):
                event = await peer.event()
                assert (event["start"], event["end"]) == (start, end)
                await peer.acknowledge(event)
        assert (await peer.do("get-pfn", file="/guest", offset=6))["pfn"] == 77
        stats = await peer.do("query-stats")
        assert (stats["pages_moved"], stats["punches"]) == (2, 1)


async def test_pages_found_moved_in_a_callback_are_reported_after_it(
    control: Control,
) -> None:
    """get-pfn in a callback does not wait for the invalidation that waits for it."""
    async with notified(control, 2) as (node, [(peer, _), (other, _)]):
        await peer.do("get-pfn", file="/guest", offset=0, count=6)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            first = await peer.event()
            # Two runs of frames, and one range of pages.
            control.frames.opened[0].moves = {3: 77, 4: 99}
            assert "pfn" in await peer.do("get-pfn", file="/guest", offset=7)
            await other.acknowledge(await other.event())
            await peer.acknowledge(first)
            for one in (peer, other):
                event = await one.event()
                assert (event["start"], event["end"]) == (3, 5)
                await one.acknowledge(event)


async def test_pages_found_moved_are_reported_before_the_reply(
    control: Control,
) -> None:
    async with notified(control) as (_, [(other, _)]), control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0, count=6)
        control.frames.opened[0].moves = {3: 77}
        await peer.send(peer.line("get-pfn", file="/guest", offset=7) + "\n")
        event = await other.event()
        assert (event["start"], event["end"]) == (3, 4)
        await other.acknowledge(event)
        assert "pfn" in (await peer.answer())["return"]


async def test_fetched_pages_are_freed_when_the_file_is_removed_in_the_backing(
    control: Control, backing: Backing
) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0)
        await peer.do("put-pfn", file="/guest", pfn=BASE)
    await control.peers_down_to(0)
    os.unlink("guest", dir_fd=backing.root)
    control.namespace.opens.release(node)
    control.namespace.inodes.forget(node.ino, node.lookups)
    assert control.frames.opened[0].closed
    assert node.ino not in control.namespace.inodes.nodes


async def test_fetched_pages_stay_while_another_name_leads_to_them(
    control: Control, backing: Backing
) -> None:
    node = control.make("guest", 8)
    os.link("guest", "other", src_dir_fd=backing.root, dst_dir_fd=backing.root)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0)
    await control.peers_down_to(0)
    control.namespace.unlink(control.namespace.inodes.root, b"guest")
    control.namespace.opens.release(node)
    control.namespace.inodes.forget(node.ino, node.lookups)
    assert not control.frames.opened[0].closed
    async with control.peer() as peer:
        assert (await peer.do("get-pfn", file="/other", offset=0))["pfn"] == BASE


async def test_fetched_pages_stay_when_the_file_is_closed_and_forgotten(
    control: Control,
) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0)
        await peer.do("put-pfn", file="/guest", pfn=BASE)
        control.namespace.opens.release(node)
        control.namespace.inodes.forget(node.ino, node.lookups)
        assert node.opens == 0
        (info,) = await peer.do("query-files")
        assert (info["name"], info["fetched"]) == ("/guest", 1)
        assert not control.frames.opened[0].closed
        # The kernel looks it up, unlinks it and forgets it.
        control.namespace.lookup(control.namespace.inodes.root, b"guest")
        control.namespace.unlink(control.namespace.inodes.root, b"guest")
        control.namespace.inodes.forget(node.ino, 1)
        assert control.frames.opened[0].closed
        assert await peer.do("query-files") == []


async def test_files_without_an_fd_are_listed_and_stay_without(
    control: Control,
) -> None:
    """Their fds were closed because fds ran out; the query opens the files briefly."""
    nodes = [control.make(f"f{number}", number) for number in range(3)]
    for node in nodes:
        control.namespace.opens.open(node, os.O_RDWR)
        let_go(node)
    async with control.peer() as peer:
        found = await peer.do("query-files")
    listed = {one["name"]: (one["size"], one["opens"]) for one in found}
    assert listed == {f"/f{number}": (number * PAGE, 2) for number in range(3)}
    assert {node.fd for node in nodes} == {-1}


async def test_a_file_that_is_closed_while_files_are_listed_is_not_listed(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks run between two files of a long list."""
    nodes = [control.make(f"f{number}") for number in range(2)]
    kept, closed = sorted(nodes, key=lambda node: node.ino)
    turns = itertools.count()

    async def give(_: Slices) -> None:
        # Both have been seen, and the first has been described.
        if next(turns) == len(nodes):
            control.namespace.opens.release(closed)

    monkeypatch.setattr(Slices, "give", give)
    async with control.peer() as peer:
        (info,) = await peer.do("query-files")
    assert info["ino"] == kept.ino


async def test_a_notifier_that_leaves_while_notifiers_are_listed_is_not_listed(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks run between two notifiers of a long list."""
    async with (
        notified(control) as (_, [(_, kept)]),
        control.peer() as leaving,
        control.peer() as witness,
    ):
        await leaving.do("register-notifier", file="/guest")
        server, turns = control.server, itertools.count()
        ((_, session),) = list(server.peers.items())[-2:-1]

        async def give(slices: Slices) -> None:
            # Both have been seen, and the first has been described.
            if next(turns) == 2:
                await session._notifying.close(slices)

        monkeypatch.setattr(Slices, "give", give)
        (row,) = await witness.do("query-notifiers")
    assert row["notifier"] == kept


async def test_a_reference_keeps_an_unlinked_file(control: Control) -> None:
    node = control.make("guest", 8)
    fd = control.backing_fd(node)
    async with control.peer() as peer:
        await peer.do("getfd", fd, fdname="a")
        await peer.do("get-pfn", file="a", offset=0)
        await peer.do("closefd", fdname="a")
        control.namespace.unlink(control.namespace.inodes.root, b"guest")
        control.namespace.opens.release(node)
        control.namespace.inodes.forget(node.ino, node.lookups)
        (info,) = await peer.do("query-files")
        assert info["name"] == f"(deleted inode {node.ino})"
    await control.peers_down_to(0)
    assert control.frames.opened[0].closed
    os.close(fd)


async def test_get_memory_is_the_memory(control: Control) -> None:
    node = control.make("guest", 2)
    async with control.peer() as peer:
        assert await peer.do("get-memory", file="/guest") == {}
        (fd,) = peer.fds
        os.pwrite(fd, b"secret", PAGE)
        assert os.pread(node.fd, 6, PAGE) == b"secret"
        os.close(fd)


async def test_memory_failure_needs_an_error_callback(control: Control) -> None:
    control.make("guest", 2)
    async with control.peer() as peer:
        said = await peer.do("memory-failure", file="/guest", offset=0)
        assert "EOPNOTSUPP" in said
        rules = await peer.do("query-semantics")
        assert (rules["name"], rules["events"]) == ("v8", ["INVALIDATE"])
        assert (rules["order"], rules["notifies_failures"]) == ("after", True)


@pytest.mark.parametrize("flags", [0x2, 0x4, 0x10, 0x8 | 0x4])
async def test_memfd_create_refuses_flags_as_the_seed_does(
    control: Control, flags: int
) -> None:
    async with control.peer() as peer:
        said = await peer.do("memfd-create", name="x", fdname="a", flags=flags)
        assert "EINVAL" in said
