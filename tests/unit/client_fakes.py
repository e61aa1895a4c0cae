"""A control socket without a daemon: the test decides what it sends."""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from inaccfs.control import messages, qmp
from inaccfs.control.messages import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

C = TypeVar("C", bound=Command)

# It only decides how long a failing test takes.
PATIENCE: Final = 60.0


class Hold:
    """The answer of a handler whose command is answered later, by `Peer.release`."""


@dataclass(frozen=True)
class GivenFd:
    """The answer of a handler that gives an fd with its return."""

    fd: int


@dataclass(eq=False)
class Peer:
    """One connection, from the daemon's end."""

    connection: socket.socket
    # The commands that arrived, in order; `next` takes them.
    commands: queue.SimpleQueue[Command] = field(default_factory=queue.SimpleQueue)
    # The ids of the commands that are not answered yet.
    waiting: list[qmp.RequestId] = field(default_factory=list)
    # The fds that arrived by SCM_RIGHTS and were not taken yet.
    fds: list[int] = field(default_factory=list)

    def next(self, kind: type[C]) -> C:
        """Wait for the next command of a kind; skip those before it."""
        while True:
            command = self.commands.get(timeout=PATIENCE)
            if isinstance(command, kind):
                return command

    def next_any(self) -> Command:
        """Wait for the next command."""
        return self.commands.get(timeout=PATIENCE)

    def nothing_more(self) -> bool:
        """Whether no command is left; call it when all must have arrived."""
        return self.commands.empty()

    def tell(self, *events: messages.Event) -> None:
        """Send events, in one piece."""
        self.connection.sendall(b"".join(map(qmp.encode_event, events)))

    def release(self, value: object = None) -> None:
        """Answer the command that has waited longest."""
        self.reply(self.waiting.pop(0), {} if value is None else value)

    def reply(self, request_id: qmp.RequestId, value: object) -> None:
        match value:
            case OSError():
                desc = f"{errno.errorcode[value.errno or 0]}: {value.strerror}"
                data = qmp.encode_error("GenericError", desc, request_id)
            case GivenFd():
                data = qmp.encode_return({}, request_id)
                socket.send_fds(self.connection, [data], [value.fd])
                os.close(value.fd)
                return
            case _:
                data = qmp.encode_return(value, request_id)
        with suppress(BrokenPipeError):
            self.connection.sendall(data)

    def hang_up(self) -> None:
        """Close it, as for a peer that does not answer."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class FakeDaemon:
    """Listens; answers what needs no file, and leaves the rest to the test."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.greeting = qmp.greeting()
        # Handlers by command; a command without a handler returns {}.
        self.handlers: dict[type[Command], Callable[[Peer, Any], object]] = {
            messages.QueryVersion: lambda *_: messages.version(),
            messages.GetPfn: _frames,
            messages.RegisterNotifier: self._register,
            messages.GetFd: lambda peer, _: _closed(peer.fds.pop(0)),
        }
        self._notifiers = 0
        # The connected peers, in the order in which they connected.
        self.peers: list[Peer] = []
        self._arrived: queue.SimpleQueue[Peer] = queue.SimpleQueue()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def peer(self) -> Peer:
        """Wait for the next peer that connects."""
        return self._arrived.get(timeout=PATIENCE)

    def _register(self, _: Peer, __: messages.RegisterNotifier) -> messages.Notifier:
        self._notifiers += 1
        return messages.Notifier(notifier=self._notifiers)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(connection)
            self.peers.append(peer)
            thread = threading.Thread(target=self._serve, args=[peer])
            self._threads.append(thread)
            thread.start()
            self._arrived.put(peer)

    def _serve(self, peer: Peer) -> None:
        framing = qmp.Framing()
        try:
            with peer.connection:
                peer.connection.sendall(self.greeting)
                while True:
                    data, fds, _, _ = socket.recv_fds(peer.connection, 1 << 16, 16)
                    peer.fds += fds
                    if not data:
                        break
                    for line in framing.feed(data):
                        self._carry_out(peer, *qmp.decode_request(line))
        except (ConnectionResetError, BrokenPipeError):
            pass
        except BaseException as exc:
            self._failures.append(exc)
        finally:
            for fd in peer.fds:
                os.close(fd)

    def _carry_out(
        self, peer: Peer, command: Command, request_id: qmp.RequestId
    ) -> None:
        handler = self.handlers.get(type(command))
        try:
            value = None if handler is None else handler(peer, command)
        except OSError as exc:
            value = exc
        if value is Hold:
            peer.waiting.append(request_id)
        else:
            peer.reply(request_id, {} if value is None else value)
        if not isinstance(command, messages.QmpCapabilities):
            peer.commands.put(command)

    def close(self) -> None:
        """End all connections; raise what the fake has raised."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for peer in self.peers:
            peer.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert not self._failures, self._failures


def _frames(_: Peer, command: messages.GetPfn) -> messages.Frames:
    """Page N is in frame 1000 + N."""
    pfn = 1000 + command.offset
    if command.count is None:
        return messages.Frames(pfn=pfn, order=0)
    extent = messages.Extent(command.offset, pfn, command.count, 0)
    return messages.Frames(extents=[extent])


def _closed(fd: int) -> messages.Nothing:
    os.close(fd)
    return messages.Nothing()


def hold(*_: object) -> type[Hold]:
    """A handler: the command is answered by `Peer.release`."""
    return Hold


@contextmanager
def no_fds_leak() -> Iterator[None]:
    """As many fds are open afterwards as were before."""
    before = _open_fds()
    yield
    assert _open_fds() == before


def _open_fds() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    # The directory itself.
    return {fd: name for fd, name in found.items() if not name.endswith("/fd")}
