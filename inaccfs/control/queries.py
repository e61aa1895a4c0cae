"""The query commands: the state of all peers and files of a mount."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import asdict
from functools import cache, partial
from heapq import nsmallest
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

import msgspec
from msgspec import UNSET

from inaccfs.control import messages
from inaccfs.control.request import Answer
from inaccfs.shim.memory import Pinner
from inaccfs.shim.pagestates import page_states
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from inaccfs.control.context import Context
    from inaccfs.control.messages import Command
    from inaccfs.semantics import Semantics
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.memory import Holder, Memory

T = TypeVar("T")

# The most rows of a page, and the most bytes of names, which may be as long as paths.
_ROWS: Final = 1000
_NAME_BYTES: Final = 1 << 18


def handlers(context: Context) -> dict[type[Command], Callable[[Any], Any]]:
    """The handler of each query that is the same for all peers."""
    return {
        messages.QueryVersion: lambda _: messages.version(),
        messages.QueryCommands: lambda _: [
            messages.CommandInfo(name) for name in messages.COMMANDS
        ],
        messages.QueryQmpSchema: lambda _: schema(),
        messages.QueryStatus: lambda _: context.actions.status(),
        messages.QueryFiles: partial(files, context),
        messages.QueryNotifiers: partial(notifiers, context),
        messages.QueryPins: partial(pins, context),
        messages.QueryStats: lambda _: stats(context),
        messages.QuerySemantics: lambda _: semantics(context.superblock.semantics),
    }


@cache
def schema() -> msgspec.Raw:
    """query-qmp-schema."""
    # Imported here: it is rarely used, and costs start-up time and memory.
    from inaccfs.control import schema as types

    return msgspec.Raw(msgspec.json.encode(types.schema()))


def describe(
    name: str, ino: int, file: InaccessibleFile, opens: int
) -> messages.FileInfo:
    """query-file."""
    attributes = os.fstat(file.fd)
    memory = file.pages.memory
    return messages.FileInfo(
        name=name,
        ino=ino,
        size=attributes.st_size,
        page_size=file.page_size,
        allocated=attributes.st_blocks * 512 // file.page_size,
        fetched=0 if memory is None else memory.frames.pages,
        referenced=0 if memory is None else memory.references_count,
        poisoned=file.pages.poisoned_count,
        notifiers=len(file.notifiers),
        opens=opens,
        frozen=UNSET if file.frozen_by is None else True,
    )


async def page_map(
    context: Context, file: InaccessibleFile, command: messages.QueryMap
) -> messages.PageMap:
    """query-map."""
    most = min(command.limit or _ROWS, _ROWS)
    runs, following = await page_states(file, context.superblock, command.start, most)
    return messages.PageMap(
        extents=[
            messages.MappedExtent(offset=start, count=end - start, **state._asdict())
            for start, end, state in runs
        ],
        next=UNSET if following is None else following,
    )


async def files(context: Context, command: messages.QueryFiles) -> Answer:
    """query-files."""
    paging = _Paging(command.limit)
    found = ((ino, None) for _, ino, _, _ in context.files.all())
    for ino, _ in await paging.first_of(found, command.start):
        if not paging.has_room:
            return Answer(paging.rows, next=ino)
        # The file, or its fd, may have been closed meanwhile.
        with context.files.at(ino) as each:
            if each is not None:
                paging.add(each[0], describe(*each))
        await paging.slices.give()
    return Answer(paging.rows)


async def notifiers(context: Context, command: messages.QueryNotifiers) -> Answer:
    """query-notifiers."""
    paging = _Paging(command.limit)
    # A copy: notifiers come and go while other tasks run between the slices.
    found = list(context.notifiers.items())
    for number, registration in await paging.first_of(found, command.start):
        if not paging.has_room:
            return Answer(paging.rows, next=number)
        opened = registration.opened
        bound = opened.file.notifiers.bound(registration)
        name = opened.name
        paging.add(
            name,
            messages.NotifierInfo(
                notifier=number,
                file=name,
                ino=opened.ino,
                peer=registration.who,
                pid=registration.caller.pid,
                start=bound and bound[0],
                end=bound and bound[1],
                told=registration.events_sent,
                waiting=opened.file.notifiers.waiting(registration),
            ),
        )
        await paging.slices.give()
    return Answer(paging.rows)


async def pins(context: Context, command: messages.QueryPins) -> messages.Pins:
    """query-pins."""
    paging = _Paging(command.limit)
    place = _Place.parse(command.start)
    found = (
        (ino, (name, file.pages.memory))
        for name, ino, file, _ in context.files.all()
        if file.pages.memory is not None
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
        extents=[row for row in paging.rows if isinstance(row, messages.PinnedExtent)],
        references=[row for row in paging.rows if isinstance(row, messages.Reference)],
        next=UNSET if following is None else str(following),
    )


class _Place(NamedTuple):
    """Where a page of query-pins begins: at this row, or at the next one."""

    ino: int = 0
    # The holder of the references: see `_rank`; 0 for an extent.
    holder: int = 0
    # A page of the file for an extent, a frame for references.
    at: int = 0
    # The index of the references at this place.
    lot: int = 0

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @classmethod
    def parse(cls, start: int | str) -> _Place:
        """Parse the return of `__str__`, or "0"."""
        if start == 0:
            return cls()
        if isinstance(start, str) and _PLACE.fullmatch(start):
            return cls(*map(int, start.split("-")))
        raise OSError(errno.EINVAL, f"start {start!r} was no `next` of query-pins")


_PLACE: Final = re.compile("[0-9]{1,20}(-[0-9]{1,20}){3}")


def _rows(
    context: Context, name: str, memory: Memory, place: _Place, room: int
) -> Iterator[tuple[messages.PinnedExtent | messages.Reference, _Place]]:
    """The rows of one file from *place* on, each with its place; one more than *room*.

    The iterator is not valid after a change.
    """
    ino, rank, at, skipped = place
    if not rank:
        for extent in memory.frames.extents_since(at, room + 1):
            yield (
                messages.PinnedExtent(file=name, ino=ino, **extent._asdict()),
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
    """The rank of a holder: by peer, and pins after references."""
    return 2 * holder.who + isinstance(holder, Pinner)


class _Paging:
    """Collects the rows of one page."""

    def __init__(self, limit: int | None) -> None:
        self.limit: Final = min(limit or _ROWS, _ROWS)
        self.slices: Final = Slices()
        self.rows: Final[list[Any]] = []
        self._bytes = 0

    @property
    def room(self) -> int:
        """How many rows still fit."""
        return self.limit - len(self.rows)

    @property
    def has_room(self) -> bool:
        """Whether another row fits. The first one always does, with any name."""
        return not self.rows or (self.room > 0 and self._bytes < _NAME_BYTES)

    def add(self, name: str, row: object) -> None:
        """Add a row of a file."""
        self.rows.append(row)
        self._bytes += len(name)

    def fill(self, name: str, rows: Iterable[tuple[object, _Place]]) -> _Place | None:
        """Add rows of a file; returns the place of the first row that does not fit."""
        for row, place in rows:
            if not self.has_room:
                return place
            self.add(name, row)
        return None

    async def first_of(
        self, found: Iterable[tuple[int, T]], start: int
    ) -> list[tuple[int, T]]:
        """The first items from *start* on, by key: one more than fits."""
        most = self.limit + 1
        first: list[tuple[int, T]] = []
        for each in found:
            if each[0] >= start:
                first.append(each)
                if len(first) >= 4 * most:
                    first = nsmallest(most, first, key=itemgetter(0))
            await self.slices.give()
        return nsmallest(most, first, key=itemgetter(0))


async def stats(context: Context) -> messages.Stats:
    """query-stats."""
    slices = Slices()
    fetched = references = 0
    for _, _, file, _ in context.files.all():
        if (memory := file.pages.memory) is not None:
            fetched += memory.frames.pages
            references += memory.references_count
        await slices.give()
    return messages.Stats(
        **asdict(context.superblock.trace.counters),
        peers=len(context.callers),
        notifiers=len(context.notifiers),
        references=references,
        fetched=fetched,
    )


def semantics(rules: Semantics) -> messages.Semantics:
    """query-semantics."""
    rest = {
        name: getattr(rules, name)
        for name in messages.Semantics.__struct_fields__
        if name != "commands"
    }
    return messages.Semantics(commands=_commands(rules), **rest)


def _commands(rules: Semantics) -> list[str]:
    """The commands of these rules that not all semantics have."""
    found = (
        ["bind", "unbind"]
        if rules.scope == "range"
        else ["register-notifier", "unregister-notifier"]
    )
    if rules.keeps_references:
        found.append("put-pfn")
    if rules.memory_failure != "unknown":
        found.append("memory-failure")
    if rules.binding == "prepared":
        found.append("commit-bind")
    if rules.attributes == "file":
        found.append("set-memory-attributes")
    if rules.population in ("populate", "populate in place"):
        found.append("populate")
    if rules.frozen != "unknown":
        found += ["freeze", "unfreeze"]
    if rules.migration != "never":
        found.append("migrate")
    if rules.mmap != "refused":
        found += ["read-shared", "write-shared", "pin-pages", "unpin-pages"]
    return found
