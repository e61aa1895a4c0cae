"""The QEMU Machine Protocol: messages as bytes, for both ends of the socket.

No I/O here. Decoding has two steps, so that a bad argument still gets a reply with its
id, and so that a reply can be decoded when the command that it answers is known. See
QEMU's docs/interop/qmp-spec.rst.
"""

from __future__ import annotations

import errno
import re
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs import errnos
from inaccfs.control import messages
from inaccfs.control.messages import COMMANDS, EVENTS, Command, Event
from inaccfs.errors import PageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Any JSON that the peer has chosen, repeated literally; empty if it has chosen none.
RequestId = msgspec.Raw
NO_ID: Final = msgspec.Raw(b"")

_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encoder: Final = msgspec.json.Encoder()


_any_decoder: Final = msgspec.json.Decoder(msgspec.Raw)


class _Decoders(dict[str, msgspec.json.Decoder[Any]]):
    """Decoders of types by name. Each is made when it is first needed.

    Most peers use few of them, and making all of them takes long.
    """

    def __init__(self, types: Mapping[str, Any]) -> None:
        super().__init__()
        self._types: Final = types

    def __missing__(self, name: str) -> msgspec.json.Decoder[Any]:
        # The caller handles a KeyError.
        made = self[name] = msgspec.json.Decoder(self._types[name])
        return made


class Framing:
    """Splits a server's output into messages. No line has two messages.

    The last message needs no line end if its object is complete.
    """

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add received data; return the complete messages."""
        if not self._pending and data.find(b"\n") + 1 == len(data):
            # The usual case: one message.
            if not data.isspace():
                yield data
            return
        pending = self._pending
        # The earlier data has no line end.
        looked = len(pending)
        pending += data
        while (end := pending.find(b"\n", looked)) >= 0:
            line = bytes(pending[:end])
            del pending[: end + 1]
            looked = 0
            if line and not line.isspace():
                yield line
        if pending.endswith(b"}") and _is_whole(pending):
            line = bytes(pending)
            pending.clear()
            yield line


def _is_whole(data: bytearray) -> bool:
    """Whether *data* is JSON, or is nested too deeply to check, and will be refused."""
    try:
        _any_decoder.decode(data)
    except msgspec.DecodeError:
        return False
    except RecursionError:
        pass
    return True


# --- commands: from a client to the server ------------------------------------------


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    execute: str
    # Raw, and decoded second: the reply to a bad argument must have its id.
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    id: RequestId = NO_ID


class BadRequestError(Exception):
    """A message cannot be executed; `reply` is the answer to its sender."""

    def __init__(self, kind: str, description: str, request_id: RequestId) -> None:
        super().__init__(description)
        self.reply: Final = encode_error(kind, description, request_id)


class MalformedError(BadRequestError):
    """It is not one JSON object with the members of a command."""


_envelope_decoder: Final = msgspec.json.Decoder(_Envelope)
_command_decoders: Final = _Decoders(COMMANDS)


def decode_request(line: bytes | bytearray) -> tuple[Command, RequestId]:
    """Read one message.

    Raises:
        MalformedError: it is not a message, or more than one.
        BadRequestError: there is no such command.
    """
    try:
        envelope = _envelope_decoder.decode(line)
        # Returned as it is, and not used otherwise.
        if not (request_id := bytes(envelope.id)).isascii():
            request_id.decode()
    except _NOT_JSON as exc:
        raise MalformedError("GenericError", f"EINVAL: {exc}", NO_ID) from exc
    try:
        decoder = _command_decoders[envelope.execute]
    except KeyError:
        raise BadRequestError(
            "CommandNotFound",
            f"The command {envelope.execute} has not been found",
            envelope.id,
        ) from None
    try:
        return decoder.decode(envelope.arguments), envelope.id
    except _NOT_JSON as exc:
        raise BadRequestError("GenericError", f"EINVAL: {exc}", envelope.id) from exc


def encode_request(command: Command, number: int) -> bytes:
    """Encode a command for the server; its reply will carry *number*."""
    message = {"execute": command.name, "arguments": command, "id": number}
    return _encoder.encode(message) + b"\n"


def make_command(name: str, arguments: object) -> Command:
    """Make a command from its name, for people who type commands.

    Raises:
        ValueError: there is no such command, or it does not take these arguments.
    """
    kind = COMMANDS.get(name)
    if kind is None:
        raise ValueError(f"there is no command {name!r}")
    try:
        return msgspec.convert(arguments, kind)
    except msgspec.ValidationError as exc:
        raise ValueError(f"{name}: {exc}") from exc


# --- replies and events: from the server to a client --------------------------------


def _with_id(message: dict[str, object], request_id: RequestId) -> bytes:
    if bytes(request_id):
        message["id"] = request_id
    return _encoder.encode(message) + b"\r\n"


def encode_return(
    value: object, request_id: RequestId, next_start: int | None = None
) -> bytes:
    """The reply to a command that was executed.

    *next_start* is where the next page begins, for commands that return an array.
    """
    if next_start is None:
        return _with_id({"return": value}, request_id)
    return _with_id({"return": value, "next": next_start}, request_id)


def encode_error(
    kind: str, description: str, request_id: RequestId, offset: int | None = None
) -> bytes:
    """The reply to a command that failed; *kind* is the class of QMP.

    *offset* is the page that caused the failure, if one did.
    """
    error: dict[str, object] = {"class": kind, "desc": description}
    if offset is not None:
        error["offset"] = offset
    return _with_id({"error": error}, request_id)


def encode_event(event: Event) -> bytes:
    """Encode an event, with the present time."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    timestamp = {"seconds": seconds, "microseconds": rest // 1000}
    message = {"event": event.name, "data": event, "timestamp": timestamp}
    return _encoder.encode(message) + b"\r\n"


