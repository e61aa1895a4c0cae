"""The trio face of a client: one connection, each command awaited, callbacks as tasks.

    async with aio.connect("/mnt/inaccfs") as shim:
        async with await shim.file(fd) as memory:
            async with await memory.register_notifier(callback):
                pfn, order = await memory.get_pfn(3)

Names, units and errors are those of the blocking face, whose docstrings tell them.
"""

from __future__ import annotations

import itertools
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from inaccfs.client import requests, tasks
from inaccfs.client.errors import ControlError
from inaccfs.client.notifying import Callbacks, Range, tell
from inaccfs.client.tasks import Notifier
from inaccfs.control.messages import MFD_CLOEXEC, MFD_INACCESSIBLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from typing import Self, Unpack

    from inaccfs.client.notifying import Callback, Options
    from inaccfs.client.requests import Pfn
    from inaccfs.client.tasks import Connection
    from inaccfs.control.messages import (
        Command,
        Extent,
        FileInfo,
        NotifierInfo,
        Pins,
        Semantics,
        Stats,
        VersionInfo,
    )
    from inaccfs.status import Status

__all__ = ["Client", "File", "Notifier", "connect"]


@asynccontextmanager
async def connect(target: str | os.PathLike[str]) -> AsyncIterator[Client]:
    """A client of the mount at *target*, a mountpoint or the path of a control socket.

    Callbacks that still run at the end of the block are cancelled. What a callback
    raised, and no unregister() has raised again, is raised then; if the block is left
    for an exception, that one gets a note.

    Raises:
        NotMountedError: *target* is neither, or its daemon is dead.
        ControlError: the daemon is stopped, or does not let this user in.
        InaccfsError: the root of these; the message says what to do, in one line.
    """
    error: Exception | None = None
    async with tasks.connected(target) as connection:
        try:
            yield Client(connection)
        except Exception as exc:
            # To come out as it is, and not in a nursery's ExceptionGroup.
            error = exc
    tell(connection.notifiers.take_raised(), error)
    if error is not None:
        raise error


class Client:
    """A connection to a daemon. Tasks may share it; their commands are pipelined.

    The daemon carries them out in the order in which they were begun. A command that is
    cancelled has been sent or not at all; what it gets later is given back.

    Not for a child after fork(2), as trio is not.
    """

    def __init__(self, connection: Connection) -> None:
        """Use `connect`."""
        self._connection: Final = connection
        self._do: Final = connection.do
        self._names: Final = itertools.count()

    def __repr__(self) -> str:
        return f"<Client of {self._connection.path}>"

    async def execute(self, command: Command, fd: int | None = None) -> Any:  # noqa: ANN401 - the command's own
        """Carry out any command; return what it returns, or the fd that it gives."""
        return await self._do(requests.execute(command, fd))

    # --- files ------------------------------------------------------------------------

    async def file(self, file: int | str | os.PathLike[str]) -> File:
        """A file of the mount: by an open fd, or by its path from the mount's root."""
        if not isinstance(file, int):
            return File(self, requests.check_path(os.fspath(file)), passed=False)
        fdname = f"fd{next(self._names)}"
        await self._do(requests.get_fd(fdname, file))
        return File(self, fdname, passed=True)

    async def memfd_create(
        self,
        name: str,
        flags: int = MFD_CLOEXEC | MFD_INACCESSIBLE,
        size: int | None = None,
    ) -> int:
        """memfd_create(2) with MFD_INACCESSIBLE: an fd of a new file without a name."""
        fdname = f"memfd{next(self._names)}"
        fd = await self._do(requests.memfd_create(name, flags, size, fdname))
        try:
            await self._connection.do_even_if_cancelled(requests.close_fd(fdname))
            os.set_inheritable(fd, not flags & MFD_CLOEXEC)
        except BaseException:
            os.close(fd)
            raise
        return fd

    # --- the mount --------------------------------------------------------------------

    async def query_files(self) -> list[FileInfo]:
        """The files that are open or have fetched pages."""
        return await self._do(requests.QUERY_FILES)

    async def query_notifiers(self) -> list[NotifierInfo]:
        """The notifiers of all peers."""
        return await self._do(requests.QUERY_NOTIFIERS)

    async def query_pins(self) -> Pins:
        """Fetched pages, and the references to them."""
        return await self._do(requests.QUERY_PINS)

    async def query_stats(self) -> Stats:
        """Counters."""
        return await self._do(requests.QUERY_STATS)

    async def query_semantics(self) -> Semantics:
        """The rules of the mount."""
        return await self._do(requests.QUERY_SEMANTICS)

    async def query_status(self) -> Status:
        """What `inaccfs status` shows."""
        return await self._do(requests.QUERY_STATUS)

    async def query_version(self) -> VersionInfo:
        """Which inaccfs the daemon is."""
        return await self._do(requests.QUERY_VERSION)

    async def quit(self) -> None:
        """End the daemon and unmount. For root and the owner."""
        await self._do(requests.QUIT)


