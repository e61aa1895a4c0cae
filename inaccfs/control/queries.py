"""The query commands: the state of all peers and files of a mount."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from inaccfs.control import messages
from inaccfs.control.paging import Paging, most_rows
from inaccfs.control.querypins import pins
from inaccfs.control.request import Answer
from inaccfs.shim.pagestates import page_states
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.control.context import Context
    from inaccfs.control.messages import Command
    from inaccfs.control.mountfiles import Listed
    from inaccfs.semantics import Semantics
    from inaccfs.shim.file import InaccessibleFile


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


def describe(found: Listed, opens: int) -> messages.FileInfo:
    """query-file."""
    file = found.file
    attributes = os.fstat(file.fd)
    memory = file.pages.memory
    return messages.FileInfo(
        name=found.name,
        ino=found.ino,
        size=attributes.st_size,
        page_size=file.page_size,
        allocated=attributes.st_blocks * 512 // file.page_size,
        fetched=0 if memory is None else memory.frames.pages,
        referenced=0 if memory is None else memory.references_count,
        poisoned=len(file.pages.poisoned),
        notifiers=len(file.notifiers),
        opens=opens,
        frozen=True if file.is_frozen else UNSET,
    )


async def page_map(
    file: InaccessibleFile, command: messages.QueryMap
) -> messages.PageMap:
    """query-map."""
    most = most_rows(command.limit)
    runs, following = await page_states(file, command.start, most)
    return messages.PageMap(
        extents=[
            messages.MappedExtent(offset=start, count=end - start, **state._asdict())
            for start, end, state in runs
        ],
        next=UNSET if following is None else following,
    )


async def files(context: Context, command: messages.QueryFiles) -> Answer:
    """query-files."""
    paging = Paging(command.limit)
    found = ((each.ino, None) for each in context.files.all())
    for ino, _ in await paging.first_of(found, command.start):
        if not paging.has_room:
            return Answer(paging.rows, next=ino)
        # The file, or its fd, may have been closed meanwhile.
        with context.files.at(ino) as each:
            if each is not None:
                paging.add(each.name, describe(each, each.opens))
        await paging.slices.give()
    return Answer(paging.rows)


async def notifiers(context: Context, command: messages.QueryNotifiers) -> Answer:
    """query-notifiers."""
    paging = Paging(command.limit)
    # A copy: notifiers come and go while other tasks run between the slices.
    found = list(context.notifiers.items())
    for number, registration in await paging.first_of(found, command.start):
        if not paging.has_room:
            return Answer(paging.rows, next=number)
        if number not in context.notifiers:
            continue
        opened, pages = registration.opened, registration.pages
        listed = opened.file.notifiers
        name = opened.name
        paging.add(
            name,
            messages.NotifierInfo(
                notifier=number,
                file=name,
                ino=opened.ino,
                peer=registration.who,
                pid=registration.caller.pid,
                start=pages and pages[0],
                end=pages and pages[1],
                effective=listed.gets_events(registration),
                events_sent=registration.events_sent,
                waiting=listed.waiting(registration),
            ),
        )
        await paging.slices.give()
    return Answer(paging.rows)


async def stats(context: Context) -> messages.Stats:
    """query-stats."""
    slices = Slices()
    fetched = references = 0
    for each in context.files.all():
        if (memory := each.file.pages.memory) is not None:
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
    return [
        command.name
        for command in messages.COMMANDS.values()
        if command.exists is not None and command.exists(rules)
    ]
