"""The table of all commands."""

from __future__ import annotations

from typing import Final

from inaccfs.control.messages.commands import (
    Bind,
    CloseFd,
    Command,
    GetFd,
    GetMemory,
    GetPfn,
    InvalidateDone,
    MemfdCreate,
    MemoryFailure,
    PutPfn,
    QmpCapabilities,
    QueryCommands,
    QueryFile,
    QueryFiles,
    QueryNotifiers,
    QueryPins,
    QueryQmpSchema,
    QuerySemantics,
    QueryStats,
    QueryStatus,
    QueryVersion,
    Quit,
    RegisterNotifier,
    Unbind,
    UnregisterNotifier,
)
from inaccfs.control.messages.filecommands import (
    CommitBind,
    Freeze,
    Migrate,
    PinPages,
    PopulatePages,
    QueryMemoryAttributes,
    ReadShared,
    SetMemoryAttributes,
    Unfreeze,
    UnpinPages,
    WriteShared,
)
from inaccfs.control.messages.views import QueryMap, TraceStart, TraceStop

COMMANDS: Final[dict[str, type[Command]]] = {
    command.name: command
    for command in (
        *(QmpCapabilities, QueryVersion, QueryCommands, QueryQmpSchema),
        *(GetFd, CloseFd, MemfdCreate),
        *(RegisterNotifier, UnregisterNotifier, Bind, CommitBind, Unbind),
        *(InvalidateDone, GetPfn, PutPfn, GetMemory),
        *(
            SetMemoryAttributes,
            QueryMemoryAttributes,
            PopulatePages,
            Freeze,
            Unfreeze,
            Migrate,
        ),
        *(ReadShared, WriteShared, PinPages, UnpinPages),
        *(QueryFiles, QueryFile, QueryMap, QueryNotifiers, QueryPins, QueryStats),
        *(QueryStatus, QuerySemantics, MemoryFailure),
        *(TraceStart, TraceStop, Quit),
    )
}
