"""The trio face of a client: one connection, each command awaited, callbacks as tasks.

    async with aio.connect("/mnt/inaccfs") as shim:
        async with await shim.file(fd) as memory:
            async with await memory.register_notifier(callback):
                pfn, order = await memory.get_pfn(3)

Names, units and errors are those of the blocking face, whose docstrings explain them.
"""

from __future__ import annotations

import itertools
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from inaccfs.client import requests, tasks, tracingtasks
from inaccfs.client.aiopages import AttributesOfFile
from inaccfs.client.errors import ControlError
from inaccfs.client.notifying import Callbacks, Range, raise_or_note
from inaccfs.client.tasks import Notifier
from inaccfs.control.messages import MFD_CLOEXEC, MFD_INACCESSIBLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from contextlib import AbstractAsyncContextManager
    from typing import Self, Unpack

    from inaccfs.client.notifying import Callback, Options
    from inaccfs.client.requests import Pfn, Request
    from inaccfs.client.tasks import Connection
    from inaccfs.client.tracingtasks import Trace
    from inaccfs.control.messages import (
        Command,
        Extent,
        FileInfo,
        MappedExtent,
        NotifierInfo,
        Pins,
        Semantics,
        Stats,
        VersionInfo,
    )
    from inaccfs.shim.trace import What
    from inaccfs.status import Status

T = TypeVar("T")

__all__ = ["Client", "File", "Notifier", "connect"]


@asynccontextmanager
async def connect(target: str | os.PathLike[str]) -> AsyncIterator[Client]:
    """A client of the mount at *target*, a mountpoint or the path of a control socket.

    Callbacks that still run at the end of the block are cancelled. An exception of a
    callback that no unregister() has raised is raised then; if the block itself raised,
    that exception gets a note instead.

    Raises:
        NotMountedError: *target* is not one of these, or its daemon is dead.
        ControlError: the daemon is stopped, or does not admit this user.
        InaccfsError: the root of these; the message says what to do, in one line.
    """
    error: Exception | None = None
    async with tasks.connected(target) as connection:
        try:
            yield Client(connection)
        except Exception as exc:
            # Raise it unchanged, and not in a nursery's ExceptionGroup.
            error = exc
    raise_or_note(connection.notifiers.take_raised(), error)
    if error is not None:
        raise error


class Client:
    """A connection to a daemon. Tasks may share it; their commands are pipelined.

    The daemon executes commands in the order in which they were begun. A cancelled
    command was sent as a whole or not at all; if it takes references, these are put.

    A child after fork(2) cannot use it, nor trio itself.
    """

    def __init__(self, connection: Connection) -> None:
        """Use `connect`."""
        self._connection: Final = connection
        self._do: Final = connection.do
        self._names: Final = itertools.count()

    def __repr__(self) -> str:
        return f"<Client of {self._connection.path}>"

    async def execute(self, command: Command, fd: int | None = None) -> Any:  # noqa: ANN401 - the command's own
        """Execute any command; returns its result, or the fd that it sends."""
        return await self._do(requests.execute(command, fd))

    # --- files ------------------------------------------------------------------------

    async def file(self, file: int | str | os.PathLike[str]) -> File:
        """A file of the mount: by an open fd, or by its path from the mount's root."""
        if not isinstance(file, int):
            return File(self, requests.check_path(os.fspath(file)), passed=False)
        return await self._file(file)

    async def weak_file(self, fd: int) -> File:
        """A file that neither the `File` nor its notifiers keep open."""
        return await self._file(fd, weak=True)

    async def _file(self, fd: int, *, weak: bool = False) -> File:
        fdname = f"fd{next(self._names)}"
        await self._do(requests.get_fd(fdname, fd, weak=weak))
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

    def trace(self, *kinds: What) -> AbstractAsyncContextManager[Trace]:
        """Records of what happens from now on: `async with` it, then `async for`.

        As in the blocking face.
        """
        return tracingtasks.traced(self._connection.path, kinds)

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
        """The daemon's counters."""
        return await self._do(requests.QUERY_STATS)

    async def query_semantics(self) -> Semantics:
        """The rules of the mount."""
        return await self._do(requests.QUERY_SEMANTICS)

    async def query_status(self) -> Status:
        """What `inaccfs status` shows."""
        return await self._do(requests.QUERY_STATUS)

    async def query_version(self) -> VersionInfo:
        """The version of the daemon."""
        return await self._do(requests.QUERY_VERSION)

    async def quit(self) -> None:
        """End the daemon and unmount. For root and the owner."""
        await self._do(requests.QUIT)


