"""How long a peer may take: only time counts in which this process runs.

The process may be stopped (SIGSTOP, a frozen container, a suspended machine) for longer
than a peer may take. It cannot read meanwhile, so it reads what has arrived before it
gives a peer up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PARTS: Final = 4
"""A time is counted in so many parts. If this process wakes from one late by more than
its length it was stopped, and that part does not count.
"""


async def in_time(seconds: float, wait: Callable[[], Awaitable[None]]) -> bool:
    """Await *wait*, which may be cancelled and called anew; False after *seconds*.

    What was waited for may have happened just then: the caller must look once more.
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
    """Let other tasks read what has arrived."""
    # In one round the trio loop finds out that there is something to read, in the next
    # it runs the task that reads. The third is to spare.
    for _ in range(3):
        await trio.lowlevel.checkpoint()
