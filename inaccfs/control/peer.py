"""One connection of the control socket: the order of commands, and their replies.

Messages are read as they arrive, and commands that need not wait are answered at once.
If a command waits, the later commands of the same peer wait, too, so that replies come
in order. An invalidate-done does not wait: the waiting command may need it.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from inaccfs.control import qmp
from inaccfs.control.inbox import Event, Inbox
from inaccfs.control.messages import Command, InvalidateDone, QmpCapabilities
from inaccfs.control.peeroutlet import PeerOutlet
from inaccfs.control.request import NO_FD, Answer, Passed, Request
from inaccfs.shim.deadlines import in_time
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from inaccfs.control.caller import Caller
    from inaccfs.control.serverparts import ServerParts

log = logging.getLogger(__name__)

_NOT_YET: Final = object()

# How many commands may wait before no more are read from the peer.
_WAITING_COMMANDS: Final = 64

# How long to wait if epoll_ctl(2) has no room for another connection.
_NO_EPOLL_SECONDS: Final = 0.1


class Conversing(Protocol):
    """The part of a session that a connection uses; see session.Session."""

    negotiated: bool

    def execute(self, request: Request) -> Any:  # noqa: ANN401
        """Execute a command; returns its value or `Answer`, or a coroutine of one."""

    def silence(self) -> None:
        """Tell the session that the peer will not send anything any more."""


class Peer:
    """One connection. `converse` takes the session that carries out its commands."""

    def __init__(
        self, connection: socket.socket, caller: Caller, parts: ServerParts
    ) -> None:
        """Take a non-blocking *connection*."""
        self._connection: Final = connection
        self._caller: Final = caller
        self._policy: Final = parts.policy
        self._readers: Final = parts.readers
        self._trouble: Final = parts.trouble
        self.outlet: Final = PeerOutlet(
            connection,
            parts.policy,
            parts.backlog,
            self._start,
            self._progressed,
            self.disconnect,
            self.evict,
        )
        self._inbox: Final = Inbox(
            connection,
            caller.uid,
            parts,
            self._take,
            self.outlet.send,
            self.outlet.joined,
            self._wait_room,
        )
        # Set by `converse`.
        self._session: Conversing
        # Commands that wait for the one before them. The first one is being executed.
        self._requests: deque[Request] = deque()
        # Tasks that wait until commands are executed or output is read.
        self._progress: Final = trio.lowlevel.ParkingLot()
        # While the peer is served.
        self._nursery: trio.Nursery | None = None
        # Set when nothing more will be read from the connection.
        self._ended: Final = trio.Event()
        # Whether reading is stopped until the peer's commands or output have caught up.
        self._paused = False
        # Until this time commands are executed as they are read; after it a task
        # executes them in slices.
        self._until = 0.0
        # Why the peer is being disconnected; empty if it is not.
        self.reason = ""

    def __str__(self) -> str:
        return str(self._caller)

    # --- life ----------------------------------------------------------------------

    async def converse(self, session: Conversing) -> None:
        """Serve the peer until it hangs up, or is disconnected."""
        self._session = session
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.outlet.send(qmp.greeting())
                await self._begin_reading()
                try:
                    await self._ended.wait()
                finally:
                    # Do this before waiting for commands that are not cancelled: they
                    # may be waiting for an answer of this peer.
                    session.silence()
                # The peer may still want the last replies, unless it has closed its
                # reading side, too.
                if not self._has_hung_up():
                    await in_time(self._policy.ack_seconds, self._finish)
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._readers.remove(self._connection.fileno())
            self.outlet.close()
            self._inbox.close()
            for request in self._requests:
                request.close()

    def _start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run *task* until the conversation ends."""
        assert self._nursery is not None
        self._nursery.start_soon(task)

    async def _begin_reading(self) -> None:
        while True:
            try:
                self._readers.add(self._connection.fileno(), self._readable)
            except OSError as exc:
                # ENOSPC, ENOMEM of epoll_ctl(2).
                self._trouble.met(f"{self} has to wait: {exc.strerror}")
                await trio.sleep(_NO_EPOLL_SECONDS)
            else:
                return

    def disconnect(self, reason: str) -> None:
        """End the conversation soon; *reason* is for the log."""
        if not self.reason:
            self.reason = reason
            log.debug("%s: %s", self, reason)
            # Later messages of the peer are not needed.
            self._readers.remove(self._connection.fileno())
            self.outlet.close()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    @property
    def why_gone(self) -> str:
        """Why the peer has disconnected, for the log."""
        return f", given up: {self.reason}" if self.reason else ""

    def evict(self, reason: str, text: str) -> None:
        """Disconnect it, and log why: the first reason only."""
        if not self.reason:
            log.error("%s: %s: disconnected", self, text)
        self.disconnect(reason)

    def _has_hung_up(self) -> bool:
        poller = select.poll()
        poller.register(self._connection, select.POLLHUP)
        return bool(poller.poll(0))

    async def _finish(self) -> None:
        while self._requests or self.outlet:
            await self._progress.park()

    # --- input -----------------------------------------------------------------------

    def _readable(self, times: int, until: float) -> bool:
        """Read at most *times*, and handle what comes; return whether to read on.

        A task executes commands that have not begun at *until* (time.perf_counter()).
        """
        if self._paused:
            self.disconnect("it hung up")
            return False
        try:
            self._until = until
            for left in range(times, 0, -1):
                event = self._inbox.read()
                if event is Event.NOTHING:
                    break
                if not self._goes_on(event):
                    return False
                if left > 1 and time.perf_counter() > until:
                    break
        except Exception:
            self._fail()
            return False
        return True

    def _goes_on(self, event: Event) -> bool:
        """Handle the result of a read; return whether to read on at once."""
        if event is Event.END or self.reason:
            self._end()
        elif event is Event.FDS:
            self._start(self._read_with_fds)
        elif self._is_late:
            self._paused = True
            self._readers.pause(self._connection.fileno())
        else:
            return True
        return False

    async def _read_with_fds(self) -> None:
        try:
            if self._goes_on(await self._inbox.read_with_fds()):
                self._readers.resume(self._connection.fileno())
        except Exception:
            self._fail()

    def _fail(self) -> None:
        log.exception("bug in the conversation with %s", self)
        self.disconnect("a bug")
        self._end()

    def _end(self) -> None:
        """Stop reading."""
        self._readers.remove(self._connection.fileno())
        self._ended.set()

    @property
    def _is_late(self) -> bool:
        """Whether too many of its commands wait, or it has left too much unread."""
        return len(self._requests) >= _WAITING_COMMANDS or self.outlet.is_full

    def _progressed(self) -> None:
        """Continue after commands were executed or output was read."""
        self._progress.unpark_all()
        if self._paused and not self._is_late and not self.reason:
            self._paused = False
            self._readers.resume(self._connection.fileno())

    def _take(
        self, command: Command, request_id: qmp.RequestId, passed: Passed
    ) -> None:
        """Handle one command."""
        request = Request(command, request_id, passed)
        negotiated = self._session.negotiated
        if self.reason:
            request.close()
        # Before the negotiation only qmp_capabilities can wait, and all that follows it
        # comes after the negotiation.
        elif not (negotiated or self._requests or type(command) is QmpCapabilities):
            request.close()
            self.outlet.send(
                qmp.encode_error(
                    "CommandNotFound",
                    "Expecting capabilities negotiation with 'qmp_capabilities'",
                    request_id,
                )
            )
        elif (negotiated and type(command) is InvalidateDone) or not (
            self._requests or self.outlet.is_full or time.perf_counter() > self._until
        ):
            self._begin(request)
        else:
            self._wait(request, _NOT_YET)

    def _begin(self, request: Request) -> None:
        """Execute a command, now or in a task."""
        try:
            value = self._session.execute(request)
        except Exception as exc:
            self._finished(request, exc, None)
            return
        if type(value) is CoroutineType:
            self._wait(request, value)
        else:
            self._finished(request, None, value)

    def _wait(self, request: Request, value: object) -> None:
        """Queue a command; *value* is what `execute` has returned."""
        self._requests.append(request)
        if len(self._requests) == 1:
            self._start(partial(self._work, value))

    async def _work(self, value: Any) -> None:  # noqa: ANN401
        """Execute the waiting commands, in order, until none is left."""
        slices = Slices()
        while True:
            request = self._requests[0]
            try:
                if value is _NOT_YET:
                    await slices.give()
                    await self._wait_room()
                    value = self._session.execute(request)
                if type(value) is CoroutineType:
                    value = await value
            except Exception as exc:
                self._finished(request, exc, None)
            else:
                self._finished(request, None, value)
            self._requests.popleft()
            self._progressed()
            if not self._requests:
                return
            value = _NOT_YET

    async def _wait_room(self) -> None:
        """Wait until the peer has read enough for another reply."""
        while self.outlet.is_full:
            await self._progress.park()

    def _finished(self, request: Request, exc: Exception | None, value: object) -> None:
        """Send the reply. An `OSError` goes to the peer; a bug goes to the log."""
        if request.passed is not NO_FD:
            request.close()
        answer: Answer | None = None
        if isinstance(value, Answer):
            answer = value
        fd = -1 if answer is None else answer.fd
        try:
            if answer is not None:
                reply = qmp.encode_return(answer.value, request.id, answer.next)
            elif exc is None:
                reply = qmp.encode_return(value, request.id)
            elif isinstance(exc, OSError):
                reply = qmp.encode_os_error(exc, request.id)
            else:
                reply = self._bug(request, exc)
        except Exception as bug:
            # The value, or the text of the error, cannot be encoded.
            reply = self._bug(request, bug)
            if fd >= 0:
                os.close(fd)
                fd = -1
        self.outlet.send(reply, fd)
        if answer is not None and answer.after is not None:
            answer.after()

    def _bug(self, request: Request, exc: Exception) -> bytes:
        log.error("bug in the command %s", request.command.name, exc_info=exc)
        description = "EIO: a bug; see the daemon's log"
        return qmp.encode_error("GenericError", description, request.id)
