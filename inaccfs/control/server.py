"""The server of the control socket, in the daemon's trio loop."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final

import trio

from inaccfs import readiness, runtime
from inaccfs.control import messages, qmp
from inaccfs.control.caller import Caller
from inaccfs.control.closings import STRANGERS
from inaccfs.control.context import Actions, Context
from inaccfs.control.limits import Policy
from inaccfs.control.peer import Peer
from inaccfs.control.serverparts import ServerParts
from inaccfs.control.session import Session
from inaccfs.errors import MountError
from inaccfs.syscalls import peer_credentials
from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from inaccfs.control.closings import Receiver
    from inaccfs.control.mountfiles import Files
    from inaccfs.shim.superblock import Superblock

log = logging.getLogger(__name__)

_LARGEST_BACKLOG: Final = 1024

# How long to wait for free fds if there is none for a new peer.
_TRY_AGAIN_SECONDS: Final = 0.1

# While more connections than this are being closed, no peer is admitted.
_CLOSING_CONNECTIONS: Final = 128


def listen(path: str, *, everybody: bool = False) -> socket.socket:
    """Bind the control socket at *path*; replaces a dead one.

    Its mode is 0600, or 0666 for *everybody*; uids are checked for each connection.

    Raises:
        MountError: it cannot be bound, or a live daemon uses it.
    """
    _remove_dead(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    # By umask, not by a later chmod(2): no process may connect in between.
    umask = os.umask(0o111 if everybody else 0o177)
    try:
        listener.bind(path)
    except OSError as exc:
        listener.close()
        raise MountError(
            f"cannot bind the control socket {path}: {exc.strerror or exc}; name "
            "another with --control"
        ) from exc
    finally:
        os.umask(umask)
    listener.listen(_LARGEST_BACKLOG)
    return listener


def _remove_dead(path: str) -> None:
    """Remove the socket that a killed daemon has left at *path*."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        # There is nothing; or bind(2) will fail with the right error.
        return
    if not stat.S_ISSOCK(mode):
        raise MountError(
            f"control socket {path}: a file is there; name another with --control"
        )
    if not runtime.remove_dead_socket(path):
        raise MountError(
            f"control socket {path} is another daemon's: name another with --control"
        )


class Server:
    """Accepts connections, and makes a `Peer` and a `Session` for each."""

    def __init__(
        self,
        listener: socket.socket,
        actions: Actions,
        files: Files,
        superblock: Superblock,
        policy: Policy | None = None,
        *,
        receiver: Receiver,
        device: str = "",
    ) -> None:
        """Take a non-blocking *listener*.

        *receiver* receives the fds that peers send, *device* is the mount's number.
        """
        policy = policy or Policy()
        self._listener: Final = listener
        self._policy: Final = policy
        self.context: Final = Context(superblock, files, actions, policy)
        self.parts: Final = ServerParts(policy, receiver, device)
        # The connected peers.
        self.peers: Final[dict[Peer, Session]] = {}
        self._numbers: Final = itertools.count(1)

    async def run(self) -> None:
        """Serve until cancelled. Call it once: it closes the listener and the peers."""
        parts = self.parts
        with closing(parts.readers):
            async with trio.open_nursery() as nursery:
                parts.closings.nursery = nursery
                nursery.start_soon(parts.readers.run)
                nursery.start_soon(self.context.tracers.run)
                await self._accept(nursery)

    async def _accept(self, nursery: trio.Nursery) -> None:
        trouble = Trouble()
        closings = self.parts.closings
        while True:
            try:
                connection = self._next()
                if connection is None:
                    await readiness.wait_readable(self._listener)
                    continue
            except OSError as exc:
                # The connected peers continue; when one disconnects there is room.
                trouble.met(f"no new control peer: {exc.strerror}")
                await trio.sleep(_TRY_AGAIN_SECONDS)
                continue
            try:
                self._welcome(connection, nursery)
            except Exception as exc:
                # Any bug ends the connection of this peer only.
                trouble.met(f"a new control peer is not let in: {exc}")
                closings.close_soon(connection, STRANGERS)
            else:
                trouble.over()
            while closings.connections > _CLOSING_CONNECTIONS:
                # Each connection has an fd, and files need fds, too.
                trouble.met("no new control peers: old ones are still being closed")
                await trio.sleep(_TRY_AGAIN_SECONDS)

    def _next(self) -> socket.socket | None:
        """A new connection, if there is one."""
        while True:
            try:
                return self._listener.accept()[0]
            except BlockingIOError:
                return None
            except ConnectionAbortedError:
                pass

    def _welcome(self, connection: socket.socket, nursery: trio.Nursery) -> None:
        connection.setblocking(False)
        # Keep out-of-band data in the stream. Otherwise the kernel would drop it, and
        # its fds, when we read past it. See unix(7).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        # SOL_SOCKET has it since connect(2); the peer cannot change it afterwards.
        pid, uid, gid = peer_credentials(connection)
        closings = self.parts.closings
        if uid not in (0, os.geteuid()) and uid not in self._policy.allowed_uids:
            log.info("a peer of uid %d (pid %d) was not let in", uid, pid)
            closings.close_soon(connection, STRANGERS)
            return
        limit = self._policy.limits.peers
        if len(self.peers) + closings.connections >= limit:
            description = (
                f"EMFILE: {limit} peers are connected already (--limit peers=N)"
            )
            reply = qmp.encode_error("GenericError", description, qmp.NO_ID)
            # A new socket has room for this, unless its peer has already hung up.
            with suppress(OSError):
                connection.send(reply)
            closings.close_soon(connection, uid)
            return
        caller = Caller(next(self._numbers), pid, uid, gid)
        peer = Peer(connection, caller, self.parts)
        session = self.peers[peer] = Session(self.context, caller, peer.outlet)
        log.info("%s: connected", peer)
        nursery.start_soon(self._serve, peer, session, connection, uid)

    async def _serve(
        self, peer: Peer, session: Session, connection: socket.socket, uid: int
    ) -> None:
        try:
            try:
                await peer.converse(session)
            finally:
                await session.close()
        except Exception:
            # A bug must not end the mount, and with it every connection.
            log.exception("bug in the conversation with %s", peer)
        finally:
            del self.peers[peer]
            log.info("%s: gone%s", peer, peer.why_gone)
            self.parts.closings.close_soon(connection, uid)

    def shut_down(self, reason: str) -> None:
        """Tell all peers that the daemon ends."""
        self.context.tracers.flush()
        event = qmp.encode_event(messages.Shutdown(reason=reason))
        for peer, session in list(self.peers.items()):
            if session.negotiated:
                peer.outlet.send(event)
