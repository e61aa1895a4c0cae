"""The pages that one peer has pinned through a mapping: pin-pages."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from inaccfs.control import messages
from inaccfs.control.pagerefs import PageReferences
from inaccfs.control.paging import MOST_ROWS
from inaccfs.shim import hostaccess

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.control.context import Context
    from inaccfs.control.fdnames import FdNames
    from inaccfs.control.messages import Command
    from inaccfs.control.pagerefs import PageRoom
    from inaccfs.shim.memory import Pinner


class PagePins(PageReferences):
    """The pins of one peer. Commands raise `OSError`, for the peer."""

    def __init__(
        self, context: Context, names: FdNames, pinner: Pinner, room: PageRoom
    ) -> None:
        super().__init__(context, names, pinner, room, keeps=True)
        self._pinner: Final = pinner

    def handlers(self) -> dict[type[Command], Callable[[Any], Any]]:
        """The handler of each command."""
        return {messages.PinPages: self._pin, messages.UnpinPages: self._put_pfn}

    async def _pin(self, command: messages.PinPages) -> messages.Frames:
        self._room.check(command.count)
        start, end = command.offset, command.offset + command.count
        with closing(self._names.open(command.file)) as opened:
            extents, moved = await hostaccess.pin(
                opened.file, self._pinner, start, end, MOST_ROWS
            )
            frames = self._got(command, opened, extents)
            await opened.file.pages.moved.tell(moved)
        return frames
