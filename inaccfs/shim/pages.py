"""The pages of one file: how they are got, put, punched and poisoned."""

from __future__ import annotations

import errno
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.semantics.rules import MEMORY_ERROR
from inaccfs.shim.call import Kind
from inaccfs.shim.fetch import (
    INLINE_FETCH_BYTES,
    check_end,
    check_memory,
    fetch,
    fetch_now,
)
from inaccfs.shim.frames import Extent, Fetched, Punched, in_pieces
from inaccfs.shim.locks import PageLocks
from inaccfs.shim.memory import Memory
from inaccfs.shim.moved import Moved, tell
from inaccfs.shim.notifiers import Notice
from inaccfs.shim.order import Changed, in_order
from inaccfs.shim.poison import POISON_PLAN, Poisoned
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inaccfs.shim.call import Part
    from inaccfs.shim.memory import Holder
    from inaccfs.shim.notifiers import Notifiers
    from inaccfs.shim.order import Steps
    from inaccfs.shim.superblock import Superblock
    from inaccfs.shim.trace import FileTrace
    from inaccfs.shim.turn import Turn

_GET_NOW_PAGES: Final = 1024
"""How many pages `get_now` gets at most: each may be an extent."""

_PAGES_A_STEP: Final = 512
"""For how many pages references are counted in one step: each may have its own."""

_INLINE_MARKS: Final = 8192
"""How many references may be looked at in the trio loop when pages are punched."""


