"""query-pins: fetched pages of all files, and the references to them."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from msgspec import UNSET

from inaccfs.control import messages
from inaccfs.control.paging import Paging
from inaccfs.shim.memory import Pinner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.control.context import Context
    from inaccfs.shim.memory import Holder, Memory


async def pins(context: Context, command: messages.QueryPins) -> messages.Pins:
    """query-pins."""
    paging = Paging(command.limit)
    place = _Place.parse(command.start)
    found = (
        (each.ino, (each.name, each.file.pages.memory))
        for each in context.files.all()
        if each.file.pages.memory is not None
    )
    listed = await paging.first_of(found, place.ino)
    following: _Place | None = None
    for ino, (name, memory) in listed:
        if ino != place.ino:
            place = _Place(ino)
        following = paging.fill(name, _rows(context, name, memory, place, paging.room))
        if following is not None:
            break
        await paging.slices.give()
    else:
        if len(listed) > paging.limit:
            # Some files had nothing left when it was their turn.
            following = _Place(listed[-1][0] + 1)
    frames = context.superblock.frames
    return messages.Pins(
        pinning="none" if frames is None else frames.pinning,
        extents=[row for row in paging.rows if isinstance(row, messages.FetchedExtent)],
        references=[row for row in paging.rows if isinstance(row, messages.Reference)],
        next=UNSET if following is None else str(following),
    )


class _Place(NamedTuple):
    """Where a page of query-pins begins: at this row, or at the next one after it."""

    ino: int = 0
    # The rank of the peer (see `_rank`); 0 for an extent.
    holder: int = 0
    # A page of the file for an extent, a frame for references.
    at: int = 0
    # The number of the reference at this place.
    lot: int = 0

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @classmethod
    def parse(cls, start: int | str) -> _Place:
        """Parse the text of `__str__`, or 0."""
        if start == 0:
            return cls()
        if isinstance(start, str) and _PLACE.fullmatch(start):
            return cls(*map(int, start.split("-")))
        raise OSError(errno.EINVAL, f"start {start!r} was no `next` of query-pins")


_PLACE: Final = re.compile("[0-9]{1,20}(-[0-9]{1,20}){3}")


def _rows(
    context: Context, name: str, memory: Memory, place: _Place, room: int
) -> Iterator[tuple[messages.FetchedExtent | messages.Reference, _Place]]:
    """The rows of one file from *place* on, with their places; one more than *room*.

    Drop the iterator when anything changes: it is not valid after that.
    """
    ino, rank, at, skipped = place
    if not rank:
        for extent in memory.frames.extents_since(at, room + 1):
            yield (
                messages.FetchedExtent(file=name, ino=ino, **extent._asdict()),
                _Place(ino, 0, extent.offset),
            )
    # Only peers of this mount's control socket get pages.
    holders = cast("list[Holder]", memory.references.holders())
    for holder in sorted(holders, key=_rank):
        number, its_rank = holder.who, _rank(holder)
        if its_rank < rank:
            continue
        since = at if its_rank == rank else 0
        pfn, lot = -1, 0
        for record in memory.references.describe(holder, since):
            lot = lot + 1 if record.pfn == pfn else 0
            pfn = record.pfn
            if its_rank == rank and pfn == since and lot < skipped:
                continue
            yield (
                messages.Reference(
                    file=name,
                    ino=ino,
                    peer=number,
                    pid=context.callers[number].pid,
                    offset=record.offset,
                    pfn=pfn,
                    count=record.count,
                    references=record.refs,
                    punched=record.punched,
                    pinned=True if isinstance(holder, Pinner) else UNSET,
                ),
                _Place(ino, its_rank, pfn, lot),
            )


def _rank(holder: Holder) -> int:
    """The rank of a peer; its pins come after its references."""
    return 2 * holder.who + isinstance(holder, Pinner)
