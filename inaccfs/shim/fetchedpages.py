"""The fetched pages of one file, and their removal."""

from __future__ import annotations

import errno
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.errors import PinnedError
from inaccfs.shim.call import Kind, PageRange
from inaccfs.shim.frames import Extent, Punched, in_pieces
from inaccfs.shim.locks import PageLocks
from inaccfs.shim.memory import Pinner
from inaccfs.shim.moved import Moved
from inaccfs.shim.order import Changed, in_order
from inaccfs.shim.poison import Poisoned
from inaccfs.shim.references import PAGES_A_STEP
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.semantics.attributes import Kinds
    from inaccfs.shim.attributes import Attributes
    from inaccfs.shim.call import Part
    from inaccfs.shim.memory import Holder, Memory
    from inaccfs.shim.notifiers import Notifiers
    from inaccfs.shim.order import Steps
    from inaccfs.shim.superblock import Superblock
    from inaccfs.shim.turn import Turn

_INLINE_MARKS: Final = 8192
"""How many references may be looked at in the trio loop when pages are punched."""


class FetchedPages:
    """The fetched pages of one file: see `inaccfs.shim.pages.Pages`."""

    __slots__ = (
        "_attributes",
        "_locks",
        "_notifiers",
        "_page_size",
        "_superblock",
        "_turn",
        "memory",
        "moved",
        "poisoned",
    )

    def __init__(
        self,
        superblock: Superblock,
        turn: Turn,
        notifiers: Notifiers,
        attributes: Attributes,
        changed: Callable[[], None],
    ) -> None:
        """*changed* is called after each change of `nothing_fetched`."""
        self._page_size: Final = superblock.page_size
        self._turn: Final = turn
        self._notifiers: Final = notifiers
        self._attributes: Final = attributes
        self._superblock: Final = superblock
        # The fetched pages; None until the first one is fetched.
        self.memory: Memory | None = None
        self.moved: Final = Moved(superblock, notifiers, self._kinds)
        # None where get-pfn leaves pages unlocked.
        self._locks: Final = (
            PageLocks(self._holders, superblock.ack_seconds, superblock.loop)
            if superblock.semantics.locks_pages
            else None
        )
        # The pages whose memory has failed, and that have not been punched since.
        self.poisoned: Final = Poisoned(superblock.page_size, changed)

    @property
    def nothing_fetched(self) -> bool:
        """Whether a punch need not look at references, frames or poison."""
        return not self.poisoned and (
            self.memory is None or not self.memory.frames.pages
        )

    def close(self) -> None:
        """Release the fetched pages. This may take long for gigabytes."""
        if self.memory is not None:
            self.memory.frames.close()

    def _holders(self, start: int, end: int) -> list[Holder]:
        """The holders that have locked some of these pages. A pin is not a lock."""
        found = [] if self.memory is None else self.memory.holders_of(start, end)
        return [one for one in found if not isinstance(one, Pinner)]

    def locked(self, start: int, end: int) -> AbstractAsyncContextManager[None]:
        """Lock these pages for a punch in an async with block, if the rules say so."""
        locks = self._locks
        return nullcontext() if locks is None else locks.locked(start, end)

    def _kinds(self, start: int, end: int) -> Kinds | None:
        return self._superblock.kinds(self._attributes, start, end)

    def are_few(self, start: int, end: int) -> bool:
        """Whether to punch these pages takes little time of the trio loop."""
        if self.memory is None:
            return True
        return (end - start) * self.memory.holders <= _INLINE_MARKS

    def steps(
        self, part: Part, kind: Kind, *, check: Callable[[], None] | None = None
    ) -> Steps:
        """The events and the change of one operation, in their order.

        *check* is that of `in_order`.
        """
        superblock = self._superblock
        punches = kind is Kind.PUNCH
        frames: Callable[[], list[Extent]] | None = None
        if superblock.semantics.tells_frames:
            frames = partial(self._extents_in, *part.whole) if punches else list
        settle = partial(self._settle, part.whole if punches else PageRange(0, 0))
        refusal = yield from in_order(
            superblock.plans[kind],
            *part.touched,
            frames,
            check=check,
            settle=settle,
            kinds=self._kinds,
        )
        yield from self.moved.steps()
        return refusal

    def _settle(self, whole: PageRange, changed: Changed) -> None:
        """Record the result of a change that was to punch the pages *whole*."""
        self.moved.note(changed.punched.moved)
        if changed.refusal is None:
            self.poisoned.heal(*whole)

    def _extents_in(self, start: int, end: int) -> list[Extent]:
        """The fetched ones of these pages."""
        return [] if self.memory is None else self.memory.extents_in(start, end)

    def first_referenced(
        self, start: int, end: int, *, pins_only: bool = False
    ) -> int | None:
        """The first of these pages that has a reference; or with *pins_only* a pin."""
        if self.memory is None:
            return None
        return self.memory.first_referenced(start, end, pins_only=pins_only)

    async def find_reference(
        self, start: int, end: int, *, pins_only: bool = False
    ) -> int | None:
        """As `first_referenced`; other tasks run meanwhile, and may put references."""
        if self.memory is None:
            return None
        slices = Slices(self._superblock.loop)
        for page in self.memory.look(start, end, pins_only=pins_only):
            if page is not None:
                return page
            await slices.give()
        return None

    def _check_unpinned(self, start: int, end: int) -> None:
        """Raise `OSError`, EAGAIN, where the rules refuse to punch referenced pages."""
        if self._superblock.semantics.pinned_punch == "done":
            return
        _refuse(self.first_referenced(start, end))

    def punch_now(self, start: int, end: int, punch: Callable[[], None]) -> Changed:
        """Call *punch*, which removes these pages and may clear parts of others."""
        if self.memory is None or start >= end:
            punch()
            return Changed()
        self._check_unpinned(start, end)
        punched = self.memory.frames.punch(start, end, punch)
        self.memory.record(punched)
        return Changed(punched)

    async def punch(self, start: int, end: int, punch: Callable[[], None]) -> Changed:
        """As `punch_now`, in a thread and in a turn of the file's."""
        memory = self.memory
        assert memory is not None
        with self._turn.take():
            if self._superblock.semantics.pinned_punch == "refused":
                _refuse(await self.find_reference(start, end))
            punched = await self._superblock.loop.in_thread(
                memory.frames.punch,
                start,
                end,
                punch,
                limiter=self._superblock.threads.changes,
            )
            # Record all of it, even if this task is cancelled, and before pages are
            # fetched again: these would be taken for the removed ones.
            with self._superblock.loop.shield():
                slices = Slices(self._superblock.loop)
                for piece in in_pieces(punched.removed, PAGES_A_STEP, self._page_size):
                    memory.record(Punched([piece], []))
                    await slices.give()
            memory.record(Punched([], punched.moved))
        return Changed(punched)


def _refuse(page: int | None) -> None:
    """Raise `OSError`, EAGAIN, if a page has references."""
    if page is not None:
        raise PinnedError(errno.EAGAIN, f"page {page} has references", page)
