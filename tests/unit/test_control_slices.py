"""Long work comes in slices that let others go on; limits that all peers share."""

from __future__ import annotations

import gc
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.control import qmp
from inaccfs.control.limits import Limits, Policy
from inaccfs.shim.slices import Slices
from tests.unit.control_calls import apart
from tests.unit.control_fakes import PAGE, Control, Peer, controlling
from tests.unit.fakes import fallocate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from inaccfs.backing.root import Backing


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