class File(AttributesOfFile):
    """A file of the mount. Offsets and counts are pages of the file's page size."""

    def __init__(self, client: Client, name: str, *, passed: bool) -> None:
        """Use `Client.file`."""
        self._client: Final = client
        self._name: Final = name
        # Whether the daemon has an fd of the file under this name.
        self._passed = passed
        self._closed = False

    def __repr__(self) -> str:
        return f"<File {self._name} of {self._client._connection.path}>"

    async def _ask(self, request: Request[T]) -> T:
        return await self._client._do(request)

    async def _give_back(self, commands: Iterable[Command]) -> None:
        with trio.CancelScope(shield=True):
            for command in commands:
                await self._client._do(requests.no_result(command))
        await trio.lowlevel.checkpoint_if_cancelled()

    @property
    def _open_name(self) -> str:
        if self._closed:
            raise ValueError(f"{self!r} is closed")
        return self._name

    async def get_pfn(self, offset: int) -> Pfn:
        """The frame of a page, with a reference. If this is cancelled, it is put."""
        return await self._client._do(requests.get_pfn(self._open_name, offset))

    async def get_pfns(self, offset: int, count: int) -> list[Extent]:
        """The frames of *count* pages, in as few extents as possible."""
        return await self._client._do(requests.get_pfns(self._open_name, offset, count))

    async def put_pfn(self, pfn: int, count: int = 1) -> None:
        """Put a reference to each of *count* pages from frame *pfn* on.

        It works even in a cancelled task, so that `finally` may await it. There is no
        `wait` argument: start it in a nursery instead, which then gets its errors.
        """
        request = requests.put_pfn(self._open_name, pfn, count)
        await self._client._connection.do_even_if_cancelled(request)

    async def put_pfns(self, extents: Iterable[requests.Run]) -> None:
        """Put a reference to each page of *extents*, even in a cancelled task."""
        await self._give_back(requests.put_pfns(self._open_name, extents))

    async def get_memory(self) -> int:
        """An fd of the memory itself, as the guest uses it. The caller closes it."""
        return await self._client._do(requests.get_memory(self._open_name))

    async def query(self) -> FileInfo:
        """Size, pages, references and the like."""
        return await self._client._do(requests.query_file(self._open_name))

    async def query_map(self) -> list[MappedExtent]:
        """The states of all pages up to the file's end, as extents."""
        return await self._client._do(requests.query_map(self._open_name))

    async def memory_failure(self, offset: int) -> None:
        """Report a page as poisoned. EOPNOTSUPP in semantics without memory-failure."""
        await self._client._do(requests.memory_failure(self._open_name, offset))

    async def register_notifier(
        self, invalidate: Callback | None = None, **options: Unpack[Options]
    ) -> Notifier:
        """Register callbacks for events of the file; `async with await` it.

        Callbacks are as in the blocking face, and may be async. Each event runs its
        callback in a task of its own, so a slow one delays no other; a synchronous one
        is called in trio's thread. A callback may use the client, and may register and
        unregister notifiers, but registering one of the same file would wait for the
        callback itself.

        Do not punch the file in trio's thread: that would wait in the kernel for the
        callbacks, which need the same thread. `trio.to_thread.run_sync(punch)` works,
        but not within a callback for the same file.
        """
        return await self._register(Callbacks(invalidate, **options), None)

    async def bind(
        self,
        start: int,
        end: int,
        invalidate: Callback | None = None,
        *,
        exclusive: bool | None = None,
        prepare: bool = False,
        **options: Unpack[Options],
    ) -> Notifier:
        """As `register_notifier`, for a range of pages, in semantics that bind."""
        callbacks = Callbacks(invalidate, **options)
        return await self._register(callbacks, Range(start, end, exclusive, prepare))

    async def _register(self, callbacks: Callbacks, bound: Range | None) -> Notifier:
        name = self._open_name
        connection = self._client._connection
        return await connection.register(name, callbacks.check(), bound)

    async def close(self) -> None:
        """Make the daemon close an fd that was passed. May be called again."""
        if self._closed or not self._passed:
            self._closed = True
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        request = requests.close_fd(self._name)
        # If the connection is lost, so is the name.
        with suppress(ControlError):
            await self._client._connection.do_even_if_cancelled(request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
