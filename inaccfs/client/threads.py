"""The connection of the blocking face for notifiers, and its thread.

The thread reads and runs the callbacks, one at a time: no other thread is woken between
an event and its answer. Commands have another connection: see commands.py.
"""

from __future__ import annotations

import errno
import itertools
import logging
import threading
from typing import TYPE_CHECKING, Final

from inaccfs.client import errors, requests, wire
from inaccfs.client.errors import ConnectionLostError
from inaccfs.client.notifying import Notifiers, Registered, raise_or_note
from inaccfs.control.messages import CloseFd
from inaccfs.control.outlet import Outlet
from inaccfs.errors import starting_thread

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from inaccfs.client.core import Call
    from inaccfs.client.notifying import Callbacks, Range, Registration
    from inaccfs.control.messages import Event

log = logging.getLogger(__name__)

# How long close() waits for a callback: as long as a daemon does by default.
CALLBACK_SECONDS: Final = 10.0


class Listener:
    """One connection, its notifiers, and their thread."""

    def __init__(self, path: str, lost: Listener | None) -> None:
        """Take over exceptions of callbacks from a *lost* connection.

        Raises:
            ControlError: the daemon has ended, or has too many peers.
            InaccfsError: no thread can be started.
        """
        self._path: Final = path
        self._connection, self._conversation = wire.dial(path)
        self._outlet: Final = Outlet(self._connection)
        # Guards the conversation, the notifiers, and what is sent; never held while a
        # callback runs or any thread waits.
        self._lock = threading.Lock()
        self._notifiers: Final = Notifiers(self._conversation)
        self._lost: Final = lost
        self._names = itertools.count()
        # A daemon thread: the interpreter may exit while a client is still open.
        self._thread: Final = threading.Thread(
            target=self._run, name="inaccfs notifiers", daemon=True
        )
        try:
            with starting_thread():
                self._thread.start()
        except BaseException:
            self._connection.close()
            raise

    @property
    def over(self) -> bool:
        """Whether no notifier can be registered any more."""
        return self._conversation.ended is not None

    def is_here(self) -> bool:
        """Whether the caller is a callback."""
        return threading.current_thread() is self._thread

    # --- for other threads ------------------------------------------------------------

    def register(
        self,
        file: str,
        fd: int | None,
        callbacks: Callbacks,
        bound: Range | None,
        *,
        weak: bool = False,
    ) -> tuple[Registration, threading.Event]:
        """Register a notifier; the event is set once it is unregistered.

        *file* is a path, unless *fd* is an fd of the file. With *bound* the notifier is
        for that range; if it is *weak*, it does not keep the file open.
        """
        if self.is_here():
            raise OSError(
                errno.EDEADLK, "a callback cannot register: it would wait for itself"
            )
        left, answered = threading.Event(), threading.Event()
        # Send all at once: the thread that reads answers may be in a callback for long.
        with self._lock:
            named: Call[None] | None = None
            if fd is not None:
                file = f"fd{next(self._names)}"
                named = self._conversation.start(requests.get_fd(file, fd, weak=weak))
            call = self._conversation.start(
                self._notifiers.register(file, callbacks, left.set, bound),
                answered.set,
            )
            if named is not None:
                # The notifier keeps the file open.
                self._conversation.start_unawaited([CloseFd(fdname=file)], quietly=True)
            self._send()
        try:
            answered.wait()
        except BaseException:
            with self._lock:
                self._notifiers.abandon(call)
                self._send()
            raise
        if named is not None and named.error is not None:
            raise named.error
        return call.result(), left

    def commit(self, registration: Registration) -> None:
        """Make a prepared notifier effective. After an `OSError` it is removed."""
        if self.is_here():
            raise OSError(errno.EDEADLK, "a callback cannot commit: it would wait")
        answered = threading.Event()
        with self._lock:
            call = self._conversation.start(
                self._notifiers.commit(registration), answered.set
            )
            self._send()
        answered.wait()
        if call.error is not None:
            with self._lock:
                self._notifiers.forget(registration)
        call.result()

    def leave(self, registration: Registration) -> None:
        """Unregister as soon as no callback of it runs; do not wait for that."""
        with self._lock:
            self._notifiers.leave(registration)
            self._send()

    def _send(self) -> None:
        """Send all messages; with the lock."""
        try:
            wire.send_all(self._outlet, self._conversation)
        except BaseException as exc:
            # The rest of a message that was sent in part cannot follow.
            interrupted = not isinstance(exc, OSError)
            self._conversation.end(
                errors.interrupted(self._path)
                if interrupted
                else ConnectionLostError(f"{self._path}: {exc}")
            )
            wire.shut_down(self._connection)
            if interrupted:
                raise

    def take_raised(self) -> BaseException | None:
        """The first exception of callbacks that no caller has got."""
        with self._lock:
            raised = self._notifiers.take_raised()
        return raised or (self._lost.take_raised() if self._lost else None)

    def close(self) -> None:
        """End the connection, and wait for a callback that is running."""
        with self._lock:
            self._conversation.end(errors.closed(self._path))
            wire.shut_down(self._connection)
        if self._lost is not None:
            self._lost.close()
        if self.is_here():
            return
        self._thread.join(CALLBACK_SECONDS)
        if self._thread.is_alive():
            log.error("a callback has not returned: the client was closed anyway")

    def after_fork(self) -> None:
        """In the child, which has no such thread: close the parent's connection."""
        self._lock = threading.Lock()
        self._conversation.disown(errors.parents(self._path))
        self._connection.close()

    # --- the thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self.over:
                data, fds = wire.receive(self._connection)
                with self._lock:
                    events = self._conversation.feed(data, fds)
                    self._send()
                for event in events:
                    self._take(event)
        finally:
            with self._lock:
                # If it has not ended yet, this is a bug, whose traceback follows.
                lost = ConnectionLostError(f"{self._path}: the client has failed")
                self._conversation.end(lost)
                self._connection.close()

    def _take(self, event: Event) -> None:
        with self._lock:
            due = self._notifiers.begin(event)
            self._send()
        if due is None:
            return
        raised: BaseException | None = None
        try:
            due.call()
        except BaseException as exc:
            raised = exc
        with self._lock:
            self._notifiers.finish(due, raised)
            self._send()


class Notifier(Registered):
    """A registered notifier; the end of its with block unregisters it."""

    def __init__(
        self, listener: Listener, registration: Registration, left: threading.Event
    ) -> None:
        """Use `File.register_notifier`."""
        super().__init__(registration)
        self._listener: Final = listener
        self._left: Final = left

    def commit(self) -> None:
        """Make the binding that `File.bind` has prepared effective.

        EEXIST or EINVAL for pages that are already bound, and then the binding is
        removed; ENOENT if it is already effective.
        """
        self._listener.commit(self._registration)

    def unregister(self) -> None:
        """Return when no callback runs, and none will.

        In a callback it returns at once: no more callbacks are called, and the daemon
        removes the notifier when the running one has returned.

        Raises:
            BaseException: the first exception of its callbacks.
            ConnectionLostError: the daemon had hung up, so events may have been missed.
        """
        raise_or_note(self._unregister(), None)

    def _unregister(self) -> BaseException | None:
        self._listener.leave(self._registration)
        if self._listener.is_here():
            return None
        self._left.wait()
        return self._registration.take_error()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        raise_or_note(self._unregister(), error)
