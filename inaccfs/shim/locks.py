"""Page locks, for semantics whose get-pfn leaves pages locked until put-pfn.

lock_page() of the kernel: shmem of v5 and v6 returns from get_lock_pfn() with it held,
and a punch takes it before it reports a page and removes it.
"""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from inaccfs.shim.call import PageRange
from inaccfs.shim.loop import TRIO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from inaccfs.shim.loop import Loop
    from inaccfs.shim.memory import Holder


class PageLocks:
    """The locks of one file's pages. The holder of a reference to a page has its lock.

    No page has two: a get is refused for pages that are locked, or are about to be.
    """

    def __init__(
        self,
        holders: Callable[[int, int], list[Holder]],
        ack_seconds: float,
        loop: Loop = TRIO,
    ) -> None:
        """*holders* finds the holders of references to pages from a start to an end."""
        self._holders: Final = holders
        self._ack_seconds: Final = ack_seconds
        # Ranges that a task is about to lock, or has locked for a punch. Each has its
        # own key; the order is that of the claims.
        self._claims: Final[dict[object, PageRange]] = {}
        self._loop: Final = loop
        self._waiting: Final = loop.parking_lot()

    def unlocked(self) -> None:
        """Call this after references were put, or dropped with their holder."""
        self._waiting.unpark_all()

    def check(self, start: int, end: int) -> None:
        """Raise `OSError`, EAGAIN, if one of these pages is locked.

        The kernel would wait in lock_page(). A peer cannot: its own put-pfn would have
        to wait until this request was answered.
        """
        if self._is_claimed(start, end) or self._holders(start, end):
            raise OSError(
                errno.EAGAIN,
                f"of the pages {start} to {end} some are locked: try again",
            )

    @contextmanager
    def claimed(self, start: int, end: int) -> Iterator[None]:
        """Keep other peers from locking these checked pages, in a with block."""
        with self._claim(start, end):
            yield

    @asynccontextmanager
    async def locked(self, start: int, end: int) -> AsyncIterator[None]:
        """Lock these pages for a punch, in an async with block.

        Evicts holders that do not put their references in time.
        """
        with self._claim(start, end) as claim:
            # Each earlier claim has its own time limit. After them no new lock can
            # appear, as `check` refuses claimed pages.
            while self._is_claimed(start, end, claim):
                await self._waiting.park()

            async def wait_unlocked() -> None:
                while self._holders(start, end):
                    await self._waiting.park()

            while self._holders(start, end):
                if not await self._loop.in_time(self._ack_seconds, wait_unlocked):
                    for one in self._holders(start, end):
                        one.evict_holder()
            yield

    @contextmanager
    def _claim(self, start: int, end: int) -> Iterator[object]:
        claim = object()
        self._claims[claim] = PageRange(start, end)
        try:
            yield claim
        finally:
            del self._claims[claim]
            self._waiting.unpark_all()

    def _is_claimed(self, start: int, end: int, claim: object = None) -> bool:
        """Whether others have claims to these pages; only those before *claim*."""
        for other, (first, stop) in self._claims.items():
            if other is claim:
                return False
            if first < end and start < stop:
                return True
        return False
