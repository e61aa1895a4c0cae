"""The connection of the blocking face on which commands travel.

The thread that asks sends the command and reads the answer itself: no other thread has
to be woken on the way.
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

# How many answers that nobody awaits may be unread. They and their commands must fit
# into the socket, and be fewer than the 64 commands after which the daemon stops
# reading from a peer.
UNAWAITED: Final = 32

# How long close() waits for the next of them.
UNAWAITED_SECONDS: Final = 1.0


class Commands:
    """A connection that threads take turns to ask on."""

    def __init__(self, path: str) -> None:
        """Raises `ControlError`."""
        self.path: Final = path
        # Set before the connection is shut down, to tell why it was.
        self._closed = False
        # Guards the rest, for as long as it takes to get an answer.
        self._lock = threading.Lock()
        # Whether the thread that has the lock only waits: an exception does no harm
        # then.
        self._waits = False
        # What a thread had read when it was interrupted.
        self._inbox: Final[wire.Inbox] = []
        self._connection, self._conversation = wire.dial(path)
        self._outlet: Final = Outlet(self._connection)

    def do(self, request: Request[T]) -> T:
        """Ask, and wait for the answer.

        Raises:
            OSError: what the daemon refused with; `ControlError` when it has gone.
        """
        with self._lock:
            call = self._conversation.start(request)
            try:
                self._send()
                while not call.done:
                    self._hear()
            except BaseException:
                # Ctrl-C. The next thread that asks reads this answer, too, if it can.
                self._break_off()
                self._conversation.abandon(call)
                raise
        return call.result()

    def tell(self, request: Request[None]) -> None:
        """Ask, and do not wait: the next thread that asks reads the answer, or `close`.

        A refusal is logged then. Waits only if too many answers are unread.

        Raises:
            OSError: EILSEQ as for `do`; `ControlError` when the daemon is known to have
                gone.
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
        """Wait for what the daemon says next. With the lock."""
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
        """An exception has come between. With the lock."""
        if not self._waits:
            # Nobody knows which bytes have been sent or read.
            self._conversation.end(errors.interrupted(self.path))
        self._waits = False

    def _send(self) -> None:
        try:
            wire.send_all(self._outlet, self._conversation)
        except OSError as exc:
            self._conversation.end(ConnectionLostError(f"{self.path}: {exc}"))

    def close(self) -> None:
        """End it. Threads that wait for an answer get `ClientClosedError`."""
        self._closed = True
        try:
            # Else the thread that has the lock reads what there is to read.
            if self._lock.acquire(blocking=False):
                try:
                    self._hear_out()
                finally:
                    self._lock.release()
        finally:
            # Before the lock: the thread that has it may be waiting for the daemon.
            wire.shut_down(self._connection)
            with self._lock:
                self._conversation.end(errors.closed(self.path))
                self._connection.close()

    def _hear_out(self) -> None:
        """Read the answers that nobody waits for: to log what was refused."""
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
                *(self.path, conversation.unawaited),
            )

    def after_fork(self) -> None:
        """In the child: let go of what is the parent's, and say nothing on it."""
        # The thread that held the old one is not in the child.
        self._lock = threading.Lock()
        self._conversation.disown(errors.parents(self.path))
        self._connection.close()
