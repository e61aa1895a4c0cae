"""One connection of the control socket: its bytes, its fds, and what it has taken.

Messages are read as they come. What can be answered at once is; what has to wait makes
the later commands of the same peer wait too, so that replies come in order, but for
invalidate-done: the wait may be for that.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
from collections import deque
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

import trio

from inaccfs.control import qmp
from inaccfs.control.messages import Command, InvalidateDone, QmpCapabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inaccfs.control.limits import Policy
    from inaccfs.control.readers import Readers

log = logging.getLogger(__name__)

# So little that others have their turn soon, whatever somebody floods us with.
_READ_BYTES: Final = 4096
# SCM_MAX_FD of the kernel. What does not fit is closed by recvmsg(2) there and then,
# and that may hang, as it may with a socket that lingers.
_FDS_A_READ: Final = 253
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_FDS_A_READ * 4)

_NOT_YET: Final = object()

# Commands that wait for their turn; with so many the peer is not read any further.
_WAITING_COMMANDS: Final = 64


class Request:
    """A command that has been read, with the fds that came with it."""

    __slots__ = ("command", "fds", "id")

    def __init__(
        self, command: Command, request_id: qmp.RequestId, fds: list[int]
    ) -> None:
        self.command: Final = command
        self.id: Final = request_id
        # Whoever uses one takes it out; what is left is closed.
        self.fds: Final = fds


class Answer:
    """What a command returns, with an fd to send along; it is closed then."""

    __slots__ = ("fd", "value")

    def __init__(self, value: object, fd: int) -> None:
        self.value: Final = value
        self.fd: Final = fd


class Peer:
    """The transport of one peer. The server carries out what it asks for."""

    def __init__(
        self,
        connection: socket.socket,
        policy: Policy,
        name: str,
        readers: Readers,
        execute: Callable[[Request], Any],
        discard: Callable[[int], None],
        silenced: Callable[[], None],
    ) -> None:
        """Take a non-blocking *connection*.

        *execute* carries a command out: it returns the value, or a coroutine that
        does. *discard* closes an fd that nobody wanted, which may take for ever.
        *silenced* is called when the peer will say nothing any more.
        """
        self._connection: Final = connection
        self._policy: Final = policy
        # For the log.
        self._name: Final = name
        self._readers: Final = readers
        self._execute: Final = execute
        self._discard: Final = discard
        self._silenced: Final = silenced
        self._framing: Final = qmp.Framing()
        self.negotiated = False
        # Fds that came with a message that is not whole yet.
        self._early_fds: list[int] = []
        # Commands that wait for the one before them. The first is being carried out.
        self._requests: deque[Request] = deque()
        # Bytes that the peer has not read yet, and an fd that goes with the first.
        self._output: deque[tuple[memoryview, int]] = deque()
        self._output_bytes = 0
        self._writing = False
        # Whoever waits for commands to be carried out or for output to be read.
        self._progress: Final = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None
        # Set when nothing more is read from it.
        self._ended: Final = trio.Event()
        # Whether it is not read from until it has caught up.
        self._paused = False
        # Set once it is to be given up; why.
        self.reason = ""
        # What to do when the next reply has been sent.
        self._when_answered: Callable[[], None] | None = None

    def __str__(self) -> str:
        return self._name

    def when_answered(self, action: Callable[[], None]) -> None:
        """Call *action* once the command that is being carried out has its reply."""
        self._when_answered = action

    # --- life ----------------------------------------------------------------------

    async def converse(self) -> None:
        """Serve the peer until it hangs up, or is disconnected."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.send(qmp.greeting())
                self._readers.add(self._connection.fileno(), self._readable)
                try:
                    await self._ended.wait()
                finally:
                    # Before the commands are waited for that go on to their end: they
                    # may wait for just this peer.
                    self._silenced()
                # What it has asked for last, it may still want to read, unless it has
                # closed its side of that, too.
                if not self._has_hung_up():
                    with trio.move_on_after(self._policy.ack_seconds):
                        await self._finish()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._close()

    def disconnect(self, reason: str) -> None:
        """End the conversation soon; *reason* is for who looks closely at the log."""
        if not self.reason:
            self.reason = reason
            log.debug("%s: %s", self, reason)
            # What it has still said is not for anybody any more.
            self._readers.remove(self._connection.fileno())
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    @property
    def why_gone(self) -> str:
        """Words for the log."""
        return f", given up: {self.reason}" if self.reason else ""

    def _has_hung_up(self) -> bool:
        poller = select.poll()
        poller.register(self._connection, select.POLLHUP)
        return bool(poller.poll(0))

    async def _finish(self) -> None:
        while self._requests or self._output:
            await self._progress.park()

    def _close(self) -> None:
        self._readers.remove(self._connection.fileno())
        # What has not been read of it may have fds with it.
        self._discard(self._connection.detach())
        self._discard_all(self._early_fds)
        for request in self._requests:
            self._discard_all(request.fds)
        for _, fd in self._output:
            if fd >= 0:
                os.close(fd)
        self._output.clear()

    # --- input -----------------------------------------------------------------------

    def _readable(self, times: int) -> bool:
        """Read, some *times* at most, and deal with it; whether to read on then."""
        if self._paused:
            self.disconnect("it hung up")
            return False
        try:
            for _ in range(times):
                if (read_on := self._read()) is None:
                    return True
                if not read_on:
                    break
                if self._is_late:
                    self._paused = True
                    self._readers.pause(self._connection.fileno())
                    return False
            else:
                return True
        except Exception:
            log.exception("bug in the conversation with %s", self)
            self.disconnect("a bug")
        self._readers.remove(self._connection.fileno())
        self._ended.set()
        return False

    def _read(self) -> bool | None:
        """Read once, and deal with it; None if there was nothing, False at the end."""
        try:
            data, ancillary, _, _ = self._connection.recvmsg(
                _READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError:
            # Reset, mostly; whatever it is, no more can be read.
            data, ancillary = b"", []
        fds = _received(ancillary) if ancillary else []
        read_on = True
        for line, its_fds in self._messages(data, fds):
            if self.reason or not read_on:
                self._discard_all(its_fds)
            else:
                read_on = self._take(line, its_fds)
        if self.reason or not read_on:
            return False
        if self._framing.pending > self._policy.limits.message:
            self._refuse_long()
            return False
        return bool(data)

    @property
    def _is_late(self) -> bool:
        """Whether it has said or left unread so much that it is not read for now."""
        return len(self._requests) >= _WAITING_COMMANDS or self._is_behind

    def _progressed(self) -> None:
        """Commands have been carried out, or output has been read."""
        self._progress.unpark_all()
        if self._paused and not self._is_late and not self.reason:
            self._paused = False
            self._readers.resume(self._connection.fileno())

    def _messages(self, data: bytes, fds: list[int]) -> list[tuple[bytes, list[int]]]:
        """The messages that are whole now, with their fds.

        The kernel ends a read behind the bytes that fds were sent with, so what comes
        with them is of the last message, whether that is whole or not. See unix(7).
        """
        lines = list(self._framing.feed(data))
        if not fds and not self._early_fds:
            return [(line, fds) for line in lines]
        # What came early was for the first message; what came now, for the last.
        found: list[tuple[bytes, list[int]]] = [(line, []) for line in lines]
        if found:
            found[0][1].extend(self._early_fds)
            self._early_fds = []
        if self._framing.pending or not found:
            self._early_fds += fds
            self._discard_all(self._early_fds[_FDS_A_READ:])
            del self._early_fds[_FDS_A_READ:]
        else:
            found[-1][1].extend(fds)
        return found

    def _take(self, line: bytes, fds: list[int]) -> bool:
        """Deal with one message; False if it was the last that is read."""
        if len(line) > self._policy.limits.message:
            self._discard_all(fds)
            self._refuse_long()
            return False
        try:
            command, request_id = qmp.decode_request(line)
        except qmp.BadRequestError as exc:
            self._discard_all(fds)
            self.send(exc.reply)
            return True
        request = Request(command, request_id, fds)
        if not self.negotiated and type(command) is not QmpCapabilities:
            self.send(
                qmp.encode_error(
                    "CommandNotFound",
                    "Expecting capabilities negotiation with 'qmp_capabilities'",
                    request_id,
                )
            )
            self._discard_all(fds)
        elif type(command) is InvalidateDone or not (self._requests or self._is_behind):
            self._begin(request)
        else:
            self._wait(request, _NOT_YET)
        return True

    def _begin(self, request: Request) -> None:
        """Carry out a command, now or in a task."""
        try:
            value = self._execute(request)
        except Exception as exc:
            self._finished(request, exc, None)
            return
        if type(value) is CoroutineType:
            self._wait(request, value)
        else:
            self._finished(request, None, value)

    def _wait(self, request: Request, value: object) -> None:
        """Let a command have its turn, with what `_execute` has begun of it."""
        self._requests.append(request)
        if len(self._requests) == 1:
            assert self._nursery is not None
            self._nursery.start_soon(self._work, value)

    async def _work(self, value: Any) -> None:  # noqa: ANN401
        """Carry out what waits, in its order, until nothing does."""
        while True:
            request = self._requests[0]
            try:
                if value is _NOT_YET:
                    while self._is_behind:
                        await self._progress.park()
                    value = self._execute(request)
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

    def _finished(self, request: Request, exc: Exception | None, value: object) -> None:
        """Reply. Translates errors, once: `OSError` to the peer, a bug to the log."""
        self._discard_all(request.fds)
        fd = -1
        if isinstance(value, Answer):
            fd = value.fd
            value = value.value
        try:
            if exc is None:
                reply = qmp.encode_return(value, request.id)
            elif isinstance(exc, OSError):
                reply = qmp.encode_os_error(exc, request.id)
            else:
                reply = self._bug(request, exc)
        except Exception as bug:
            # There is a value or an error, and no message can have it.
            reply = self._bug(request, bug)
            if fd >= 0:
                os.close(fd)
                fd = -1
        self.send(reply, fd)
        if self._when_answered is not None:
            action, self._when_answered = self._when_answered, None
            action()

    def _bug(self, request: Request, exc: Exception) -> bytes:
        log.error("bug in the command %s", request.command.name, exc_info=exc)
        description = "EIO: a bug; see the daemon's log"
        return qmp.encode_error("GenericError", description, request.id)

    def _discard_all(self, fds: Sequence[int]) -> None:
        for fd in fds:
            self._discard(fd)

    def _refuse_long(self) -> None:
        limit = self._policy.limits.message
        self.send(
            qmp.encode_error(
                "GenericError",
                f"EMSGSIZE: a message can have {limit} bytes (--limit message=N)",
                qmp.NO_ID,
            )
        )

    @property
    def _is_behind(self) -> bool:
        """Whether so much waits to be read that no more shall be answered."""
        return self._output_bytes > self._policy.limits.output

    # --- output ----------------------------------------------------------------------

    def send(self, data: bytes, fd: int = -1) -> None:
        """Send *data*, and *fd*, which is closed then. Never blocks, never raises."""
        if self._output and not self.reason:
            self._keep(memoryview(data), fd)
        elif (rest := self._transmit(data, fd)) is not None:
            self._keep(*rest)

    def _transmit(
        self, data: bytes | memoryview, fd: int
    ) -> tuple[memoryview, int] | None:
        """Send what the socket takes; return what is left, and *fd* if that is left."""
        sent = len(data)
        if not self.reason:
            try:
                if fd < 0:
                    sent = self._connection.send(data)
                else:
                    sent = socket.send_fds(self._connection, [data], [fd])
            except BlockingIOError:
                return memoryview(data), fd
            except OSError:
                # Its end of reading will come, too; but this is sooner.
                self.disconnect("it hung up")
        if fd >= 0:
            os.close(fd)
        return None if sent == len(data) else (memoryview(data)[sent:], -1)

    def _keep(self, data: memoryview, fd: int) -> None:
        """Let *data* wait until it is read, if it may."""
        self._output.append((data, fd))
        self._output_bytes += len(data)
        # Replies wait for output to be read; only events can come to so much. The
        # first of all may be a reply that is as long as it likes.
        behind = self._output_bytes - len(self._output[0][0])
        if behind > self._policy.limits.output:
            log.error("%s: %d bytes of events unread: disconnected", self, behind)
            self.disconnect("it does not read")
        elif not self._writing and self._nursery is not None:
            self._writing = True
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        while self._output:
            with trio.move_on_after(self._policy.ack_seconds) as patience:
                await trio.lowlevel.wait_writable(self._connection)
            if patience.cancelled_caught:
                log.error("%s: reads nothing: disconnected", self)
                self.disconnect("it does not read")
                return
            # As much as it takes: of one punch there may be thousands of events.
            while self._output:
                data, fd = self._output.popleft()
                self._output_bytes -= len(data)
                if (rest := self._transmit(data, fd)) is not None:
                    self._output.appendleft(rest)
                    self._output_bytes += len(rest[0])
                    break
            self._progressed()
        self._writing = False
        self._progressed()


def _received(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
