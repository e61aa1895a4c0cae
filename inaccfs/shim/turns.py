"""Long work in the loop, in slices: other tasks get their turn in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from inaccfs.shim.loop import TRIO

if TYPE_CHECKING:
    from inaccfs.shim.loop import Loop

# The first slice of anything is short, for there may be many that begin at once. Of the
# others the loop does one in a turn; see `Loop.checkpoint`.
_FIRST_SECONDS: Final = 0.0003
_SLICE_SECONDS: Final = 0.002


class Turns:
    """Lets others have their turn once this task has run for a while."""

    __slots__ = ("_loop", "_until")

    def __init__(self, loop: Loop = TRIO) -> None:
        self._loop: Final = loop
        self._until = time.perf_counter() + _FIRST_SECONDS

    async def give(self) -> None:
        """Let others have their turn, if it is time. To be called often."""
        if time.perf_counter() > self._until:
            await self._loop.checkpoint()
            self._until = time.perf_counter() + _SLICE_SECONDS
