"""The server of the control socket, in the daemon's trio loop."""

from __future__ import annotations

import logging
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.control import messages
from inaccfs.errors import MountError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.status import Status

log = logging.getLogger(__name__)

_ucred: Final = struct.Struct("=iII")  # pid, uid, gid; see unix(7)
_LARGEST_BACKLOG: Final = 64
_PEERS: Final = 256


@dataclass(frozen=True, slots=True)
class Actions:
    """What the commands do to the daemon."""

    status: Callable[[], Awaitable[Status]]
    quit: Callable[[], None]


def listen(path: str) -> socket.socket:
    """Bind the control socket at *path*, mode 0600; a dead one there is replaced.

    Raises:
        MountError: it cannot be bound, or a live daemon has it.
    """
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass
        else:
            raise MountError(
                f"control socket {path} is another daemon's: name one with --control"
            )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode of a socket is that of its creation: nobody may slip in before a chmod.
    umask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as exc:
        listener.close()
        raise MountError(
            f"cannot bind the control socket {path}: {exc.strerror}; name another with "
            "--control"
        ) from exc
    finally:
        os.umask(umask)
    listener.listen(_LARGEST_BACKLOG)
    return listener


class Server:
    """Accepts peers and carries out their commands."""

    def __init__(self, listener: socket.socket, actions: Actions) -> None:
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        self._actions = actions
        self._peers = 0

    async def run(self) -> None:
        """Serve until cancelled."""
        await trio.serve_listeners(self._serve_peer, [self._listener])

    async def _serve_peer(self, stream: trio.SocketStream) -> None:
        async with stream:
            if not self._may_enter(stream) or self._peers >= _PEERS:
                return
            self._peers += 1
            try:
                await self._converse(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # It has gone in the middle of a reply; nobody else need know.
                log.debug("a control peer hung up")
            finally:
                self._peers -= 1

    def _may_enter(self, stream: trio.SocketStream) -> bool:
        # SOL_SOCKET has it since connect(2); the peer cannot change it afterwards.
        credentials = stream.socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _ucred.size
        )
        _, uid, _ = _ucred.unpack(credentials)
        return uid in (0, os.geteuid())

    async def _converse(self, stream: trio.SocketStream) -> None:
        await stream.send_all(messages.greeting())
        pending = bytearray()
        negotiated = False
        async for data in stream:
            pending += data
            while (end := pending.find(b"\n")) >= 0:
                line = pending[:end]
                del pending[: end + 1]
                if line.strip():
                    reply, negotiated = await self._answer(line, negotiated)
                    await stream.send_all(reply)
            if len(pending) > messages.MESSAGE_BYTES:
                await stream.send_all(_too_long())
                return
            # QMP does not ask for line ends: a whole object will do.
            if pending.endswith(b"}") and (reply_to := _whole(pending)) is not None:
                pending.clear()
                reply, negotiated = await self._answer(reply_to, negotiated)
                await stream.send_all(reply)

    async def _answer(self, line: bytearray, negotiated: bool) -> tuple[bytes, bool]:
        try:
            command, request_id = messages.decode_request(line)
        except messages.BadRequestError as exc:
            return exc.reply, negotiated
        if not negotiated and not isinstance(command, messages.QmpCapabilities):
            return (
                messages.encode_error(
                    "CommandNotFound",
                    "Expecting capabilities negotiation with 'qmp_capabilities'",
                    request_id,
                ),
                False,
            )
        return messages.encode_return(await self._carry_out(command), request_id), True

    async def _carry_out(self, command: messages.Command) -> object:
        match command:
            case messages.QueryVersion():
                return messages.version()
            case messages.QueryCommands():
                return [{"name": name} for name in messages.COMMANDS]
            case messages.QueryStatus():
                return await self._actions.status()
            case messages.Quit():
                self._actions.quit()
        return {}


def _too_long() -> bytes:
    return messages.encode_error(
        "GenericError",
        f"EMSGSIZE: a message can have {messages.MESSAGE_BYTES} bytes",
        None,
    )


def _whole(pending: bytearray) -> bytearray | None:
    """The message in *pending* if it is a whole one, without its line end."""
    with suppress(messages.BadRequestError):
        messages.decode_request(pending)
        return bytearray(pending)
    return None
