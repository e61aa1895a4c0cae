"""Commands as people type them, `get-pfn file=/guest0 offset=0x10`, and their results.

Each value is parsed by the type of its argument: a number may be 0x10, and a text is
taken literally.
"""

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
from inaccfs.client import requests, wire
from inaccfs.client.errors import ControlError
from inaccfs.control import qmp
from inaccfs.control.messages import (
    COMMANDS,
    Answered,
    Command,
    Event,
    GetFd,
    InvalidateDone,
    QmpCapabilities,
)
from inaccfs.control.outlet import Outlet
from inaccfs.errors import InaccfsError, OptionError
from inaccfs.words import nearest, quoted

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from inaccfs.client.core import Call, Conversation

# The most commands without a reply so far. The daemon reads on while we read replies.
_AT_A_TIME: Final = 32
_READ_BYTES: Final = 1 << 16
# More than the longest command that a daemon accepts.
_LINE_BYTES: Final = 1 << 20

# The negotiation is over before a user can type.
_TYPED: Final = {
    name: kind for name, kind in COMMANDS.items() if kind is not QmpCapabilities
}

_PROMPT: Final = "inaccfs> "


# --- reading commands -----------------------------------------------------------------


def parse(words: Sequence[str]) -> tuple[Command, str | None]:
    """Make a command of its name and NAME=VALUE words; and the path of a file to send.

    Raises:
        OptionError: there is no such command, or it has no such argument.
    """
    name, *rest = words
    kind = _TYPED.get(name)
    if kind is None:
        raise OptionError(
            f"no command {name!r}{_nearest(name, _TYPED)} (inaccfs qmp -h lists them)"
        )
    fields = _fields(kind)
    arguments: dict[str, object] = {}
    path: str | None = None
    for word in rest:
        key, equals, text = word.partition("=")
        if not equals:
            raise OptionError(f"{name}: {word!r} is not NAME=VALUE")
        if kind.takes_fd and key == "fd":
            path = text
        elif key not in fields:
            raise OptionError(
                f"{name} has no argument {key!r}{_nearest(key, fields)} ({usage(kind)})"
            )
        else:
            arguments[key] = _value(f"{name}: {key}", text, fields[key].type)
    missing = [key for key, field in fields.items() if field.required]
    if kind.takes_fd:
        missing.append("fd")
    if set(missing) - {*arguments, *(["fd"] if path is not None else [])}:
        raise OptionError(f"{name} needs {' and '.join(missing)} ({usage(kind)})")
    try:
        return qmp.make_command(name, arguments), path
    except ValueError as exc:
        # "get-pfn: Expected `int` >= 0 - at `$.offset`", in the order of other
        # messages.
        text, _, place = str(exc).removeprefix(f"{name}: ").partition(" - at `$.")
        what = f"{name}: {place.rstrip('`')}" if place else name
        raise OptionError(f"{what}: {text}") from None


def _nearest(name: str, names: Sequence[str] | dict[str, Any]) -> str:
    found = nearest(name, names)
    return f": did you mean {found}?" if found else ""


def _fields(kind: type[Command]) -> dict[str, msgspec.inspect.Field]:
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, msgspec.inspect.StructType)
    return {field.encode_name: field for field in described.fields}


def _plain(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """A type without its limits, and without the None of an optional member."""
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        given = [
            one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)
        ]
        return _plain(given[0]) if len(given) == 1 else kind
    return kind


def _value(what: str, text: str, kind: msgspec.inspect.Type) -> object:
    match _plain(kind):
        case msgspec.inspect.StrType():
            return text
        case msgspec.inspect.IntType():
            try:
                return int(text, 0)
            except ValueError:
                raise OptionError(
                    f"{what}: {quoted(text)} is not a whole number"
                ) from None
        case msgspec.inspect.BoolType() if text not in ("true", "false"):
            raise OptionError(f"{what}: {quoted(text)} is not true or false")
    if text.partition("-")[0].isdecimal() and "-" in text:
        # The start of a page of query-pins, which is not a number.
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as exc:
        raise OptionError(f"{what}: {quoted(text)} is not JSON: {exc}") from None


def usage(kind: type[Command]) -> str:
    """One line: `get-pfn file=FILE offset=N [count=N]`."""
    words = [kind.name]
    for name, field in _fields(kind).items():
        match _plain(field.type):
            case msgspec.inspect.IntType():
                value = "N"
            case msgspec.inspect.BoolType():
                value = "true|false"
            case _:
                value = name.upper()
        word = f"{name}={value}"
        words.append(word if field.required else f"[{word}]")
    if kind.takes_fd:
        words.append("fd=PATH")
    return " ".join(words)


def help_text() -> str:
    """All commands, with their arguments and what they do."""
    lines = []
    for kind in _TYPED.values():
        first = (kind.__doc__ or "").partition("\n")[0]
        lines += [f"  {usage(kind)}", f"      {first}"]
    return "\n".join(lines)


# --- execution ----------------------------------------------------------------


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
    return f"{errnos.NAMES.get(error.errno or 0, 'EIO')}: {error.strerror}"
