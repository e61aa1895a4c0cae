"""The server of the control socket, in the daemon's trio loop."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
import stat
import struct
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.control import messages, qmp
from inaccfs.control.limits import Policy
from inaccfs.control.readers import Readers
from inaccfs.control.session import Session
from inaccfs.errors import MountError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.control.openfiles import Files
    from inaccfs.shim.mount import Shim
    from inaccfs.status import Status

log = logging.getLogger(__name__)

_ucred: Final = struct.Struct("=iII")  # pid, uid, gid; see unix(7)
_LARGEST_BACKLOG: Final = 1024

# How long to wait for fds to come free when there is none for a new peer.
_NO_FDS_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Actions:
    """What the commands do to the daemon."""

    status: Callable[[], Awaitable[Status]]
    quit: Callable[[], None]


def listen(path: str, *, everybody: bool = False) -> socket.socket:
    """Bind the control socket at *path*; a dead one there is replaced.

    Its mode is 0600, or 0666 for *everybody*, who are asked for their uid later.

    Raises:
        MountError: it cannot be bound, or a live daemon has it.
    """
    _remove_dead(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    # The mode of a socket is that of its creation: nobody may slip in before a chmod.
    umask = os.umask(0o111 if everybody else 0o177)
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
    """Accepts peers; each has a `Session`."""

    def __init__(
        self,
        listener: socket.socket,
        actions: Actions,
        files: Files,
        shim: Shim,
        policy: Policy | None = None,
    ) -> None:
        """Take a non-blocking *listener*."""
        self._listener: Final = listener
        self.actions: Final = actions
        self.files: Final = files
        self.shim: Final = shim
        self.policy: Final = policy or Policy()
        # Those that are connected, by number.
        self.sessions: Final[dict[int, Session]] = {}
        self._numbers: Final = itertools.count(1)
        self.notifier_numbers: Final = itertools.count(1)
        # Of the sessions' connections; there is one as long as `run` runs.
        self.readers = Readers()

    async def run(self) -> None:
        """Serve until cancelled."""
        with closing(self.readers):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.readers.run)
                await self._accept(nursery)

    async def _accept(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._listener)
            except OSError as exc:
                if exc.errno == errno.ECONNABORTED:
                    continue
                # Peers that are there already go on, and may make room.
                log.error("no new control peer: %s", exc.strerror)  # noqa: TRY400
                await trio.sleep(_NO_FDS_SECONDS)
            else:
                connection.setblocking(False)
                self._welcome(connection, nursery)

    def _welcome(self, connection: socket.socket, nursery: trio.Nursery) -> None:
        # SOL_SOCKET has it since connect(2); the peer cannot change it afterwards.
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _ucred.size
        )
        pid, uid, gid = _ucred.unpack(credentials)
        if uid not in (0, os.geteuid()) and uid not in self.policy.allowed_uids:
            log.info("a peer of uid %d (pid %d) was not let in", uid, pid)
            self.discard(connection.detach())
            return
        if len(self.sessions) >= self.policy.limits.peers:
            description = (
                f"EMFILE: {self.policy.limits.peers} peers are connected already "
                "(--limit peers=N)"
            )
            reply = qmp.encode_error("GenericError", description, qmp.NO_ID)
            # A new socket has room for so little; if it has hung up, all the better.
            with suppress(OSError):
                connection.send(reply)
            self.discard(connection.detach())
            return
        number = next(self._numbers)
        session = Session(self, connection, number, pid, uid, gid)
        self.sessions[number] = session
        log.info("%s: connected", session.peer)
        nursery.start_soon(self._serve, session)

    async def _serve(self, session: Session) -> None:
        try:
            await session.run()
        except Exception:
            # Else it would end the mount, and with it everybody.
            log.exception("bug in the conversation with %s", session.peer)
        finally:
            del self.sessions[session.number]
            log.info("%s: gone%s", session.peer, session.peer.why_gone)

    def discard(self, fd: int) -> None:
        """Close an fd that a peer has sent, or a connection that may hold some.

        In a thread that nobody waits for: the file system behind it may want to be told
        of it, and hang.
        """
        trio.lowlevel.start_thread_soon(partial(os.close, fd), _ignore)

    def shut_down(self, reason: str) -> None:
        """Tell all peers that the daemon ends."""
        event = qmp.encode_event(messages.Shutdown(reason=reason))
        for session in list(self.sessions.values()):
            if session.peer.negotiated:
                session.peer.send(event)


def _ignore(_: object) -> None:
    # What close(2) says of an fd that nobody wanted.
    pass
