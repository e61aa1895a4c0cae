"""The pages that one peer has got and not put: get-pfn and put-pfn."""

from __future__ import annotations

import errno
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from inaccfs.control import messages
from inaccfs.control.messages import Nothing
from inaccfs.control.registration import as_messages

if TYPE_CHECKING:
    from inaccfs.control.openfiles import OpenFile
    from inaccfs.control.session import Session
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.frames import Extent
    from inaccfs.shim.turns import Turns

# So many are told, and made JSON of, in some 2 ms.
_EXTENTS: Final = 1000

# So many pages are put at once; more are looked at in slices.
_QUICK_PAGES: Final = 512


class PageReferences:
    """What one peer refers to. Methods raise `OSError`, for the peer."""

    def __init__(self, session: Session) -> None:
        """*session* is the holder of them."""
        self._session: Final = session
        # Files to whose pages there are references, each kept open by that.
        self._files: Final[dict[InaccessibleFile, OpenFile]] = {}
        # How many pages these are, each counted as often as it has been got.
        self.pages = 0

    async def drop(self, turns: Turns) -> None:
        """The peer has gone: drop them all."""
        while self._files:
            file, opened = self._files.popitem()
            with closing(opened):
                assert file.pages.memory is not None
                for _ in file.pages.memory.drop(self._session):
                    await turns.give()

    # --- get-pfn -------------------------------------------------------------------

    def get_pfn(self, command: messages.GetPfn) -> Any:  # noqa: ANN401
        """The reply, or a coroutine that returns it."""
        session = self._session
        count = command.count or 1
        limit = session.server.policy.limits.pages
        keeps = session.server.shim.semantics.keeps_references
        if keeps and self.pages + count > limit:
            raise OSError(
                errno.EDQUOT,
                f"{self.pages} pages are referenced and {count} more would be over "
                f"{limit} (--limit pages=N): put some",
            )
        with session.borrowed(command.file) as opened:
            return self._get(command, opened, count)

    def _get(self, command: messages.GetPfn, opened: OpenFile, count: int) -> Any:  # noqa: ANN401
        file = opened.file
        start = command.offset
        got = file.pages.get_now(self._session, start, start + count, _EXTENTS)
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
            extents, moved = await pages.get(
                self._session, start, start + count, _EXTENTS
            )
            frames = self._got(command, opened, extents)
            await pages.tell_moved(moved)
        return frames

    async def _tell_moved(
        self, opened: OpenFile, moved: list[Extent], frames: messages.Frames
    ) -> messages.Frames:
        with closing(opened):
            await opened.file.pages.tell_moved(moved)
        return frames

    def _got(
        self, command: messages.GetPfn, opened: OpenFile, extents: list[Extent]
    ) -> messages.Frames:
        """Note the references, and make the reply."""
        first, last = extents[0], extents[-1]
        end = last.offset + last.count
        if opened.file.pages.keeps_references:
            self.pages += end - first.offset
            if opened.file not in self._files:
                self._files[opened.file] = opened.again()
        if command.count is None:
            return messages.Frames(pfn=first.pfn, order=first.order)
        told = as_messages(extents)
        if end < command.offset + command.count:
            return messages.Frames(extents=told, next=end)
        return messages.Frames(extents=told)

    # --- put-pfn -------------------------------------------------------------------

    def put_pfn(self, command: messages.PutPfn) -> Any:  # noqa: ANN401
        """The reply, or a coroutine that returns it."""
        with self._session.borrowed(command.file) as opened:
            extents = _to_put(command)
            if command.extents is None and command.count <= _QUICK_PAGES:
                file = opened.file
                file.pages.put(self._session, *extents[0])
                return self._put(file, extents)
            return self._put_later(opened.again(), extents)

    async def _put_later(
        self, opened: OpenFile, extents: list[tuple[int, int]]
    ) -> Nothing:
        with closing(opened):
            await opened.file.pages.put_all(self._session, extents)
            return self._put(opened.file, extents)

    def _put(self, file: InaccessibleFile, extents: list[tuple[int, int]]) -> Nothing:
        self.pages -= sum(count for _, count in extents)
        assert file.pages.memory is not None
        if not file.pages.memory.references.total(self._session):
            self._files.pop(file).close()
        return Nothing()


def _to_put(command: messages.PutPfn) -> list[tuple[int, int]]:
    """The (pfn, count) of what is to be put."""
    if command.extents is None:
        if command.pfn is None:
            raise OSError(errno.EINVAL, "neither `pfn` nor `extents`: give one")
        return [(command.pfn, command.count)]
    if command.pfn is not None or command.count != 1:
        raise OSError(errno.EINVAL, "`extents` go without `pfn` and `count`")
    return [(extent.pfn, extent.count) for extent in command.extents]
