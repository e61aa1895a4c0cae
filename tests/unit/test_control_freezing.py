"""Freezes by the control socket: what they wait for, and when they end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.semantics import LiveUpdate
from inaccfs.shim import freezing
from inaccfs.syscalls import PUNCH
from tests.unit.control_conversions import PAGES, serving, shim_of
from tests.unit.control_fakes import PAGE
from tests.unit.fakes import fallocate

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing


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
