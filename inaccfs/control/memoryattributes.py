"""One peer's commands about private and shared pages, and its frozen files."""

from __future__ import annotations

import base64
import binascii
import errno
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from inaccfs.control import messages
from inaccfs.control.messages import Command, Nothing
from inaccfs.control.paging import most_rows
from inaccfs.control.request import Answer
from inaccfs.shim import conversions, freezing, hostaccess, migration, populating
from inaccfs.shim.call import Conversion
from inaccfs.shim.populating import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.control.caller import Caller
    from inaccfs.control.fdnames import FdNames
    from inaccfs.control.mountfiles import OpenFile


class MemoryAttributes:
    """Carries out one peer's commands. They raise `OSError`, for the peer."""

    def __init__(self, caller: Caller, names: FdNames) -> None:
        self._caller: Final = caller
        self._names: Final = names
        # The files that the peer has frozen, by inode number. They stay open.
        self._frozen: Final[dict[int, OpenFile]] = {}

    def handlers(self) -> dict[type[Command], Callable[[Any], Any]]:
        """The handler of each command."""
        return {
            messages.SetMemoryAttributes: self._set,
            messages.QueryMemoryAttributes: self._query,
            messages.PopulatePages: self._populate,
            messages.Freeze: self._freeze,
            messages.Unfreeze: self._unfreeze,
            messages.Migrate: self._migrate,
            messages.ReadShared: self._read_shared,
            messages.WriteShared: self._write_shared,
        }

    def close(self) -> None:
        """Unfreeze the files that the peer has frozen. It has disconnected."""
        while self._frozen:
            opened = self._frozen.popitem()[1]
            freezing.release(opened.file, self)
            opened.close()

    # --- attributes ------------------------------------------------------------------

    async def _set(self, command: messages.SetMemoryAttributes) -> Nothing:
        end = command.offset + command.count
        call = Conversion(command.offset, end, command.private, self._caller.number)
        with closing(self._names.open(command.file)) as opened:
            await conversions.convert(opened.file, call)
        return Nothing()

    def _query(self, command: messages.QueryMemoryAttributes) -> Answer:
        limit = most_rows(command.limit)
        rows: list[messages.MemoryAttributes] = []
        with self._names.borrowed(command.file) as opened:
            file = opened.file
            file.pages.check_open()
            for start, end, private in file.attributes.since(command.start, file.count):
                if len(rows) == limit:
                    return Answer(rows, next=start)
                rows.append(messages.MemoryAttributes(start, end - start, private))
        return Answer(rows)

    async def _migrate(self, command: messages.Migrate) -> Nothing:
        start, end = command.offset, command.offset + command.count
        with closing(self._names.open(command.file)) as opened:
            await migration.migrate(opened.file, start, end, self._caller.number)
        return Nothing()

    # --- content ---------------------------------------------------------------------

    async def _populate(self, command: messages.PopulatePages) -> messages.Populated:
        start, end = command.offset, command.offset + command.count
        if command.source is None:
            if command.source_offset is not None:
                raise OSError(errno.EINVAL, "`source-offset` goes with `source`")
            return await self._populate_from(command.file, start, end, None)
        with closing(self._names.open(command.source)) as opened:
            source = Source(opened.file, command.source_offset or 0)
            return await self._populate_from(command.file, start, end, source)

    async def _populate_from(
        self, file: str, start: int, end: int, source: Source | None
    ) -> messages.Populated:
        with closing(self._names.open(file)) as opened:
            done = await populating.populate(
                opened.file, start, end, source, self._caller.number
            )
        return messages.Populated(count=done)

    async def _read_shared(self, command: messages.ReadShared) -> messages.Data:
        with closing(self._names.open(command.file)) as opened:
            data = await hostaccess.read_shared(
                opened.file, command.offset, command.count
            )
        return messages.Data(data=base64.b64encode(data).decode())

    async def _write_shared(self, command: messages.WriteShared) -> Nothing:
        try:
            data = base64.b64decode(command.data, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise OSError(errno.EINVAL, f"`data` is no base64: {exc}") from None
        if not data:
            raise OSError(errno.EINVAL, "`data` is empty")
        with closing(self._names.open(command.file)) as opened:
            await hostaccess.write_shared(opened.file, command.offset, data)
        return Nothing()

    # --- freezing --------------------------------------------------------------------

    async def _freeze(self, command: messages.Freeze) -> Nothing:
        opened = self._names.open(command.file)
        try:
            await freezing.freeze(opened.file, self, self._caller.number)
        except BaseException:
            opened.close()
            raise
        self._frozen[opened.ino] = opened
        return Nothing()

    def _unfreeze(self, command: messages.Unfreeze) -> Nothing:
        with self._names.borrowed(command.file) as opened:
            freezing.unfreeze(opened.file, self, self._caller.number)
            self._frozen.pop(opened.ino).close()
        return Nothing()
