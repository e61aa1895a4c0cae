"""The messages of the control socket, in the QEMU Machine Protocol.

One definition for the server and for whoever talks to it. No I/O here. Decoding has
two steps, so that a bad argument still gets a reply with its id.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from inaccfs._version import __version__

MESSAGE_BYTES: Final = 65536
"""The longest message that a peer may send."""


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the commands. An unknown argument is an error, as in QMP."""

    name: ClassVar[str]


class QmpCapabilities(Command, frozen=True):
    """Ends the negotiation; no capabilities are offered."""

    name: ClassVar[str] = "qmp_capabilities"

    enable: list[str] = []


class QueryVersion(Command, frozen=True):
    """Which inaccfs this is."""

    name: ClassVar[str] = "query-version"


class QueryCommands(Command, frozen=True):
    """The names of all commands."""

    name: ClassVar[str] = "query-commands"


class QueryStatus(Command, frozen=True):
    """What `inaccfs status` shows."""

    name: ClassVar[str] = "query-status"


class Quit(Command, frozen=True):
    """End the daemon and unmount."""

    name: ClassVar[str] = "quit"


COMMANDS: Final[dict[str, type[Command]]] = {
    command.name: command
    for command in (QmpCapabilities, QueryVersion, QueryCommands, QueryStatus, Quit)
}

# Whatever JSON the peer has chosen, told back to the letter; empty if it has none.
RequestId = msgspec.Raw
NO_ID: Final = msgspec.Raw(b"")


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    execute: str
    # Raw, and decoded second: a bad argument must not cost us the id to reply to.
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    id: RequestId = NO_ID


class BadRequestError(Exception):
    """A message cannot be carried out; `reply` is what its sender is told."""

    def __init__(self, kind: str, description: str, request_id: RequestId) -> None:
        super().__init__(description)
        self.reply: Final = encode_error(kind, description, request_id)


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_decoders = {name: msgspec.json.Decoder(command) for name, command in COMMANDS.items()}


def decode_request(
    line: bytes | bytearray,
) -> tuple[Command, RequestId]:
    """Read one message.

    Raises:
        BadRequestError: it is none, or no command that there is.
    """
    try:
        envelope = _envelope_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequestError(
            "GenericError", f"EINVAL: {exc}; send one JSON object a line", NO_ID
        ) from exc
    decoder = _decoders.get(envelope.execute)
    if decoder is None:
        raise BadRequestError(
            "CommandNotFound",
            f"The command {envelope.execute} has not been found",
            envelope.id,
        )
    try:
        return decoder.decode(envelope.arguments), envelope.id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequestError("GenericError", f"EINVAL: {exc}", envelope.id) from exc


_any_decoder = msgspec.json.Decoder(msgspec.Raw)


def is_whole(data: bytes | bytearray) -> bool:
    """Whether *data*, which has no line end, is to be answered all the same.

    It is when it is a whole JSON object, and when it is too deep to tell: then it is
    to be refused, for no end of it could be recognised either.
    """
    if not data.endswith(b"}"):
        return False
    try:
        _any_decoder.decode(data)
    except msgspec.DecodeError:
        return False
    except RecursionError:
        return True
    return True


def _with_id(message: dict[str, object], request_id: RequestId) -> bytes:
    if bytes(request_id):
        message["id"] = request_id
    return msgspec.json.encode(message) + b"\r\n"


def encode_return(value: object, request_id: RequestId) -> bytes:
    """The reply to a command that was carried out."""
    return _with_id({"return": value}, request_id)


def encode_error(kind: str, description: str, request_id: RequestId) -> bytes:
    """The reply to one that was not; *kind* is the class of QMP."""
    return _with_id({"error": {"class": kind, "desc": description}}, request_id)


def version() -> dict[str, object]:
    """What query-version returns: QMP's shape, inaccfs's numbers."""
    major, minor, micro = (int(part) for part in __version__.split(".")[:3])
    return {
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": "inaccfs",
    }


def greeting() -> bytes:
    """What a peer gets first."""
    return _with_id({"QMP": {"version": version(), "capabilities": []}}, NO_ID)
