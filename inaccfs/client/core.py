"""The protocol of one connection, for both faces, without I/O.

A face calls a method, sends what `take_outgoing` returns, and feeds what it receives.
Nothing here blocks or awaits; a face with threads calls it under a lock.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from inaccfs.client import requests
from inaccfs.client.errors import (
    ConnectionLostError,
    ControlError,
    NotControlSocketError,
    misunderstood,
    refusal,
)
from inaccfs.control import qmp
from inaccfs.control.messages import CloseFd, Event, QmpCapabilities, Shutdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inaccfs.client.requests import Request
    from inaccfs.control.messages import Command, VersionInfo
    from inaccfs.control.qmp import Reply

T = TypeVar("T")

log = logging.getLogger(__name__)

NEGOTIATE: Final = requests.no_result(QmpCapabilities())


class Outgoing(NamedTuple):
    """Bytes to send, and an fd that the first byte carries.

    The caller of `take_outgoing` owns the fd, and closes it after sending; see
    `Outlet`.
    """

    data: bytes
    # -1 if there is none.
    fd: int = -1


class Call(Generic[T]):
    """A command that was sent, and later its outcome."""

    __slots__ = (
        "_error",
        "_value",
        "abandoned",
        "after",
        "done",
        "on_done",
        "pages",
        "request",
        "returned",
    )

    def __init__(
        self, request: Request[T], on_done: Callable[[], object] | None
    ) -> None:
        self.request = request
        self.on_done = on_done
        self.done = False
        # The caller was cancelled: put references that it gets.
        self.abandoned = False
        # Messages that wait until that is done.
        self.after: list[Outgoing] = []
        # The raw return, and its pages so far.
        self.returned: Any = None
        self.pages: list[Any] = []
        self._value: T | None = None
        self._error: OSError | None = None

    @property
    def error(self) -> OSError | None:
        """The error, if it failed."""
        return self._error

    def result(self) -> T:
        """The result.

        Raises:
            OSError: it failed.
        """
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value] # done, and not failed

    def settle(self, value: T | None, error: OSError | None) -> None:
        """Set the outcome."""
        self._value, self._error = value, error
        self.done = True
        if self.on_done is not None:
            self.on_done()


class Conversation:
    """One connection to a daemon: the calls in progress, and their outcomes."""

    def __init__(self, where: str) -> None:
        # Names the daemon in messages of errors.
        self._where: Final = where
        self._framing: Final = qmp.Framing()
        self._numbers: Final = itertools.count(1)
        # Commands without an answer, by number, in the order of sending.
        self._calls: Final[dict[int, Call[Any]]] = {}
        # Received fds whose return is not parsed yet.
        self._fds: Final[deque[int]] = deque()
        self._outgoing: list[Outgoing] = []
        # The number of outstanding answers that no caller awaits.
        self.unawaited = 0
        # Whether the daemon's greeting has come, and the version in it.
        self.greeted = False
        self._version: VersionInfo | None = None
        # Why the daemon has ended, if it has said so.
        self.shutdown: str | None = None
        # The daemon's last error about the connection itself.
        self._complaint: str | None = None
        # Why the connection has ended; None while it works.
        self.ended: ControlError | None = None
        # Called once, when `ended` is set.
        self.on_end: Callable[[], object] | None = None

    def take_outgoing(self) -> list[Outgoing]:
        """Take the messages to be sent now, in order."""
        outgoing = self._outgoing
        if outgoing:
            self._outgoing = []
        return outgoing

    def start(
        self, request: Request[T], on_done: Callable[[], object] | None = None
    ) -> Call[T]:
        """Send a command; *on_done* is called when the answer arrives, perhaps at once.

        Raises:
            OSError: EILSEQ if a name is not UTF-8; EBADF.
        """
        call = Call(request, on_done)
        if self.ended is not None:
            call.settle(None, self.ended.again())
            return call
        command = request.command
        number = next(self._numbers)
        try:
            data = qmp.encode_request(command, number)
        except UnicodeEncodeError:
            raise OSError(
                errno.EILSEQ, "the name is not UTF-8: open the file and pass the fd"
            ) from None
        fd = -1 if request.fd is None else os.dup(request.fd)
        self._calls[number] = call
        outgoing = Outgoing(data, fd)
        if isinstance(command, CloseFd) and (last := self._last_of(command.fdname)):
            last.after.append(outgoing)
        else:
            self._outgoing.append(outgoing)
        return call

    def _ask(self, call: Call[Any], command: Command) -> None:
        """Send the command for the next page of *call*'s result."""
        number = next(self._numbers)
        self._calls[number] = call
        self._outgoing.append(Outgoing(qmp.encode_request(command, number)))

    def _last_of(self, file: str) -> Call[Any] | None:
        """The last call whose result will be undone under the name *file*."""
        found = None
        for call in self._calls.values():
            if call.abandoned and getattr(call.request.command, "file", None) == file:
                found = call
        return found

    def start_unawaited(self, commands: Iterable[Command], *, quietly: bool) -> None:
        """Send commands, and only log refusals; with *quietly* at a lower level."""
        for command in commands:
            call = self.start(requests.no_result(command))
            if not call.done:
                self.unawaited += 1
                call.on_done = lambda call=call: self._overhear(call, quietly)

    def _overhear(self, call: Call[Any], quietly: bool) -> None:
        self.unawaited -= 1
        _log_failure(call, quietly)

    def abandon(self, call: Call[Any]) -> None:
        """Undo an abandoned *call*, now or when its answer arrives."""
        call.on_done = None
        if not call.done:
            call.abandoned = True
        elif call.error is None:
            self._give_back(call.request.command, call.returned)

    def _give_back(self, command: Command, value: Any) -> None:  # noqa: ANN401 - of any command
        if command.gives_fd:
            os.close(value)
        self.start_unawaited(requests.undo(command, value), quietly=False)

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> list[Event]:
        """Take what was received; empty *data* is the end of the connection.

        Settles calls, and returns the events.
        """
        self._fds.extend(fds)
        events: list[Event] = []
        try:
            if not data:
                self.end(ConnectionLostError(self._why_lost()))
            for line in self._framing.feed(data):
                incoming = qmp.decode_incoming(line)
                if isinstance(incoming, qmp.Reply):
                    self._take_reply(incoming)
                elif isinstance(incoming, Event):
                    if isinstance(incoming, Shutdown):
                        self.shutdown = incoming.reason
                    events.append(incoming)
                elif isinstance(incoming, qmp.Greeting):
                    self.greeted, self._version = True, incoming.version
        except qmp.NotQmpError as exc:
            text = f"{exc}; is it an inaccfs daemon's control socket?"
            self.end(self._misunderstood(text))
        if self._fds and not any(
            call.request.command.gives_fd for call in self._calls.values()
        ):
            self._close_fds()
        return events

    def _why_lost(self) -> str:
        if self.shutdown is not None:
            return f"{self._where}: the daemon has ended ({self.shutdown})"
        if self._complaint is not None:
            return f"{self._where}: the daemon has hung up: {self._complaint}"
        if not self.greeted:
            return (
                f"{self._where}: the daemon admits only root, the mount's owner and "
                "--allow-uid, and no more peers than its limit"
            )
        return f"{self._where}: the daemon has hung up; its log says why"

    def _take_reply(self, reply: Reply) -> None:
        if reply.number is None and reply.error is not None:
            # An error without a command: the daemon could not parse a message.
            self._complaint = reply.error.desc
            return
        call = self._calls.pop(reply.number or 0, None)
        if call is None:
            raise qmp.NotQmpError(f"a reply to no command: {reply.number}")
        if reply.error is not None:
            if call.pages:
                self._give_back(call.request.command, requests.joined(call.pages))
            error = refusal(reply.error, self._where, self._version)
            call.settle(None, None if call.abandoned else error)
        else:
            self._take_return(call, reply)
        if call.done and call.after:
            self._outgoing += call.after

    def _take_return(self, call: Call[Any], reply: Reply) -> None:
        command = call.request.command
        try:
            call.returned = qmp.decode_return(type(command), reply.value)
            if isinstance(call.returned, list):
                call.returned = requests.Rows(call.returned)
                call.returned.next = reply.next
            if call.request.whole:
                more = requests.following(command, call.returned)
                if more is not None or call.pages:
                    call.pages.append(call.returned)
                if more is not None and not call.abandoned:
                    self._ask(call, more)
                    return
                if call.pages:
                    call.returned = requests.joined(call.pages)
            if command.gives_fd:
                if not self._fds:
                    # The kernel drops fds that do not fit into the table of fds.
                    error = OSError(errno.EMFILE, "no fd came: too many are open")
                    call.settle(None, error)
                    return
                call.returned = self._fds.popleft()
            if call.abandoned:
                self._give_back(command, call.returned)
                call.settle(None, None)
            else:
                call.settle(call.request.interpret(call.returned), None)
        except qmp.NotQmpError as exc:
            call.settle(None, self._misunderstood(str(exc)))

    def _misunderstood(self, text: str) -> NotControlSocketError:
        return misunderstood(self._where, self._version, text)

    def end(self, error: ControlError) -> None:
        """End the conversation: present and future callers get *error*."""
        if self.ended is not None:
            return
        self.ended = error
        calls = list(self._calls.values())
        self._calls.clear()
        for outgoing in itertools.chain(
            self._outgoing, *(call.after for call in calls)
        ):
            if outgoing.fd >= 0:
                os.close(outgoing.fd)
        self._outgoing.clear()
        self._close_fds()
        for call in calls:
            call.settle(None, error.again())
        if self.on_end is not None:
            self.on_end()

    def disown(self, error: ControlError) -> None:
        """After a fork, in the child: `end`, without calling the parent's callers."""
        self._calls.clear()
        self.unawaited = 0
        self.on_end = None
        self.end(error)

    def _close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.popleft())


def _log_failure(call: Call[Any], quietly: bool) -> None:
    error = call.error
    if error is None or isinstance(error, ControlError):
        return
    log.log(
        logging.DEBUG if quietly else logging.WARNING,
        "%s: %s",
        call.request.command.name,
        error.strerror,
    )
