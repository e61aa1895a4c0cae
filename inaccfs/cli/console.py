"""Sends the commands that people type, and shows what comes back."""

from __future__ import annotations

import os
import select
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs import errnos
from inaccfs.cli import output
from inaccfs.cli.commandwords import help_text, parse
from inaccfs.client import requests, wire
from inaccfs.client.errors import ControlError
from inaccfs.control.messages import Answered, Command, Event, GetFd, InvalidateDone
from inaccfs.control.outlet import Outlet
from inaccfs.errors import InaccfsError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from inaccfs.client.core import Call, Conversation

# The most commands without a reply so far. The daemon reads on while we read replies.
_AT_A_TIME: Final = 32
_READ_BYTES: Final = 1 << 16
# More than the longest command that a daemon accepts.
_LINE_BYTES: Final = 1 << 20

_PROMPT: Final = "inaccfs> "


class Console:
    """Sends commands, and prints replies and events."""

    def __init__(
        self,
        connection: socket.socket,
        conversation: Conversation,
        *,
        compact: bool = False,
        events: bool = True,
        answers: bool = False,
    ) -> None:
        """With *events* it prints events; with *answers* it answers them itself."""
        self._connection: Final = connection
        self._outlet: Final = Outlet(connection)
        self._conversation: Final = conversation
        self._compact: Final = compact
        self._events: Final = events
        self._answers: Final = answers
        # The number of commands without a reply yet.
        self._waiting = 0
        # The fds to send; they stay open as long as the console.
        self._fds: list[int] = []
        # Whether any command was refused.
        self.failed = False

    def close(self) -> None:
        """Close the fds."""
        for fd in self._fds:
            os.close(fd)

    def send_fd(self, name: str, path: str) -> None:
        """Open the file at *path* and give it a name with getfd."""
        call = self._start(GetFd(fdname=name), path)
        while not call.done:
            self._read()
        if call.error is not None:
            raise InaccfsError(f"{path}: {_describe(call.error)}")

    def once(self, words: Sequence[str]) -> None:
        """Carry out one command and print what it returns.

        Raises:
            InaccfsError: the command was refused, or does not exist.
        """
        command, path = parse(words)
        call = self._start(command, path)
        while not call.done:
            self._read()
        if call.error is not None:
            raise InaccfsError(f"{command.name}: {_describe(call.error)}")
        self._show(call)

    def watch(self) -> None:
        """Print events until the daemon ends.

        Raises:
            ControlError: the daemon has hung up.
        """
        conversation = self._conversation
        while conversation.ended is None:
            self._read()
        if conversation.shutdown is None:
            raise conversation.ended

    def interact(self) -> None:
        """Carry out commands from the standard input, one a line.

        Returns at the end of the input, after all replies. Prints errors.

        Raises:
            ControlError: the daemon has hung up.
        """
        terminal = sys.stdin.isatty()
        pending = b""
        at_end = False
        if terminal:
            output.show(_PROMPT, end="")
        while self._conversation.ended is None and not (at_end and not self._waiting):
            poller = select.poll()
            poller.register(self._connection, select.POLLIN)
            if not at_end and self._waiting < _AT_A_TIME:
                poller.register(sys.stdin.fileno(), select.POLLIN)
            ready = [fd for fd, _ in poller.poll()]
            if self._connection.fileno() in ready:
                self._read()
            if sys.stdin.fileno() in ready:
                data = _read_input()
                at_end = not data
                *lines, pending = (pending + (data or b"\n")).split(b"\n")
                for line in lines:
                    self._take(line.decode(errors="surrogateescape"))
                if len(pending) > _LINE_BYTES:
                    # The input may be like /dev/zero, which has neither lines nor an
                    # end.
                    raise InaccfsError(
                        f"the standard input has a line of over {_LINE_BYTES} bytes"
                    )
            if terminal and not self._waiting and not at_end:
                output.show(_PROMPT, end="")
        ended = self._conversation.ended
        if ended is not None and self._conversation.shutdown is None:
            raise ended

    def _take(self, line: str) -> None:
        try:
            words = shlex.split(line, comments=True)
            if not words:
                return
            if words[0] == "help":
                output.say(help_text())
                return
            command, path = parse(words)
            call = self._start(command, path)
        except ValueError as exc:
            self._complain(f"{line.strip()}: {exc}")
        except InaccfsError as exc:
            self._complain(str(exc))
        else:
            self._waiting += 1
            call.on_done = partial(self._done, call)

    def _done(self, call: Call[Any]) -> None:
        self._waiting -= 1
        error = call.error
        if error is None:
            self._show(call)
        elif not isinstance(error, ControlError):
            self._complain(f"{call.request.command.name}: {_describe(error)}")

    def _start(self, command: Command, path: str | None) -> Call[Any]:
        fd: int | None = None
        try:
            if path is not None:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            call = self._conversation.start(
                requests.Request(
                    command,
                    lambda returned: returned,
                    fd,
                    # With a limit the user wants one page only.
                    whole=getattr(command, "limit", None) is None,
                )
            )
        except OSError as exc:
            raise InaccfsError(f"{path or command.name}: {exc.strerror}") from None
        finally:
            if fd is not None:
                os.close(fd)
        wire.send_all(self._outlet, self._conversation)
        return call

    def _read(self) -> None:
        for event in self._conversation.feed(*wire.receive(self._connection)):
            if self._events:
                self._print({"event": event.name, "data": event}, compact=True)
            if self._answers:
                self._answer(event)
        wire.send_all(self._outlet, self._conversation)

    def _answer(self, event: Event) -> None:
        if isinstance(event, Answered):
            answer = InvalidateDone(notifier=event.notifier, sequence=event.sequence)
            self._conversation.start_unawaited([answer], quietly=False)

    # --- output -----------------------------------------------------------------------

    def _show(self, call: Call[Any]) -> None:
        value = call.result()
        if call.request.command.gives_fd:
            self._fds.append(value)
            value = {"fd": f"/proc/{os.getpid()}/fd/{value}"}
        self._print(value, compact=self._compact)

    def _print(self, value: object, *, compact: bool) -> None:
        data = msgspec.json.encode(value)
        output.say_json(data if compact else msgspec.json.format(data, indent=2))

    def _complain(self, text: str) -> None:
        self.failed = True
        output.complain(text)


def _read_input() -> bytes:
    try:
        return os.read(sys.stdin.fileno(), _READ_BYTES)
    except OSError as exc:
        raise InaccfsError(f"cannot read the standard input: {exc.strerror}") from None


def _describe(error: OSError) -> str:
    """The daemon's error: the errno's name, and the reason."""
    if isinstance(error, ControlError):
        return str(error)
    return f"{errnos.name(error.errno)}: {error.strerror}"
