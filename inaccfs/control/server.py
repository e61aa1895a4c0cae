"""The server of the control socket, in the daemon's trio loop."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.control import messages
from inaccfs.errors import MountError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

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
    _remove_dead(path)
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


def _remove_dead(path: str) -> None:
    """Make room where a daemon that was killed has left its socket."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        # There is none; or bind(2) will say what is wrong with the path.
        return
    if not stat.S_ISSOCK(mode):
        raise MountError(
            f"control socket {path}: a file is there; name another with --control"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            # A socket of another kind, or one that we may not connect to.
            pass
    raise MountError(
        f"control socket {path} is another daemon's: name another with --control"
    )


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
            for line in _messages(pending):
                if len(line) > messages.MESSAGE_BYTES:
                    await stream.send_all(_too_long())
                    return
                command, reply = await self._answer(line, negotiated)
                negotiated = negotiated or isinstance(command, messages.QmpCapabilities)
                await stream.send_all(reply)
                if isinstance(command, messages.Quit):
                    # Not before the reply: it is the last that this loop sends.
                    self._actions.quit()
            if len(pending) > messages.MESSAGE_BYTES:
                await stream.send_all(_too_long())
                return

    async def _answer(
        self, line: bytearray, negotiated: bool
    ) -> tuple[messages.Command | None, bytes]:
        """Carry out a message; return its command, if it was carried out, and reply."""
        try:
            command, request_id = messages.decode_request(line)
        except messages.BadRequestError as exc:
            return None, exc.reply
        if not negotiated and not isinstance(command, messages.QmpCapabilities):
            return None, messages.encode_error(
                "CommandNotFound",
                "Expecting capabilities negotiation with 'qmp_capabilities'",
                request_id,
            )
        try:
            value = await self._carry_out(command)
        except OSError as exc:
            name = errno.errorcode.get(exc.errno or errno.EIO, "EIO")
            description = f"{name}: {exc.strerror}"
        except Exception:
            log.exception("bug in the command %s", command.name)
            description = "EIO: a bug; see the daemon's log"
        else:
            return command, messages.encode_return(value, request_id)
        return None, messages.encode_error("GenericError", description, request_id)

    async def _carry_out(self, command: messages.Command) -> object:
        match command:
            case messages.QueryVersion():
                return messages.version()
            case messages.QueryCommands():
                return [{"name": name} for name in messages.COMMANDS]
            case messages.QueryStatus():
                return await self._actions.status()
        return {}


def _too_long() -> bytes:
    return messages.encode_error(
        "GenericError",
        f"EMSGSIZE: a message can have {messages.MESSAGE_BYTES} bytes",
        messages.NO_ID,
    )


def _messages(pending: bytearray) -> Iterator[bytearray]:
    """Take the messages that are whole out of *pending*.

    QMP does not ask for line ends: a whole object will do.
    """
    while (end := pending.find(b"\n")) >= 0:
        line = pending[:end]
        del pending[: end + 1]
        if line.strip():
            yield line
    if messages.is_whole(pending):
        line = pending[:]
        pending.clear()
        yield line
