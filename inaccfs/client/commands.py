"""The connection for the commands of the blocking face.

The calling thread sends the command and reads the answer itself, so no other thread has
to be woken.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from inaccfs.client import errors, wire
from inaccfs.client.errors import ConnectionLostError
from inaccfs.control.outlet import Outlet

if TYPE_CHECKING:
    from inaccfs.client.requests import Request

T = TypeVar("T")

log = logging.getLogger(__name__)

# The limit of unread answers that no thread awaits. They and their commands must fit
# into the socket, and be fewer than the 64 commands after which the daemon stops
# reading from a peer.
UNAWAITED: Final = 32

# How long close() waits for the next unread answer.
UNAWAITED_SECONDS: Final = 1.0


class Commands:
    """A connection that threads take turns to ask on."""

    def __init__(self, path: str) -> None:
        """Raises `ControlError`."""
        self.path: Final = path
        # Set before the connection is shut down, as its reason.
        self._closed = False
        # Guards the rest. Held until the answer has come.
        self._lock = threading.Lock()
        # Whether the thread with the lock only waits, so that an exception does no
        # harm.
        self._waits = False
        # Data that an interrupted thread had read.
        self._inbox: Final[wire.Inbox] = []
        self._connection, self._conversation = wire.dial(path)
        self._outlet: Final = Outlet(self._connection)

    def do(self, request: Request[T]) -> T:
        """Send a command, and wait for the answer.

        Raises:
            OSError: the daemon's refusal; `ControlError` if the daemon has ended.
        """
        with self._lock:
            call = self._conversation.start(request)
            try:
                self._send()
                while not call.done:
                    self._hear()
            except BaseException:
                # Ctrl-C. The next thread that sends a command reads this answer, too,
                # if it can.
                self._break_off()
                self._conversation.abandon(call)
                raise
        return call.result()

    def post(self, request: Request[None]) -> None:
        """Send a command without waiting; the next one, or `close`, reads the answer.

        A refusal is logged then. This waits only if too many answers are unread.

        Raises:
            OSError: EILSEQ as for `do`; `ControlError` if the daemon is known to have
                ended.
        """
        conversation = self._conversation
        with self._lock:
            conversation.start_unawaited([request.command], quietly=False)
            try:
                self._send()
                while conversation.unawaited > UNAWAITED:
                    self._hear()
            except BaseException:
                self._break_off()
                raise
            if conversation.ended is not None:
                raise conversation.ended.again()

    def _hear(self) -> None:
        """Wait for the next data from the daemon. With the lock."""
        if not self._inbox:
            self._waits = True
            wire.read(self._connection, self._inbox)
            self._waits = False
        data, fds = wire.take(self._inbox)
        if not data and self._closed:
            self._conversation.end(errors.closed(self.path))
        self._conversation.feed(data, fds)
        self._send()

    def _break_off(self) -> None:
        """Handle an exception in the middle of an exchange. With the lock."""
        if not self._waits:
            # It is unknown which bytes have been sent or read.
            self._conversation.end(errors.interrupted(self.path))
        self._waits = False

    def _send(self) -> None:
        try:
            wire.send_all(self._outlet, self._conversation)
        except OSError as exc:
            self._conversation.end(ConnectionLostError(f"{self.path}: {exc}"))

    def close(self) -> None:
        """End the connection. Waiting threads get `ClientClosedError`."""
        self._closed = True
        try:
            # Otherwise the thread that has the lock reads the rest.
            if self._lock.acquire(blocking=False):
                try:
                    self._hear_out()
                finally:
                    self._lock.release()
        finally:
            # Before taking the lock: the thread that has it may be waiting for the
            # daemon.
            wire.shut_down(self._connection)
            with self._lock:
                self._conversation.end(errors.closed(self.path))
                self._connection.close()

    def _hear_out(self) -> None:
        """Read the answers that no thread awaits, to log refusals."""
        conversation = self._conversation
        if not conversation.unawaited:
            return
        wire.set_deadline(self._connection, UNAWAITED_SECONDS)
        try:
            while conversation.unawaited:
                self._hear()
        except BlockingIOError:
            log.warning(
                "%s: closed, with answers outstanding: %d",
                self.path,
                conversation.unawaited,
            )

    def after_fork(self) -> None:
        """In the child: close the parent's connection without sending anything."""
        # The thread that held the old lock does not exist in the child.
        self._lock = threading.Lock()
        self._conversation.disown(errors.parents(self.path))
        self._connection.close()
