"""Deadlines of peers: they count only time in which this process runs.

The process may be stopped (SIGSTOP, a frozen container, a suspended machine) for longer
than a peer may take. It cannot read meanwhile, so before it gives up on a peer it reads
what has arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PARTS: Final = 4
"""A timeout is counted in so many parts. If this process wakes from a part late by more
than its length, it was stopped, and the part does not count.
"""


async def in_time(seconds: float, wait: Callable[[], Awaitable[None]]) -> bool:
    """Await *wait*, which may be cancelled and called again; False after *seconds*.

    The event may have happened at the last moment: the caller must check once more.
    """
    part = seconds / PARTS
    left = seconds
    while left > 0:
        due = trio.current_time() + min(left, part)
        with trio.CancelScope(deadline=due):
            await wait()
            return True
        if trio.current_time() - due <= part:
            left -= min(left, part)
    await hear_out()
    return False


async def hear_out() -> None:
    """Let other tasks read messages that have arrived."""
    # In one round the trio loop finds that there is something to read; in the next it
    # runs the task that reads. The third is a reserve.
    for _ in range(3):
        await trio.lowlevel.checkpoint()