def greeting() -> bytes:
    """The first message to a peer."""
    return _with_id({"QMP": {"version": messages.version(), "capabilities": []}}, NO_ID)


class ErrorInfo(msgspec.Struct, frozen=True):
    """Why a command failed."""

    kind: str = msgspec.field(name="class")
    desc: str
    # The page that caused the failure, if one did.
    offset: int | None = None


class _Incoming(msgspec.Struct, frozen=True):
    returned: msgspec.Raw | msgspec.UnsetType = msgspec.field(
        name="return", default=msgspec.UNSET
    )
    error: ErrorInfo | None = None
    event: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"{}")
    id: int | None = None
    next: int | None = None
    greeting: msgspec.Raw | msgspec.UnsetType = msgspec.field(
        name="QMP", default=msgspec.UNSET
    )


class Greeting(msgspec.Struct, frozen=True):
    """The first message of a server."""

    # The version of inaccfs; None if it is another program, or does not say.
    version: messages.VersionInfo | None


class _Welcome(msgspec.Struct, frozen=True):
    version: messages.VersionInfo


class Reply(msgspec.Struct, frozen=True):
    """The answer to a command; `value` is read by `decode_return`."""

    number: int | None
    value: msgspec.Raw
    error: ErrorInfo | None
    # Where the next page begins, if the command returns an array.
    next: int | None = None


class NotQmpError(Exception):
    """The other end does not speak QMP."""


_incoming_decoder: Final = msgspec.json.Decoder(_Incoming)
_welcome_decoder: Final = msgspec.json.Decoder(_Welcome)
_event_decoders: Final = _Decoders(EVENTS)
_return_decoders: Final = _Decoders(
    {name: command.returns for name, command in COMMANDS.items()}
)


def decode_incoming(line: bytes) -> Greeting | Reply | Event | None:
    """Decode a message of a server; None is an unknown event.

    Raises:
        NotQmpError: it is not a message of QMP.
    """
    try:
        found = _incoming_decoder.decode(line)
        if found.event is not None:
            if found.event not in EVENTS:
                return None
            event: Event = _event_decoders[found.event].decode(found.data)
            return event
    except _NOT_JSON as exc:
        raise NotQmpError(f"not QMP: {exc}") from exc
    if found.error is not None:
        return Reply(found.id, NO_ID, found.error)
    if found.returned is not msgspec.UNSET:
        return Reply(found.id, found.returned, None, found.next)
    if found.greeting is not msgspec.UNSET:
        return Greeting(_version(found.greeting))
    raise NotQmpError("not QMP: neither a greeting, a return, an error nor an event")


def _version(greeting: msgspec.Raw) -> messages.VersionInfo | None:
    try:
        found = _welcome_decoder.decode(greeting).version
    except _NOT_JSON:
        return None
    return found if found.package == messages.version().package else None


def decode_return(command: type[Command], value: msgspec.Raw) -> Any:  # noqa: ANN401 - its type is the command's matter
    """Decode the return of *command*.

    Raises:
        NotQmpError: the server has returned something else.
    """
    try:
        return _return_decoders[command.name].decode(value)
    except _NOT_JSON as exc:
        raise NotQmpError(f"{command.name} returned something else: {exc}") from exc


def encode_os_error(exc: OSError, request_id: RequestId) -> bytes:
    """The reply to a command that failed: its text begins with the errno's name."""
    name = errnos.NAMES.get(exc.errno or errno.EIO, "EIO")
    offset = exc.offset if isinstance(exc, PageError) else None
    description = f"{name}: {exc.strerror}"
    return encode_error("GenericError", description, request_id, offset)


_ERRNO: Final = re.compile(r"(E[A-Z0-9]+): (.*)", re.DOTALL)


def errno_name(desc: str) -> tuple[str | None, str]:
    """Split an error's text into the errno's name, if it has one, and the rest."""
    found = _ERRNO.fullmatch(desc)
    return (found[1], found[2]) if found else (None, desc)
