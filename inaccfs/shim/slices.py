"""Long work in the loop, in slices: other tasks run in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from inaccfs.shim.loop import TRIO

if TYPE_CHECKING:
    from inaccfs.shim.loop import Loop

# The first slice of a task is short, because many tasks may begin at once. The loop
# runs one later slice in each of its rounds; see `Loop.checkpoint`.
_FIRST_SECONDS: Final = 0.0003
_SLICE_SECONDS: Final = 0.002


class Slices:
    """Lets other tasks run once this one has run for a while."""

    __slots__ = ("_loop", "_until")

    def __init__(self, loop: Loop = TRIO) -> None:
        self._loop: Final = loop
        self._until = time.perf_counter() + _FIRST_SECONDS

    async def give(self) -> None:
        """Let other tasks run, if it is time. Call it often."""
        if time.perf_counter() > self._until:
            await self._loop.checkpoint()
            self._until = time.perf_counter() + _SLICE_SECONDS
