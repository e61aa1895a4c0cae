"""A file's turn: its long operations exclude each other, and other calls wait."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.shim.loop import Event, Loop


class Undoing(Protocol):
    """An interrupted allocation that still gives back the memory it took."""

    async def wait(self) -> None:
        """Wait until all of it has been given back. Any number of tasks may wait."""


class Turn:
    """The right to run a long operation on one file.

    Meanwhile a thread or another process holds the lock of the backing's inode, and a
    call in the loop that takes the same lock would stop the loop. Pages are not fetched
    meanwhile either, because they may be about to be removed.
    """

    __slots__ = ("_all", "_changed", "_idle", "_loop", "fetches", "undoing")

    def __init__(
        self, all_taken: set[Turn], changed: Callable[[], None], loop: Loop
    ) -> None:
        """*all_taken* collects the turns of the mount that are taken.

        *changed* is called when this turn is taken, and when it is free again.
        """
        self._all: Final = all_taken
        self._changed: Final = changed
        self._loop: Final = loop
        # Set when the turn is free again; None until it has been taken.
        self._idle: Event | None = None
        # The pages that the current operation fetches.
        self.fetches = range(0)
        # Set inside `take` by an interrupted allocation that has not given back its
        # memory. The turn stays taken until it has, and the file must not be looked at.
        self.undoing: Undoing | None = None

    @property
    def taken(self) -> bool:
        """Whether an operation has the turn."""
        return self in self._all

    @contextmanager
    def take(self, fetches: range = range(0)) -> Iterator[None]:
        """Take the turn, which must be free, for a with block.

        *fetches* are pages that the block fetches, and does not remove. If the block
        leaves something in `undoing`, the turn ends when that has ended.
        """
        self._idle = self._loop.event()
        self.fetches = fetches
        self._all.add(self)
        self._changed()
        try:
            yield
        finally:
            if self.undoing is None:
                self._end()

    def _end(self) -> None:
        self.fetches = range(0)
        self._all.discard(self)
        self._changed()
        assert self._idle is not None
        self._idle.set()

    async def wait(self) -> None:
        """Wait until the turn is free. Take it before the next await."""
        # Of several waiting tasks, the first to wake may take the turn again.
        while self.taken:
            if self.undoing is not None:
                await self.wait_undone()
            else:
                assert self._idle is not None
                await self._idle.wait()

    async def wait_unless(self, interrupted: Event) -> bool:
        """As `wait`; False if *interrupted* was set before the turn was free."""
        while self.taken:
            await self._loop.first_of(self.wait, interrupted.wait)
            if interrupted.is_set():
                return False
        return True

    async def wait_undone(self) -> None:
        """Wait until an interrupted allocation has given back its memory."""
        while (undoing := self.undoing) is not None:
            await undoing.wait()
            if self.undoing is undoing:
                self.undoing = None
                self._end()
