"""Fetched pages that are elsewhere now: as good as gone for who maps them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.shim.order import Notice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.semantics import Plan
    from inaccfs.shim.frames import Extent
    from inaccfs.shim.order import Steps


class Moved:
    """What has moved of one file, and is still to be told."""

    __slots__ = ("_noted", "_plan", "_tells_frames")

    def __init__(self, plan: Plan, *, tells_frames: bool) -> None:
        """It is told as a punch is, by *plan*."""
        self._plan: Final = plan
        self._tells_frames: Final = tells_frames
        # Where the pages had been.
        self._noted: list[Extent] = []

    def __bool__(self) -> bool:
        return bool(self._noted)

    def note(self, moved: Sequence[Extent]) -> None:
        """These have moved, from where they were as they are given."""
        self._noted += moved

    def steps(self) -> Steps:
        """Tell what has been noted, in ranges as large as they are."""
        while self._noted:
            start, end, frames = self._next()
            told = frames if self._tells_frames else None
            try:
                for event in (self._plan.before, self._plan.after):
                    if event is not None:
                        yield partial(Notice, event, start, end, told)
            except GeneratorExit:
                # For the next: some may not have been told.
                self._noted += frames
                raise
        return None

    def _next(self) -> tuple[int, int, list[Extent]]:
        """The first range, and what is in it; that is noted no more."""
        self._noted.sort()
        start = end = self._noted[0].offset
        taken = 0
        # One may have moved twice.
        for one in self._noted:
            if one.offset > end:
                break
            end = max(end, one.offset + one.count)
            taken += 1
        frames, self._noted = self._noted[:taken], self._noted[taken:]
        return start, end, frames
