"""Notifiers over the control socket, without a mount: events and their answers."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.control.limits import Policy
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.unit import fakes
from tests.unit.control_calls import fallocate, notified
from tests.unit.control_fakes import PAGE, Control, controlling

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing


@pytest.mark.parametrize(
    ("mode", "pages"), [(0, (0, 2)), (FALLOC_FL_KEEP_SIZE, (7, 2)), (PUNCH, (1, 3))]
)
async def test_every_fallocate_invalidates_after_the_backing_in_pages(
    control: Control, mode: int, pages: tuple[int, int]
) -> None:
    """inaccessible_fallocate() of v8, in pages as its pgoff_t says."""
    async with (
        notified(control) as (node, [(peer, number)]),
        trio.open_nursery() as nursery,
    ):
        before = os.fstat(node.fd).st_blocks
        nursery.start_soon(fallocate, control, node, mode, *pages)
        event = await peer.event()
        assert event == {
            "event": "INVALIDATE",
            "notifier": number,
            "start": pages[0],
            "end": sum(pages),
            "sequence": 1,
        }
        if mode != PUNCH:
            assert os.fstat(node.fd).st_blocks > before
        assert len(nursery.child_tasks) == 1
        await peer.acknowledge(event)


async def test_an_unaligned_allocation_invalidates_the_pages_that_it_touches(
    control: Control,
) -> None:
    async with notified(control) as (node, [(peer, _)]):
        assert node.file is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                fakes.fallocate, node.file, 0, PAGE - 1, PAGE + 2, trio.Event()
            )
            event = await peer.event()
            assert (event["start"], event["end"]) == (0, 3)
            await peer.acknowledge(event)


async def test_a_failed_fallocate_invalidates_and_a_refused_one_does_not(
    control: Control,
) -> None:
    """v8 calls the notifiers even if the backing fails."""
    async with notified(control) as (node, [(peer, _)]):
        errors: list[int | None] = []

        async def fail(offset: int, length: int, mode: int) -> None:
            assert node.file is not None
            try:
                await fakes.fallocate(node.file, mode, offset, length, trio.Event())
            except OSError as exc:
                errors.append(exc.errno)

        await fail(1, PAGE, PUNCH)
        assert errors == [errno.EINVAL]
        async with trio.open_nursery() as nursery:
            # More than the tmpfs of the tests can hold.
            nursery.start_soon(fail, 0, 100 << 20, 0)
            event = await peer.event()
            assert (event["start"], event["end"]) == (0, (100 << 20) // PAGE)
            assert event["sequence"] == 1
            await peer.acknowledge(event)
        assert errors == [errno.EINVAL, errno.ENOSPC]


async def test_all_peers_get_the_event_at_once(control: Control) -> None:
    async with notified(control, 3) as (node, peers), trio.open_nursery() as nursery:
        nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
        events = [await peer.event() for peer, _ in peers]
        assert len(nursery.child_tasks) == 1
        for (peer, _), event in zip(reversed(peers), reversed(events), strict=True):
            await peer.acknowledge(event)


async def test_everything_else_goes_on_while_a_punch_waits(control: Control) -> None:
    async with notified(control) as (node, [(peer, _)]):
        other = control.make("other", 1)
        async with trio.open_nursery() as nursery, control.peer() as witness:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            event = await peer.event()
            await fallocate(control, other, 0, 0, 1)
            assert (await witness.do("query-file", file="/guest"))["notifiers"] == 1
            assert (await witness.do("get-pfn", file="/guest", offset=0))["order"] == 0
            assert "pfn" in await peer.do("get-pfn", file="/guest", offset=5)
            (row,) = await witness.do("query-notifiers")
            assert (row["events_sent"], row["waiting"]) == (1, event["sequence"])
            await peer.acknowledge(event)


async def test_register_waits_for_the_end_of_an_invalidation(control: Control) -> None:
    async with notified(control) as (node, [(peer, _)]), control.peer() as late:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            event = await peer.event()
            await late.send(late.line("register-notifier", file="/guest") + "\n")
            # This is answered after the registration, in its turn.
            await late.send('{"execute": "query-version"}\n')
            await trio.testing.wait_all_tasks_blocked()
            assert node.file is not None
            assert len(node.file.notifiers) == 1
            rows = await peer.do("query-notifiers")
            assert [(row["start"], row["effective"]) for row in rows] == [
                (None, True),
                (None, False),
            ]
            await peer.acknowledge(event)
        assert "notifier" in (await late.answer())["return"]
        assert "qemu" in (await late.answer())["return"]
        assert all(row["effective"] for row in await peer.do("query-notifiers"))


async def test_a_notifier_that_leaves_gets_no_events(control: Control) -> None:
    async with notified(control, 2) as (node, [(peer, _), (leaving, number)]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            event, other = await peer.event(), await leaving.event()
            await leaving.acknowledge(other)
            command = leaving.line("unregister-notifier", notifier=number)
            await leaving.send(command + "\n")
            await trio.testing.wait_all_tasks_blocked()
            rows = await peer.do("query-notifiers")
            assert [row["effective"] for row in rows] == [True, False]
            await peer.acknowledge(event)
        assert (await leaving.answer())["return"] == {}


async def test_a_callback_can_unregister_its_own_notifier(control: Control) -> None:
    async with notified(control, 2) as (node, [(peer, number), (other, _)]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            await peer.event()
            await peer.send(peer.line("unregister-notifier", notifier=number) + "\n")
            await trio.testing.wait_all_tasks_blocked()
            await other.acknowledge(await other.event())
            assert (await peer.answer()) == {"return": {}}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            await other.acknowledge(await other.event())
        assert peer.events == []


async def test_an_answer_overtakes_a_command_that_waits_for_it(
    control: Control,
) -> None:
    async with (
        notified(control) as (node, [(peer, _)]),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
        event = await peer.event()
        await peer.send(peer.line("register-notifier", file="/guest") + "\n")
        await peer.acknowledge(event)
        assert "notifier" in (await peer.answer())["return"]


async def test_unexpected_answers_are_refused(control: Control) -> None:
    async with notified(control, 2) as (node, [(peer, number), (other, _)]):
        for sequence in (0, 1, 2**62):
            assert "EINVAL" in await peer.do(
                "invalidate-done", notifier=number, sequence=sequence
            )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            event, others = await peer.event(), await other.event()
            # A peer cannot see or unregister another's notifier.
            assert "ENOENT" in await peer.do(
                "invalidate-done", notifier=others["notifier"], sequence=1
            )
            assert "ENOENT" in await peer.do(
                "unregister-notifier", notifier=others["notifier"]
            )
            await peer.acknowledge(event)
            again = {"notifier": number, "sequence": event["sequence"]}
            assert "EINVAL" in str(await peer.do("invalidate-done", **again))
            await other.acknowledge(others)


async def test_a_peer_that_hangs_up_in_a_punch_delays_no_other(
    control: Control,
) -> None:
    async with notified(control) as (node, _), trio.open_nursery() as nursery:
        async with control.peer() as peer:
            await peer.do("register-notifier", file="/guest")
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            await peer.event()
        # The other peer still has to answer.
        await control.peers_down_to(1)
        assert node.file is not None
        assert len(node.file.notifiers) == 1
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_delays_no_other(control: Control) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("register-notifier", file="/guest")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            await peer.event()
            await peer.stream.send_eof()
        assert node.file is not None
        assert not node.file.notifiers


async def test_a_silent_peer_is_disconnected_and_the_punch_goes_on(
    scratch: Path, backing: Backing, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(ack_seconds=0.05)
    with trio.fail_after(60):
        async with (
            controlling(str(scratch / "control"), backing, policy) as control,
            notified(control) as (node, [(peer, number)]),
        ):
            await fallocate(control, node, PUNCH, 0, 1)
            assert (await peer.event())["notifier"] == number
            await peer.closed()
            await control.peers_down_to(0)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert f"no answer to an event of notifier {number}" in record.getMessage()
