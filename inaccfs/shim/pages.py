"""The fetched pages of one file: get-pfn and put-pfn."""

from __future__ import annotations

import errno
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.shim.fetch import (
    INLINE_FETCH_BYTES,
    allocated_with,
    check_end,
    fetch,
    fetch_now,
)
from inaccfs.shim.frameoptions import FRAME_BYTES
from inaccfs.shim.frames import Extent, Fetched, Punched, in_pieces
from inaccfs.shim.locks import PageLocks
from inaccfs.shim.memory import Memory, Pinner
from inaccfs.shim.moved import Moved
from inaccfs.shim.poison import Poisoned
from inaccfs.shim.references import PAGES_A_STEP
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inaccfs.shim.attributes import Attributes
    from inaccfs.shim.memory import Holder
    from inaccfs.shim.notifiers import Notifiers
    from inaccfs.shim.superblock import Superblock
    from inaccfs.shim.trace import FileTrace
    from inaccfs.shim.turn import Turn

_GET_NOW_PAGES: Final = 1024
"""How many pages `get_now` gets at most: each may be an extent."""


class Pages:
    """The fetched pages of a file, and the rules for them. Numbers are pages.

    Methods raise `OSError` with the errno and the words for the peer.
    """

    __slots__ = (
        "_attributes",
        "_changed",
        "_fd",
        "_is_frozen",
        "_locks",
        "_notifiers",
        "_page_size",
        "_superblock",
        "_trace",
        "_turn",
        "abandoned",
        "memory",
        "moved",
        "poisoned",
    )

    def __init__(
        self,
        superblock: Superblock,
        fd: int,
        trace: FileTrace,
        turn: Turn,
        notifiers: Notifiers,
        attributes: Attributes,
        changed: Callable[[], None],
        is_frozen: Callable[[], bool],
    ) -> None:
        """*changed* is called after each change of `nothing_fetched`.

        *is_frozen* returns whether no hole may be filled: see `inaccfs.shim.freezing`.
        """
        self._page_size: Final = superblock.page_size
        self._turn: Final = turn
        self._notifiers: Final = notifiers
        self._attributes: Final = attributes
        self._superblock: Final = superblock
        self._fd = fd
        self._trace: Final = trace
        self._changed: Final = changed
        self._is_frozen: Final = is_frozen
        # Whether all users have closed the file. Then get-pfn fails.
        self.abandoned = False
        # The fetched pages; None until the first one is fetched.
        self.memory: Memory | None = None
        kinds = partial(superblock.kinds, attributes)
        self.moved: Final = Moved(superblock, notifiers, kinds)
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

    @property
    def _guarded(self) -> bool:
        """Whether get-pfn may be refused for some pages."""
        return self._superblock.guards_pages or bool(self.poisoned)

    def check_open(self) -> None:
        """Raise `OSError`, EFAULT, if all users have closed the file."""
        if self.abandoned:
            raise OSError(errno.EFAULT, "the file has been closed by all its users")

    def reopened(self, fd: int) -> None:
        """Use another fd of the same backing file from now on."""
        self._fd = fd
        if self.memory is not None:
            self.memory.frames.fd = fd

    def close(self) -> None:
        """Release the fetched pages. This may take long for gigabytes."""
        if self.memory is not None:
            self.memory.frames.close()

    # --- looking ------------------------------------------------------------------

    def extents_in(self, start: int, end: int) -> list[Extent]:
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

    def _holders(self, start: int, end: int) -> list[Holder]:
        """The holders that have locked some of these pages. A pin is not a lock."""
        found = [] if self.memory is None else self.memory.holders_of(start, end)
        return [one for one in found if not isinstance(one, Pinner)]

    def locked(self, start: int, end: int) -> AbstractAsyncContextManager[None]:
        """Lock these pages for a punch in an async with block, if the rules say so."""
        locks = self._locks
        return nullcontext() if locks is None else locks.locked(start, end)

    # --- getting and putting -------------------------------------------------------

    async def get(
        self, holder: Holder, start: int, end: int, most: int | None = None
    ) -> Fetched:
        """inaccessible_get_pfn() of v8 for pages from *start* to *end*.

        It allocates, as SGP_WRITE does. Returns the first *most* extents of the pages,
        and pages that have moved, which the caller passes to `moved.tell`. *holder*
        gets a reference to each page that is returned.

        Raises:
            OSError: EINVAL past the end, where v8 would allocate; ENOSPC, ENOMEM;
                EOPNOTSUPP if the mount has no frames; EHWPOISON; and depending on the
                rules ENOENT for a hole, an errno for an unbound page, EAGAIN for a
                locked page, EPERM for a hole of a frozen file, and EFAULT if all users
                have closed the file.
        """
        while (got := self.get_now(holder, start, end, most)) is None:
            if self._must_wait:
                await self._notifiers.idle()
                continue
            if not self._turn.taken:
                return await self._get_long(holder, start, end, most)
            await self._turn.wait()
        return got

    async def _get_long(
        self, holder: Holder, start: int, end: int, most: int | None
    ) -> Fetched:
        """As `get`, in a turn of the file and in a thread. `get_now` has checked."""
        memory = self.memory_of(start, end)
        locks = self._locks
        claim = nullcontext() if locks is None else locks.claimed(start, end)
        with self._turn.take(fetches=range(start, end)), claim:
            frozen = self._is_frozen()
            extents, moved = await fetch(
                self._superblock, memory, start, end, frozen=frozen
            )
            memory.record(Punched([], moved))
            # Other tasks may have unbound or poisoned pages meanwhile.
            if (refusal := self._refusal(holder, start, end)) is None:
                extents = self._cut(extents)[:most]
                # No page is punched meanwhile, because the turn is taken. The
                # references must be complete, so continue even if the task is
                # cancelled.
                slices = Slices(self._superblock.loop)
                with self._superblock.loop.shield():
                    for piece in in_pieces(extents, PAGES_A_STEP, self._page_size):
                        memory.get(holder, [piece])
                        await slices.give()
        if refusal is not None:
            await self.moved.tell(moved)
            raise refusal
        return Fetched(extents, moved)

    def get_now(
        self, holder: Holder, start: int, end: int, most: int | None = None
    ) -> Fetched | None:
        """As `get`, at once; None if it would block the trio loop for too long."""
        self.check_open()
        if self._guarded:
            if (refusal := self._refusal(holder, start, end)) is not None:
                raise refusal
            if self._must_wait:
                return None
            if self._locks is not None:
                self._locks.check(start, end)
        if end - start > _GET_NOW_PAGES:
            return None
        if self.memory is not None:
            known = self.memory.frames.known(start, end)
            if known is not None and not self._looked_for_references:
                return Fetched(self._got(self.memory, holder, known, most), [])
        superblock = self._superblock
        if self._turn.taken or (end - start) * self._page_size > INLINE_FETCH_BYTES:
            return None
        memory = self.memory_of(start, end)
        low, high = allocated_with(superblock, memory.frames, start, end)
        if not superblock.headroom.allows((high - low) * self._page_size):
            return None
        try:
            extents, moved = fetch_now(
                superblock, memory, start, end, frozen=self._is_frozen()
            )
        except OSError as exc:
            if exc.errno == errno.ENOSPC and superblock.frees is not None:
                return None
            raise
        # Do this in this order, and before another task runs, which may punch the pages
        # that were fetched here: first forget the old frames of moved pages.
        memory.record(Punched([], moved))
        return Fetched(self._got(memory, holder, extents, most), moved)

    def _got(
        self, memory: Memory, holder: Holder, extents: list[Extent], most: int | None
    ) -> list[Extent]:
        """Give *holder* references to the first *most* extents, and return these."""
        extents = self._cut(extents)
        if most is not None and len(extents) > most:
            extents = extents[:most]
        memory.get(holder, extents)
        return extents

    def _cut(self, extents: list[Extent]) -> list[Extent]:
        """*extents*, cut at poisoned pages and where attributes differ, for a peer."""
        superblock = self._superblock
        extents = self.poisoned.split(extents)
        if not superblock.converts and superblock.granule_pages == 1:
            return extents
        per_page = self._page_size // FRAME_BYTES
        return self._attributes.cut(extents, superblock.granule_pages, per_page)

    @property
    def _must_wait(self) -> bool:
        """Whether get-pfn has to wait for a punch or a conversion."""
        return self._superblock.semantics.get_waits and self._notifiers.running

    @property
    def _looked_for_references(self) -> bool:
        """Whether a punch in a thread may rely on pages to have no references."""
        return self._turn.taken and self._superblock.semantics.pinned_punch == "refused"

    def _refusal(self, holder: Holder, start: int, end: int) -> OSError | None:
        """The error of get-pfn for these pages; None if it may proceed."""
        rules = self._superblock.semantics
        if (
            rules.by_range
            # A user's mapping needs no binding.
            and not isinstance(holder, Pinner)
            and not self._notifiers.cover(start, end)
        ):
            return OSError(
                rules.unbound_errno,
                f"nobody is bound to all of the pages {start} to {end}: bind first",
            )
        return self.poisoned.refusal(start, end)

    def memory_of(self, start: int, end: int) -> Memory:
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
            OSError: EINVAL if *holder* lacks a reference to one of them; EOPNOTSUPP if
                the rules have no references.
        """
        self._putting(holder).put(holder, pfn, count)

    async def put_all(self, holder: Holder, extents: Sequence[tuple[int, int]]) -> None:
        """As `put` for each (pfn, count) of *extents*, of which there may be many.

        *holder* must not get pages meanwhile. Raises the same as `put`; then nothing
        has been put.
        """
        slices = Slices(self._superblock.loop)
        for _ in self._putting(holder).put_all(holder, extents):
            await slices.give()

    def _putting(self, holder: Holder) -> Memory:
        """The memory whose references *holder* puts. Raises the same as `put`."""
        rules = self._superblock.semantics
        if not rules.keeps_references and not isinstance(holder, Pinner):
            raise OSError(
                errno.EOPNOTSUPP,
                "these semantics give no references: what has been got is good until "
                "it is invalidated",
            )
        if self.memory is None:
            raise OSError(errno.EINVAL, "nothing of this file has been fetched")
        return self.memory
