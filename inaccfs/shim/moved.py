"""Reports fetched pages that have moved: peers must unmap them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.shim.call import Kind
from inaccfs.shim.notifiers import Notice
from inaccfs.shim.order import drive, no_change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inaccfs.semantics.attributes import Kinds
    from inaccfs.shim.frames import Extent
    from inaccfs.shim.notifiers import Notifiers
    from inaccfs.shim.order import Steps
    from inaccfs.shim.superblock import Superblock


class Moved:
    """Pages of one file that have moved, and that no event has reported yet."""

    __slots__ = ("_kinds", "_noted", "_notifiers", "_superblock")

    def __init__(
        self,
        superblock: Superblock,
        notifiers: Notifiers,
        kinds: Callable[[int, int], Kinds | None],
    ) -> None:
        """*kinds* finds the kinds of some pages, where events carry them."""
        self._superblock: Final = superblock
        self._notifiers: Final = notifiers
        self._kinds: Final = kinds
        # The old frames of the pages.
        self._noted: list[Extent] = []

    def note(self, moved: Sequence[Extent]) -> None:
        """Report pages later: *moved* is where they were."""
        # If the rules let pages move, no event reports that.
        if self._notifiers and not self._superblock.semantics.movable:
            self._noted += moved

    async def tell(self, moved: Sequence[Extent]) -> None:
        """Report pages that have moved: peers must unmap them, as after a punch.

        If an invalidation is in progress, it will report them, and this does not wait:
        the caller may be a callback that the invalidation waits for.
        """
        self.note(moved)
        if self._noted and not self._notifiers.running:
            await tell(self._superblock, self._notifiers, self.steps())

    def steps(self) -> Steps:
        """Events for the noted pages, in ranges as large as possible.

        They are those of a punch.
        """
        plan = self._superblock.plans[Kind.PUNCH]
        tells_frames = self._superblock.semantics.tells_frames
        while self._noted:
            start, end, frames = self._next()
            shown = frames if tells_frames else None
            kinds = self._kinds(start, end)
            try:
                for event in (plan.before, plan.after):
                    if event is not None:
                        yield partial(Notice, event, start, end, shown, kinds)
            except GeneratorExit:
                # Report these next time: some notifiers may not have got the event.
                self._noted += frames
                raise
        return None

    def _next(self) -> tuple[int, int, list[Extent]]:
        """Remove the first range from the noted pages; return it and its pages."""
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


async def tell(superblock: Superblock, notifiers: Notifiers, steps: Steps) -> None:
    """Send events that report no change of the file.

    It continues even if the task is cancelled because the peer that began it has
    disconnected: by then others have got a start, and must get its end.
    """
    with superblock.loop.shield():
        await drive(steps, notifiers, no_change, whole_call=superblock.whole_call)