class File:
    """A file of the mount. Offsets and counts are pages of the file's page size."""

    def __init__(self, client: Client, name: str, *, passed: bool) -> None:
        """Use `Client.file`."""
        self._client: Final = client
        self._name: Final = name
        # Whether the daemon has it open under that name.
        self._passed = passed
        self._closed = False

    def __repr__(self) -> str:
        return f"<File {self._name} of {self._client._connection.path}>"

    @property
    def _open_name(self) -> str:
        if self._closed:
            raise ValueError(f"{self!r} is closed")
        return self._name

    async def get_pfn(self, offset: int) -> Pfn:
        """Where a page is, and a reference to it; put back if this is cancelled."""
        return await self._client._do(requests.get_pfn(self._open_name, offset))

    async def get_pfns(self, offset: int, count: int) -> list[Extent]:
        """Where *count* pages are, in as few extents as the frames allow."""
        return await self._client._do(requests.get_pfns(self._open_name, offset, count))

    async def put_pfn(self, pfn: int, count: int = 1) -> None:
        """Give back a reference to each of *count* pages from frame *pfn* on.

        Done also if the caller is cancelled already, so that `finally` may await it.
        There is no `wait`: to go on without waiting, start it in a nursery, where a
        refusal is raised.
        """
        request = requests.put_pfn(self._open_name, pfn, count)
        await self._client._connection.do_even_if_cancelled(request)

    async def put_pfns(self, extents: Iterable[Extent]) -> None:
        """Give back a reference to each page of *extents*; done as `put_pfn` is."""
        connection = self._client._connection
        with trio.CancelScope(shield=True):
            for command in requests.put_pfns(self._open_name, extents):
                await connection.do(requests.Request(command, lambda _: None))
        await trio.lowlevel.checkpoint_if_cancelled()

    async def get_memory(self) -> int:
        """An fd of the memory itself, as the guest has it; the caller's to close."""
        return await self._client._do(requests.get_memory(self._open_name))

    async def query(self) -> FileInfo:
        """Size, pages, references and the like."""
        return await self._client._do(requests.query_file(self._open_name))

    async def memory_failure(self, offset: int) -> None:
        """Say that a page is poisoned. EOPNOTSUPP where semantics know no errors."""
        await self._client._do(requests.memory_failure(self._open_name, offset))

    async def register_notifier(
        self, invalidate: Callback | None = None, **options: Unpack[Options]
    ) -> Notifier:
        """Be called when pages of the file go; `async with await` it.

        Callbacks are as in the blocking face, and may be async. Each event's is a task
        of its own, so that a slow one holds nobody up; a synchronous one is called in
        trio's thread. It may use the client, and may register and unregister notifiers,
        but to register one of the same file waits for the callback itself.

        Nobody may punch the file in trio's thread: it would wait in the kernel for the
        callbacks, which need that thread. `trio.to_thread.run_sync(punch)` is fine, but
        not within a callback for the same file.
        """
        return await self._register(Callbacks(invalidate, **options), None)

    async def bind(
        self,
        start: int,
        end: int,
        invalidate: Callback | None = None,
        *,
        exclusive: bool | None = None,
        **options: Unpack[Options],
    ) -> Notifier:
        """The same for the pages from *start* to *end*, in semantics that bind."""
        callbacks = Callbacks(invalidate, **options)
        return await self._register(callbacks, Range(start, end, exclusive))

    async def _register(self, callbacks: Callbacks, bound: Range | None) -> Notifier:
        name = self._open_name
        connection = self._client._connection
        return await connection.register(name, callbacks.check(), bound)

    async def close(self) -> None:
        """Let the daemon forget an fd that was passed; harmless when done before."""
        if self._closed or not self._passed:
            self._closed = True
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        request = requests.close_fd(self._name)
        # If the connection has gone, the name has gone with it.
        with suppress(ControlError):
            await self._client._connection.do_even_if_cancelled(request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
