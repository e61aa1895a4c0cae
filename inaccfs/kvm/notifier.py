"""What a slot does when the shim tells that pages go. Patch 8/8.

One notifier a slot. Its callbacks run in a thread of the client; when one returns, the
daemon goes on.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.uapi import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from inaccfs.kvm.backing import BackingFile
    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.mmu import Mmu
    from inaccfs.kvm.shim import ShimNotifier, ShimSemantics
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
        self._hook: Final = hook
        # How many INVALIDATE_STARTs have come without their ends. Changed by callbacks,
        # of which the client runs one at a time, and read when none runs any more.
        self._begun = 0
        self._notifier: Final[ShimNotifier] = self._register(backing, semantics)

    def _register(self, backing: BackingFile, semantics: ShimSemantics) -> ShimNotifier:
        register = backing.file.register_notifier
        if semantics.scope == "range":
            start, end = self._slot.file_pages(backing.shift)
            register = partial(backing.file.bind, start, end)
        # What was posted later has a callback for poisoned pages, too.
        error = self._invalidate if "MEMORY_ERROR" in semantics.events else None
        if "INVALIDATE_START" not in semantics.events:
            return register(self._invalidate, error=error)
        # And the event that comes once: where only poison is bracketed, for punches.
        return register(
            self._invalidate,
            invalidate_start=self._start,
            invalidate_end=self._end,
            error=error,
        )

    @property
    def lost(self) -> bool:
        """Whether the daemon has gone, or has disconnected us for being slow."""
        return not self._notifier.registered

    def _gfns(self, start: int, end: int) -> tuple[int, int] | None:
        """What the shim's numbers mean to the slot."""
        if self._in_bytes:
            start, end = start >> PAGE_SHIFT, -(-end // PAGE_SIZE)
        else:
            start, end = start << self._shift, end << self._shift
        return self._slot.gfns(start, end)

    def _invalidate(self, start: int, end: int) -> None:
        """The one callback of v8: the pages have gone already."""
        if (gfns := self._gfns(start, end)) is None:
            return
        try:
            self._hook("invalidate:begin", *gfns)
        finally:
            # Whatever a hook does: when this returns, the daemon counts on it.
            self._count()
            self._mmu.zap(*gfns)
        self._hook("invalidate:end", *gfns)

    def _start(self, start: int, end: int) -> None:
        """The pages are still there, and stay until this returns."""
        if (gfns := self._gfns(start, end)) is None:
            return
        try:
            self._hook("invalidate:begin", *gfns)
        finally:
            self._count()
            self._mmu.begin(*gfns)
            self._begun += 1

    def _end(self, start: int, end: int) -> None:
        if (gfns := self._gfns(start, end)) is None:
            return
        self._begun -= 1
        self._mmu.end()
        self._hook("invalidate:end", *gfns)

    def _count(self) -> None:
        with self._mmu.lock:
            self._mmu.counters.invalidations += 1

    def close(self) -> None:
        """Unregister. An invalidation whose end will not be sent any more ends here.

        Raises:
            BaseException: what a callback, so a hook, has raised.
        """
        try:
            self._notifier.unregister()
        finally:
            # v9 and v10 also have ends without a begin: then there are fewer than none.
            while self._begun > 0:
                self._begun -= 1
                self._mmu.end()
