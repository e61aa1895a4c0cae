"""Long work in the loop, in slices: other tasks get their turn in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from inaccfs.shim.loop import TRIO

if TYPE_CHECKING:
    from inaccfs.shim.loop import Loop

# A request waits for one slice at most, or two; less than 20 ms in any case.
_SLICE_SECONDS: Final = 0.002


class Turns:
    """Lets others have their turn once this task has run for a while."""

    __slots__ = ("_loop", "_until")

    def __init__(self, loop: Loop = TRIO) -> None:
        self._loop: Final = loop
        self._until = time.perf_counter() + _SLICE_SECONDS

    async def give(self) -> None:
        """Let others have their turn, if it is time. To be called often."""
        if time.perf_counter() > self._until:
            await self._loop.checkpoint()
            self._until = time.perf_counter() + _SLICE_SECONDS