class Pages:
    """What has been fetched of a file, and the rules for it. Numbers are pages.

    Methods raise `OSError` with the errno and the words for the peer.
    """

    __slots__ = (
        "_changed",
        "_fd",
        "_locks",
        "_moved",
        "_notifiers",
        "_page_size",
        "_poisoned",
        "_superblock",
        "_trace",
        "_turn",
        "memory",
    )

    def __init__(
        self,
        superblock: Superblock,
        fd: int,
        trace: FileTrace,
        turn: Turn,
        notifiers: Notifiers,
        changed: Callable[[], None],
    ) -> None:
        """*changed* is called after each change of `nothing_fetched`."""
        self._fd = fd
        self._page_size: Final = superblock.page_size
        self._trace: Final = trace
        self._turn: Final = turn
        self._notifiers: Final = notifiers
        self._changed: Final = changed
        self._superblock: Final = superblock
        # What has been fetched; None until something is.
        self.memory: Memory | None = None
        self._moved: Final = Moved(superblock, notifiers)
        # None where get-pfn leaves pages unlocked.
        self._locks: Final = (
            PageLocks(self._holders, superblock.ack_seconds, superblock.loop)
            if superblock.semantics.locks_pages
            else None
        )
        # The pages that `poison` was called for and that have not been punched since.
        self._poisoned: Final = Poisoned(superblock.page_size, changed)

    @property
    def nothing_fetched(self) -> bool:
        """Whether a punch need not look at references, frames or poison."""
        return not self._poisoned and (
            self.memory is None or not self.memory.frames.pages
        )

    @property
    def poisoned_count(self) -> int:
        """How many pages are poisoned and have not been punched."""
        return len(self._poisoned)

    def poisoned(self, start: int, end: int) -> list[int]:
        """The poisoned pages from *start* to *end*, in order."""
        return self._poisoned.within(start, end)

    @property
    def _guarded(self) -> bool:
        """Whether some pages may be refused to a holder that asks for them."""
        return self._superblock.guards_pages or bool(self._poisoned)

    def reopened(self, fd: int) -> None:
        """Use another fd of the same backing file from now on."""
        self._fd = fd
        if self.memory is not None:
            self.memory.frames.fd = fd

    def close(self) -> None:
        """Let go of what was fetched. May take long for gigabytes."""
        if self.memory is not None:
            self.memory.frames.close()

    # --- getting and putting -------------------------------------------------------

    async def get(
        self, holder: Holder, start: int, end: int, most: int | None = None
    ) -> Fetched:
        """inaccessible_get_pfn() of v8 for pages from *start* to *end*.

        Allocates, as SGP_WRITE does. Returns where the pages are, the first *most*
        extents of that, and which had moved: `tell_moved` is for those. *holder* gets a
        reference to each page that is returned.

        Raises:
            OSError: EINVAL past the end, where v8 would allocate; ENOSPC, ENOMEM;
                EOPNOTSUPP where there are no frames to get; EHWPOISON; and as the rules
                have it ENOENT for a hole, an errno for an unbound page, and EAGAIN for
                one that is locked.
        """
        while (got := self.get_now(holder, start, end, most)) is None:
            if not self._turn.taken:
                return await self._get_long(holder, start, end, most)
            await self._turn.wait()
        return got

    async def _get_long(
        self, holder: Holder, start: int, end: int, most: int | None
    ) -> Fetched:
        """As `get`, in a turn of the file's and in a thread. `get_now` has checked."""
        memory = self._memory_of(start, end)
        locks = self._locks
        claim = nullcontext() if locks is None else locks.claimed(start, end)
        with self._turn.take(fetches=range(start, end)), claim:
            extents, moved = await fetch(self._superblock, memory, start, end)
            memory.record(Punched([], moved))
            # Others may have unbound or poisoned pages meanwhile.
            if (refusal := self._refusal(start, end)) is None:
                extents = self._poisoned.split(extents)[:most]
                # Nothing is punched meanwhile, for the turn is taken. The references
                # must be complete, so this goes on if the task is cancelled.
                slices = Slices(self._superblock.loop)
                with self._superblock.loop.shield():
                    for piece in in_pieces(extents, _PAGES_A_STEP, self._page_size):
                        memory.get(holder, [piece])
                        await slices.give()
        if refusal is not None:
            await self.tell_moved(moved)
            raise refusal
        return Fetched(extents, moved)

    def get_now(
        self, holder: Holder, start: int, end: int, most: int | None = None
    ) -> Fetched | None:
        """As `get`, at once; None if it would keep the trio loop for too long."""
        if self._guarded:
            if (refusal := self._refusal(start, end)) is not None:
                raise refusal
            if self._locks is not None:
                self._locks.check(start, end)
        if end - start > _GET_NOW_PAGES:
            return None
        if self.memory is not None:
            known = self.memory.frames.known(start, end)
            if known is not None:
                return Fetched(self._got(self.memory, holder, known, most), [])
        length = (end - start) * self._page_size
        if (
            self._turn.taken
            or length > INLINE_FETCH_BYTES
            or not self._superblock.headroom.allows(length)
        ):
            return None
        memory = self._memory_of(start, end)
        try:
            extents, moved = fetch_now(self._superblock, memory, start, end)
        except OSError as exc:
            if exc.errno == errno.ENOSPC and self._superblock.frees is not None:
                return None
            raise
        # In this order, and before any other task runs: first drop what is known of the
        # pages that have moved. The next task may punch what has been fetched here.
        memory.record(Punched([], moved))
        return Fetched(self._got(memory, holder, extents, most), moved)

    def _got(
        self, memory: Memory, holder: Holder, extents: list[Extent], most: int | None
    ) -> list[Extent]:
        """Give *holder* references to the first *most* extents, and return these."""
        extents = self._poisoned.split(extents)
        if most is not None and len(extents) > most:
            extents = extents[:most]
        memory.get(holder, extents)
        return extents

    def _refusal(self, start: int, end: int) -> OSError | None:
        """Why no frame may be got of one of these pages, if none may."""
        rules = self._superblock.semantics
        if rules.scope == "range" and not self._notifiers.cover(start, end):
            return OSError(
                rules.unbound_errno,
                f"nobody is bound to all of the pages {start} to {end}: bind first",
            )
        return self._poisoned.refusal(start, end)

    def _holders(self, start: int, end: int) -> list[Holder]:
        return [] if self.memory is None else self.memory.holders_of(start, end)

    def locked(self, start: int, end: int) -> AbstractAsyncContextManager[None]:
        """Have these pages locked for a punch, where the rules lock pages."""
        locks = self._locks
        return nullcontext() if locks is None else locks.locked(start, end)

    def _memory_of(self, start: int, end: int) -> Memory:
        """The memory of the file, if it has the pages from *start* to *end*."""
        check_end(self._fd, self._page_size, start, end)
        if self.memory is None:
            if self._superblock.frames is None:
                raise OSError(errno.EOPNOTSUPP, "this mount has no page frames")
            self.memory = Memory(
                self._superblock.frames,
                self._fd,
                self._page_size,
                self._trace,
                self._changed,
                None if self._locks is None else self._locks.unlocked,
                keeps_references=self._superblock.semantics.keeps_references,
            )
        return self.memory

    def put(self, holder: Holder, pfn: int, count: int) -> None:
        """inaccessible_put_pfn() of v8 for *count* pages from frame *pfn*.

        Raises:
            OSError: EINVAL when *holder* has no reference to one of them; EOPNOTSUPP
                where there are none.
        """
        self._putting().put(holder, pfn, count)

    async def put_all(self, holder: Holder, extents: Sequence[tuple[int, int]]) -> None:
        """As `put` for each (pfn, count) of *extents*, of which there may be many.

        *holder* must not get pages meanwhile. Raises what `put` does; then nothing has
        been put.
        """
        slices = Slices(self._superblock.loop)
        for _ in self._putting().put_all(holder, extents):
            await slices.give()

    def _putting(self) -> Memory:
        """The memory whose references are put. Raises what `put` does."""
        if not self._superblock.semantics.keeps_references:
            raise OSError(
                errno.EOPNOTSUPP,
                "these semantics give no references: what has been got is good until "
                "it is invalidated",
            )
        if self.memory is None:
            raise OSError(errno.EINVAL, "nothing of this file has been fetched")
        return self.memory

    def are_few(self, start: int, end: int) -> bool:
        """Whether to punch these pages takes little time of the trio loop."""
        if self.memory is None:
            return True
        return (end - start) * self.memory.holders <= _INLINE_MARKS

    # --- punching ------------------------------------------------------------------

    def steps(self, part: Part, kind: Kind) -> Steps:
        """The events and the change of one operation, in their order."""
        superblock = self._superblock
        punches = kind is Kind.PUNCH
        frames: Callable[[], list[Extent]] | None = None
        if superblock.semantics.tells_frames:
            frames = partial(self._extents_in, *part.whole) if punches else list
        settle = partial(self._settle, part.whole if punches else (0, 0))
        refusal = yield from in_order(
            superblock.plans[kind], *part.touched, frames, settle=settle
        )
        yield from self._moved.steps()
        return refusal

    def _settle(self, whole: tuple[int, int], changed: Changed) -> None:
        """Note the result of a change: *whole* are the pages that it was to punch."""
        self._moved.note(changed.punched.moved)
        if changed.refusal is None:
            self._poisoned.heal(*whole)

    def _extents_in(self, start: int, end: int) -> list[Extent]:
        """What has been fetched of these pages."""
        return [] if self.memory is None else self.memory.extents_in(start, end)

    def punch_now(self, start: int, end: int, punch: Callable[[], None]) -> Changed:
        """Call *punch*, which removes these pages and may clear parts of others."""
        if self.memory is None or start >= end:
            punch()
            return Changed()
        punched = self.memory.frames.punch(start, end, punch)
        self.memory.record(punched)
        return Changed(punched)

    async def punch(self, start: int, end: int, punch: Callable[[], None]) -> Changed:
        """As `punch_now`, in a thread and in a turn of the file's."""
        memory = self.memory
        assert memory is not None
        with self._turn.take():
            punched = await self._superblock.loop.in_thread(
                memory.frames.punch,
                start,
                end,
                punch,
                limiter=self._superblock.threads.changes,
            )
            # Record all of it, even if this task is cancelled; and before anything is
            # fetched again, which would be taken for the pages that were removed.
            with self._superblock.loop.shield():
                slices = Slices(self._superblock.loop)
                for piece in in_pieces(punched.removed, _PAGES_A_STEP, self._page_size):
                    memory.record(Punched([piece], []))
                    await slices.give()
            memory.record(Punched([], punched.moved))
        return Changed(punched)

    async def tell_moved(self, moved: Sequence[Extent]) -> None:
        """See `Moved.tell`."""
        await self._moved.tell(moved)

    # --- poison --------------------------------------------------------------------

    async def poison(self, page: int) -> None:
        """Report that a page is poisoned. Until it is punched nobody gets it.

        restrictedmem_error_page() of v10, kvm_gmem_error_folio() of guest_memfd.

        Raises:
            OSError: EOPNOTSUPP in semantics that know nothing of it; EINVAL past the
                end; ENXIO for a hole; EHWPOISON if it is poisoned already: no event is
                sent again.
        """
        rule = self._superblock.semantics.memory_failure
        if rule == "unknown":
            raise OSError(
                errno.EOPNOTSUPP,
                "these semantics have no error callback (query-semantics)",
            )
        await self._check_there(page)
        self._poisoned.add(page)
        assert self.memory is not None
        self.memory.poison(page)
        if rule == "error":
            await self._notifiers.announce(Notice(MEMORY_ERROR, page, page + 1))
        else:
            await tell(self._superblock, self._notifiers, self._poison_steps(page))

    async def _check_there(self, page: int) -> None:
        """Raise `OSError` unless *page* has memory, or gets it just now."""
        while self._turn.taken and page not in self._turn.fetches:
            # A long operation may be about to remove or to allocate it.
            await self._turn.wait()
        memory = self._memory_of(page, page + 1)
        if (
            page in self._turn.fetches
            or memory.frames.known(page, page + 1) is not None
        ):
            return
        await check_memory(self._superblock, self._turn, self._fd, page)

    def _poison_steps(self, page: int) -> Steps:
        yield from in_order(POISON_PLAN, page, page + 1)
        yield from self._moved.steps()
        return None
