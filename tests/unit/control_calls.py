"""What tests of the control socket share: a fallocate(2), notified peers, frames."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.unit import fakes
from tests.unit.control_fakes import BASE, PAGE, Control, Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from inaccfs.fuse.nodes import Node


async def fallocate(control: Control, node: Node, mode: int, *pages: int) -> None:
    """A fallocate(2) as the channel does it; *pages* is (first, count)."""
    offset, length = (page * PAGE for page in pages)
    with control.namespace.opens.hold(node) as file:
        await fakes.fallocate(file, mode, offset, length, trio.Event())


@asynccontextmanager
async def notified(
    control: Control, count: int = 1
) -> AsyncIterator[tuple[Node, list[tuple[Peer, int]]]]:
    """A file of 8 pages, and *count* peers with a notifier each."""
    node = control.make("guest", 8)
    async with trio.open_nursery() as nursery:
        peers: list[tuple[Peer, int]] = []
        leave = trio.Event()

        async def one(task_status: trio.TaskStatus[tuple[Peer, int]]) -> None:
            async with control.peer() as peer:
                number = (await peer.do("register-notifier", file="/guest"))["notifier"]
                task_status.started((peer, number))
                await leave.wait()

        peers += [await nursery.start(one) for _ in range(count)]
        yield node, peers
        leave.set()


def apart(control: Control, pages: int, name: str = "guest") -> None:
    """A file whose frames are not contiguous: each page is an extent."""
    node = control.make(name, pages)
    assert node.file is not None or control.namespace.opens.open(node, os.O_RDWR)
    assert node.file is not None
    memory = node.file.pages.memory_of(0, 1)
    frames = memory.frames
    frames.at = {page: BASE + 7 * pages - 3 * page for page in range(pages)}  # type: ignore[attr-defined] # a fake
