"""The pages that one peer has got and not put: get-pfn and put-pfn."""

from __future__ import annotations

import errno
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from inaccfs.control import messages
from inaccfs.control.messages import Command, Nothing
from inaccfs.control.paging import MOST_ROWS
from inaccfs.control.registration import as_messages
from inaccfs.shim.references import PAGES_A_STEP

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.control.caller import Caller
    from inaccfs.control.context import Context
    from inaccfs.control.fdnames import FdNames
    from inaccfs.control.mountfiles import OpenFile
    from inaccfs.control.outlet import Outbound
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.frames import Extent
    from inaccfs.shim.memory import Holder
    from inaccfs.shim.slices import Slices


class PageHolder:
    """A peer as the shim knows it: see shim.memory.Holder."""

    __slots__ = ("_ack_seconds", "_outlet", "who")

    def __init__(self, caller: Caller, outlet: Outbound, ack_seconds: float) -> None:
        self.who: Final = caller.number
        self._outlet: Final = outlet
        self._ack_seconds: Final = ack_seconds

    def evict_holder(self) -> None:
        """Disconnect the peer, which keeps pages locked that others wait for."""
        self._outlet.evict(
            "it does not put pages",
            f"keeps pages locked for more than {self._ack_seconds:g} s",
        )


class PageRoom:
    """How many references and pins a peer has, in pages, and how many it may have."""

    __slots__ = ("_limit", "used")

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        # The sum of `References.total` over the peer's files. It is stored, because
        # every get-pfn needs it and there may be many files.
        self.used = 0

    def check(self, count: int) -> None:
        """Raise `OSError`, EDQUOT, unless there is room for *count* more."""
        if self.used + count > self._limit:
            raise OSError(
                errno.EDQUOT,
                f"{self.used} pages are got or pinned and {count} more would be over "
                f"{self._limit} (--limit pages=N): put or unpin some",
            )


class PageReferences:
    """The references of one peer. Commands raise `OSError`, for the peer."""

    def __init__(
        self,
        context: Context,
        names: FdNames,
        holder: Holder,
        room: PageRoom,
        *,
        keeps: bool,
    ) -> None:
        """*keeps* says whether *holder* gets references, which it has to put."""
        self._context: Final = context
        self._names: Final = names
        self._holder: Final = holder
        self._room: Final = room
        self._keeps: Final = keeps
        # The files whose pages the peer has references to. They stay open.
        self._files: Final[dict[InaccessibleFile, OpenFile]] = {}

    def handlers(self) -> dict[type[Command], Callable[[Any], Any]]:
        """The handler of each command."""
        return {messages.GetPfn: self._get_pfn, messages.PutPfn: self._put_pfn}

    async def close(self, slices: Slices) -> None:
        """Drop the peer's references. It has disconnected."""
        while self._files:
            file, opened = self._files.popitem()
            with closing(opened):
                assert file.pages.memory is not None
                for _ in file.pages.memory.drop(self._holder):
                    await slices.give()

    # --- get-pfn -------------------------------------------------------------------

    def _get_pfn(self, command: messages.GetPfn) -> Any:  # noqa: ANN401
        """Return the reply, or a coroutine that returns it."""
        count = command.count or 1
        if self._keeps:
            self._room.check(count)
        with self._names.borrowed(command.file) as opened:
            return self._get(command, opened, count)

    def _get(self, command: messages.GetPfn, opened: OpenFile, count: int) -> Any:  # noqa: ANN401
        file = opened.file
        start = command.offset
        got = file.pages.get_now(self._holder, start, start + count, MOST_ROWS)
        if got is None:
            return self._get_later(command, opened.again(), count)
        extents, moved = got
        frames = self._got(command, opened, extents)
        if moved and file.notifiers:
            return self._tell_moved(opened.again(), moved, frames)
        return frames

    async def _get_later(
        self, command: messages.GetPfn, opened: OpenFile, count: int
    ) -> messages.Frames:
        with closing(opened):
            pages = opened.file.pages
            start = command.offset
            found = pages.get(self._holder, start, start + count, MOST_ROWS)
            extents, moved = await found
            frames = self._got(command, opened, extents)
            await pages.moved.tell(moved)
        return frames

    async def _tell_moved(
        self, opened: OpenFile, moved: list[Extent], frames: messages.Frames
    ) -> messages.Frames:
        with closing(opened):
            await opened.file.pages.moved.tell(moved)
        return frames

    def _got(
        self,
        command: messages.GetPfn | messages.PinPages,
        opened: OpenFile,
        extents: list[Extent],
    ) -> messages.Frames:
        """Record the references, and make the reply."""
        first, last = extents[0], extents[-1]
        end = last.offset + last.count
        if self._keeps:
            self._room.used += end - first.offset
            if opened.file not in self._files:
                self._files[opened.file] = opened.again()
        superblock = self._context.superblock
        attributes = opened.file.attributes if superblock.converts else None
        if command.count is None:
            private = UNSET if attributes is None else attributes.is_private(end - 1)
            return messages.Frames(pfn=first.pfn, order=first.order, private=private)
        found = as_messages(extents, attributes)
        if end < command.offset + command.count:
            return messages.Frames(extents=found, next=end)
        return messages.Frames(extents=found)

    # --- put-pfn -------------------------------------------------------------------

    def _put_pfn(self, command: messages.PutPfn | messages.UnpinPages) -> Any:  # noqa: ANN401
        """Return the reply, or a coroutine that returns it."""
        with self._names.borrowed(command.file) as opened:
            pfn, count = command.pfn, command.count
            if pfn is not None and command.extents is None and count <= PAGES_A_STEP:
                opened.file.pages.put(self._holder, pfn, count)
                return self._put(opened.file, count)
            extents = _to_put(command)
            return self._put_later(opened.again(), extents)

    async def _put_later(
        self, opened: OpenFile, extents: list[tuple[int, int]]
    ) -> Nothing:
        with closing(opened):
            await opened.file.pages.put_all(self._holder, extents)
            return self._put(opened.file, sum(count for _, count in extents))

    def _put(self, file: InaccessibleFile, count: int) -> Nothing:
        """Record that references to *count* pages of *file* were put."""
        self._room.used -= count
        assert file.pages.memory is not None
        if not file.pages.memory.references.total(self._holder):
            self._files.pop(file).close()
        return Nothing()


def _to_put(command: messages.PutPfn | messages.UnpinPages) -> list[tuple[int, int]]:
    """The (pfn, count) of the pages to put."""
    if command.extents is None:
        if command.pfn is None:
            raise OSError(errno.EINVAL, "neither `pfn` nor `extents`: give one")
        return [(command.pfn, command.count)]
    if command.pfn is not None or command.count != 1:
        raise OSError(errno.EINVAL, "`extents` go without `pfn` and `count`")
    return [(extent.pfn, extent.count) for extent in command.extents]
