"""What tests of the trio client share: a connection, and the daemon's end of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from inaccfs.client import aio
from tests.unit.client_fakes import PATIENCE, FakeDaemon, Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def connected(daemon: FakeDaemon) -> AsyncIterator[tuple[aio.Client, Peer]]:
    """A client, and the daemon's end of its connection."""
    with trio.fail_after(PATIENCE):
        async with aio.connect(daemon.path) as shim:
            yield shim, daemon.peer()


async def next_of(peer: Peer, kind: type[Any]) -> Any:
    """`Peer.next`, in a thread: the client's reader is a task of this one."""
    return await trio.to_thread.run_sync(peer.next, kind)


async def next_any(peer: Peer) -> Any:
    return await trio.to_thread.run_sync(peer.next_any)
