"""What the query commands tell: the state of all peers and files of a mount."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from inaccfs.control import messages

if TYPE_CHECKING:
    from inaccfs.control.server import Server
    from inaccfs.control.session import Session
    from inaccfs.semantics import Semantics
    from inaccfs.shim.file import InaccessibleFile


def schema() -> list[dict[str, Any]]:
    """query-qmp-schema."""
    # Here and not above: hardly anybody asks, and it costs start-up time and memory.
    from inaccfs.control import schema as types

    return types.schema()


def _describe(
    name: str, ino: int, file: InaccessibleFile, opens: int
) -> messages.FileInfo:
    attributes = os.fstat(file.fd)
    memory = file.pages.memory
    return messages.FileInfo(
        name=name,
        ino=ino,
        size=attributes.st_size,
        page_size=file.page_size,
        allocated=attributes.st_blocks * 512 // file.page_size,
        fetched=0 if memory is None else memory.pages,
        referenced=0 if memory is None else memory.references_count,
        poisoned=file.pages.poisoned_count,
        notifiers=len(file.notifiers),
        opens=opens,
    )


def files(server: Server) -> list[messages.FileInfo]:
    """query-files."""
    return [_describe(*found) for found in server.files.all()]


def one_file(server: Server, file: InaccessibleFile) -> messages.FileInfo:
    """query-file, for a file that is open once more only for this."""
    for name, ino, found, opens in server.files.all():
        if found is file:
            return _describe(name, ino, found, opens - 1)
    raise AssertionError("an open file is always listed")


def notifiers(server: Server) -> list[messages.NotifierInfo]:
    """query-notifiers."""
    return [
        messages.NotifierInfo(
            notifier=registration.number,
            file=registration.opened.name,
            ino=registration.opened.ino,
            peer=session.number,
            pid=session.pid,
            start=bound and bound[0],
            end=bound and bound[1],
            told=registration.told,
            waiting=registration.opened.file.notifiers.waiting(registration),
        )
        for session in server.sessions.values()
        for registration in session.notifiers.values()
        for bound in [registration.opened.file.notifiers.bound(registration)]
    ]


def pins(server: Server) -> messages.Pins:
    """query-pins."""
    extents: list[messages.PinnedExtent] = []
    references: list[messages.Reference] = []
    for name, ino, file, _ in server.files.all():
        if file.pages.memory is None:
            continue
        extents += [
            messages.PinnedExtent(file=name, ino=ino, **extent._asdict())
            for extent in file.pages.memory.extents()
        ]
        for record in file.pages.memory.references.describe():
            # Nobody but the sessions of this server gets pages.
            session = cast("Session", record.holder)
            references.append(
                messages.Reference(
                    file=name,
                    ino=ino,
                    peer=session.number,
                    pid=session.pid,
                    offset=record.offset,
                    pfn=record.pfn,
                    count=record.count,
                    references=record.refs,
                    punched=record.punched,
                )
            )
    frames = server.shim.frames
    return messages.Pins(
        pinning="none" if frames is None else frames.pinning,
        extents=extents,
        references=references,
    )


def stats(server: Server) -> messages.Stats:
    """query-stats."""
    sessions = server.sessions.values()
    return messages.Stats(
        **asdict(server.shim.counters),
        peers=len(sessions),
        notifiers=sum(len(session.notifiers) for session in sessions),
        references=sum(session.pages for session in sessions),
        fetched=sum(
            file.pages.memory.pages
            for _, _, file, _ in server.files.all()
            if file.pages.memory is not None
        ),
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
    """Those of the commands that not all semantics have."""
    found = (
        ["bind", "unbind"]
        if rules.scope == "range"
        else ["register-notifier", "unregister-notifier"]
    )
    if rules.references != "none":
        found.append("put-pfn")
    if rules.memory_failure != "unknown":
        found.append("memory-failure")
    return found
