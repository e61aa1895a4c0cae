"""A slot's notifier: it unmaps the pages that the shim invalidates. Patch 8/8.

Each slot has one notifier. Its callbacks run in a thread of the client; the daemon
continues when a callback returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from inaccfs.kvm.invalidation import small_pages

if TYPE_CHECKING:
    from inaccfs.kvm.backing import BackingFile
    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.shim import ShimSemantics
    from inaccfs.kvm.uapi import Hook


class SlotNotifier:
    """struct inaccessible_notifier of a slot."""

    def __init__(
        self,
        slot: MemorySlot,
        backing: BackingFile,
        mmu: Mmu,
        semantics: ShimSemantics,
        hook: Hook,
    ) -> None:
        self._slot: Final = slot
        self._shift: Final = backing.shift
        self._mmu: Final = mmu
        self._in_bytes: Final = semantics.unit == "bytes"
        hooked = mmu.frames_lock is not None
        # Whether events list the frames that are removed; and whether an event with
        # only one kind always means a conversion to the other kind.
        self._reclaims: Final = hooked and semantics.tells_frames
        self._makes_shared: Final = (
            hooked
            and mmu.in_place
            and (semantics.conversion_kinds, semantics.kinds) == ("opposite", "both")
        )
        self._hook: Final = hook
        # The INVALIDATE_STARTs minus the INVALIDATE_ENDs so far. Only callbacks change
        # it, and the client runs one at a time; `close` reads it after the last one.
        self._begun = 0
        self._notifier: Final = backing.listen(
            semantics,
            slot.private_pgoff,
            slot.npages,
            invalidate=self._invalidate,
            start=self._start,
            end=self._end,
            with_frames=self._reclaims,
            # Where a file has both kinds of pages, an event says which it concerns.
            with_kinds=mmu.in_place,
            with_zaps=mmu.in_place,
        )

    @property
    def lost(self) -> bool:
        """Whether the daemon has ended, or has disconnected us for being slow."""
        return not self._notifier.registered

    def _gfns(self, start: int, end: int) -> tuple[int, int] | None:
        """The gfns of an event's range; None if it does not concern the slot."""
        return self._slot.gfns(
            *small_pages(start, end, self._shift, in_bytes=self._in_bytes)
        )

    def _invalidate(self, start: int, end: int, *more: Any) -> None:  # noqa: ANN401 - of the event
        """INVALIDATE, the only callback of v8: there the pages are removed already."""
        if (gfns := self._gfns(start, end)) is None:
            return
        try:
            self._hook("invalidate:begin", *gfns)
        finally:
            # Zap even if a hook raises: once this returns, the daemon relies on it.
            self._count()
            self._mmu.zap(*gfns, *self._what(more))
            self._reclaim(more)
        self._hook("invalidate:end", *gfns)

    def _start(self, start: int, end: int, *more: Any) -> None:  # noqa: ANN401 - as above
        """INVALIDATE_START: the pages stay until this returns."""
        if (gfns := self._gfns(start, end)) is None:
            return
        try:
            self._hook("invalidate:begin", *gfns)
        finally:
            self._count()
            kinds, zaps = self._what(more)
            self._begun += 1
            private = self._mmu.begin(*gfns, kinds, zaps)
            if self._makes_shared and kinds == "private":
                assert self._mmu.frames_lock is not None
                with self._mmu.frames_lock:
                    for run in private:
                        self._mmu.arch.make_shared(run.pfn, run.pages)

    def _end(self, start: int, end: int, *more: Any) -> None:  # noqa: ANN401 - as above
        if (gfns := self._gfns(start, end)) is None:
            return
        self._begun -= 1
        self._mmu.end()
        self._reclaim(more)
        self._hook("invalidate:end", *gfns)

    def _what(self, more: tuple[Any, ...]) -> tuple[str | None, tuple[int, int] | None]:
        """The kinds and the gfns to zap: a callback's last arguments, if in place.

        None means both kinds, and all gfns of the event.
        """
        if not (more and self._mmu.in_place):
            return None, None
        kinds, zaps = more[-2:]
        return kinds, zaps and (self._gfns(*zaps) or (0, 0))

    def _reclaim(self, more: tuple[Any, ...]) -> None:
        """Call the hook `reclaim` for the frames that an event lists as removed."""
        if self._reclaims and more:
            for extent in more[0]:
                self._mmu.arch.reclaim(extent.pfn, extent.count << self._shift)

    def _count(self) -> None:
        with self._mmu.lock:
            self._mmu.counters.invalidations += 1

    def close(self) -> None:
        """Unregister, and end the invalidations whose INVALIDATE_END will not come.

        Raises:
            BaseException: what a callback raised, because a hook did.
        """
        try:
            self._notifier.unregister()
        finally:
            # v9 and v10 also send ends without a start, so this can be below 0.
            while self._begun > 0:
                self._begun -= 1
                self._mmu.end()
