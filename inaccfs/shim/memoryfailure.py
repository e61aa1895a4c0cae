"""Memory failures: restrictedmem_error_page() of v10, kvm_gmem_error_folio()."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from inaccfs.semantics.rules import MEMORY_ERROR
from inaccfs.shim.fetch import check_memory
from inaccfs.shim.moved import tell
from inaccfs.shim.notifiers import Notice
from inaccfs.shim.order import in_order
from inaccfs.shim.poison import POISON_PLAN

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.semantics.attributes import Kinds
    from inaccfs.shim.memory import Memory
    from inaccfs.shim.moved import Moved
    from inaccfs.shim.notifiers import Notifiers
    from inaccfs.shim.order import Steps
    from inaccfs.shim.poison import Poisoned
    from inaccfs.shim.superblock import Superblock
    from inaccfs.shim.turn import Turn


class MemoryFailures:
    """What `Pages.poison` does, for one file."""

    __slots__ = (
        *("_kinds", "_memory_of", "_moved", "_notifiers"),
        *("_poisoned", "_superblock", "_turn"),
    )

    def __init__(
        self,
        superblock: Superblock,
        turn: Turn,
        notifiers: Notifiers,
        moved: Moved,
        poisoned: Poisoned,
        memory_of: Callable[[int, int], Memory],
        kinds: Callable[[int, int], Kinds | None],
    ) -> None:
        """*memory_of* is the file's memory, or raises `OSError` past its end."""
        self._superblock: Final = superblock
        self._turn: Final = turn
        self._notifiers: Final = notifiers
        self._moved: Final = moved
        self._poisoned: Final = poisoned
        self._memory_of: Final = memory_of
        self._kinds: Final = kinds

    async def report(self, page: int) -> None:
        """See `Pages.poison`."""
        rule = self._superblock.semantics.memory_failure
        if rule == "unknown":
            raise OSError(
                errno.EOPNOTSUPP,
                "these semantics have no error callback (query-semantics)",
            )
        memory = await self._memory_there(page)
        self._poisoned.add(page)
        memory.poison(page)
        if rule == "error":
            await self._notifiers.announce(Notice(MEMORY_ERROR, page, page + 1))
        else:
            await tell(self._superblock, self._notifiers, self._steps(page))

    async def _memory_there(self, page: int) -> Memory:
        """The file's memory. Raises `OSError` if *page* has none and gets none."""
        while self._turn.taken and page not in self._turn.fetches:
            # A long operation may be about to remove or to allocate the page.
            await self._turn.wait()
        memory = self._memory_of(page, page + 1)
        if (
            page not in self._turn.fetches
            and memory.frames.known(page, page + 1) is None
        ):
            fd = memory.frames.fd
            await check_memory(self._superblock, self._turn, fd, page)
        return memory

    def _steps(self, page: int) -> Steps:
        yield from in_order(POISON_PLAN, page, page + 1, kinds=self._kinds)
        yield from self._moved.steps()
        return None
