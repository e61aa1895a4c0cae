"""The connection of the trio face: tasks share it, and one task reads it."""

from __future__ import annotations

import inspect
import threading
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from inaccfs.client import errors, wire
from inaccfs.client.errors import ConnectionLostError
from inaccfs.client.notifying import Notifiers, Registered, raise_or_note
from inaccfs.control.outlet import Outlet
from inaccfs.errors import starting_thread

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Self

    from inaccfs.client.core import Call, Conversation
    from inaccfs.client.notifying import Callbacks, Due, Range, Registration
    from inaccfs.client.requests import Request

T = TypeVar("T")

# The connection whose callback is running in the current task or has started it.
_calling_back: Final[ContextVar[Connection | None]] = ContextVar(
    "_calling_back", default=None
)


@asynccontextmanager
async def connected(target: str | os.PathLike[str]) -> AsyncIterator[Connection]:
    """A connection to the daemon of *target* for a with block."""
    path, connected, conversation = await _Dialing(target).dial()
    connected.setblocking(False)
    with connected:
        async with trio.open_nursery() as nursery:
            connection = Connection(path, connected, conversation, nursery)
            nursery.start_soon(connection.read)
            try:
                yield connection
            finally:
                connection.end()
                nursery.cancel_scope.cancel()


async def dial(path: str) -> tuple[socket.socket, Conversation]:
    """A connection to the socket at *path*, which does not block."""
    _, connection, conversation = await _Dialing(path).dial()
    connection.setblocking(False)
    return connection, conversation


class _Dialing:
    """Connects in a thread, as that may block; leaves nothing if cancelled."""

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self._target: Final = target
        # Guards the next two: the connection when it is made, and whether to drop it.
        self._lock: Final = threading.Lock()
        self._connection: socket.socket | None = None
        self._unwanted = False

    async def dial(self) -> tuple[str, socket.socket, Conversation]:
        """Find the socket and connect to it."""
        try:
            with starting_thread():
                return await trio.to_thread.run_sync(self._dial, abandon_on_cancel=True)
        except trio.Cancelled:
            with self._lock:
                self._unwanted = True
                if self._connection is not None:
                    self._connection.close()
            raise

    def _dial(self) -> tuple[str, socket.socket, Conversation]:
        path = wire.find_socket(self._target)
        connection, conversation = wire.dial(path)
        with self._lock:
            self._connection = connection
            if self._unwanted:
                connection.close()
        return path, connection, conversation


class Connection:
    """The connection for commands and events."""

    def __init__(
        self,
        path: str,
        connection: socket.socket,
        conversation: Conversation,
        nursery: trio.Nursery,
    ) -> None:
        self.path: Final = path
        self.notifiers: Final = Notifiers(conversation)
        self._connection: Final = connection
        self._conversation: Final = conversation
        # For the reader, the callbacks, and the task that sends waiting messages.
        self._nursery: Final = nursery
        # A task sends its waiting messages.
        self._outlet: Final = Outlet(connection)

    async def do(
        self, request: Request[T], undo: Callable[[Call[T]], None] | None = None
    ) -> T:
        """Send a command, unless cancelled already, and wait for the answer.

        If the caller is cancelled, the command is undone later, by *undo* if given.

        Raises:
            OSError: the daemon's refusal; `ControlError` if the daemon has ended.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self.do_even_if_cancelled(request, undo)

    async def do_even_if_cancelled(
        self, request: Request[T], undo: Callable[[Call[T]], None] | None = None
    ) -> T:
        """As `do`, but always sent: cancellation only ends the waiting."""
        answered = trio.Event()
        call = self._conversation.start(request, answered.set)
        self._send()
        try:
            await answered.wait()
        except BaseException:
            (undo or self._conversation.abandon)(call)
            self._send()
            raise
        return call.result()

    async def register(
        self, file: str, callbacks: Callbacks, bound: Range | None
    ) -> Notifier:
        """Register a notifier, for a range if it is *bound*."""
        left = trio.Event()
        request = self.notifiers.register(file, callbacks, left.set, bound)
        return Notifier(self, await self.do(request, self.notifiers.abandon), left)

    async def commit(self, registration: Registration) -> None:
        """Make a prepared notifier effective. After an `OSError` it is removed."""
        try:
            await self.do(self.notifiers.commit(registration))
        except OSError:
            self.notifiers.forget(registration)
            raise

    def leave(self, registration: Registration) -> None:
        """Unregister as soon as no callback of it runs; do not wait for that."""
        self.notifiers.leave(registration)
        self._send()

    def end(self) -> None:
        """End the connection; tasks that wait get `ClientClosedError`."""
        self._conversation.end(errors.closed(self.path))
        self._outlet.close()

    # --- sending ----------------------------------------------------------------------

    def _send(self) -> None:
        """Send all messages.

        It is never cancelled, so that no message is cut: if the socket is full, another
        task sends the rest.
        """
        waiting = bool(self._outlet)
        self._outlet.extend(self._conversation.take_outgoing())
        if self._outlet and not waiting and not self._flush():
            self._nursery.start_soon(self._send_rest)

    def _flush(self) -> bool:
        """Send as much as the socket takes; return whether that was all."""
        try:
            return wire.flush(self._outlet)
        except OSError as exc:
            self._conversation.end(ConnectionLostError(f"{self.path}: {exc}"))
            self._outlet.close()
            return True

    async def _send_rest(self) -> None:
        while not self._flush():
            await trio.lowlevel.wait_writable(self._connection)

    # --- receiving --------------------------------------------------------------------

    async def read(self) -> None:
        """Read from the daemon until it hangs up."""
        while self._conversation.ended is None:
            await trio.lowlevel.wait_readable(self._connection)
            try:
                data, fds = wire.receive(self._connection)
            except BlockingIOError:
                continue
            for event in self._conversation.feed(data, fds):
                if (due := self.notifiers.begin(event)) is not None:
                    self._nursery.start_soon(self._call_back, due)
            self._send()

    async def _call_back(self, due: Due) -> None:
        _calling_back.set(self)
        raised: Exception | None = None
        try:
            result = due.call()
            if inspect.isawaitable(result):
                await result
        except Exception as exc:
            raised = exc
        self.notifiers.finish(due, raised)
        self._send()


class Notifier(Registered):
    """A registered notifier; the end of its with block unregisters it."""

    def __init__(
        self, connection: Connection, registration: Registration, left: trio.Event
    ) -> None:
        """Use `File.register_notifier`."""
        super().__init__(registration)
        self._connection: Final = connection
        self._left: Final = left

    async def commit(self) -> None:
        """Make the binding that `File.bind` has prepared effective; see threads.py."""
        await self._connection.commit(self._registration)

    async def unregister(self) -> None:
        """Return when no callback runs, and none will.

        In a callback, or in a task that a callback started, it returns at once: no more
        callbacks are called, and the notifier is unregistered when the running ones
        have returned. The same happens if the task is cancelled while it waits here. It
        raises the same as in the blocking face.
        """
        raise_or_note(await self._unregister(), None)

    async def _unregister(self) -> BaseException | None:
        self._connection.leave(self._registration)
        if _calling_back.get() is self._connection:
            await trio.lowlevel.checkpoint()
            return None
        await self._left.wait()
        return self._registration.take_error()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        raise_or_note(await self._unregister(), error)
