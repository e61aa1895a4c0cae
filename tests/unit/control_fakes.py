"""A control socket over a real tmpfs without a mount, and a peer that speaks QMP.

An fd of a backing file stands in for one of the mount: for the server, the tmpfs is the
mount's file system.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from inaccfs import syscalls
from inaccfs.control import server
from inaccfs.control.context import Actions
from inaccfs.fuse.files import Files
from inaccfs.fuse.namespace import Namespace
from inaccfs.helper import wire
from inaccfs.helper.tasks import Helper, Received
from inaccfs.semantics import V8
from inaccfs.shim.call import PageRange
from inaccfs.shim.frames import Extent, Fetched, Punched
from inaccfs.shim.superblock import Superblock
from tests.unit.daemon_fakes import Daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from inaccfs.backing.root import Backing
    from inaccfs.control.limits import Policy
    from inaccfs.fuse.nodes import Node
    from inaccfs.semantics import Semantics

Answer = dict[str, Any]

PAGE = 4096


BASE = 0x1000
"""The frame of each file's first page in `FakeFrames`."""


class FakeFrames:
    """Frames of one file: page N is in frame BASE + N, or where a test moves it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.at: dict[int, int] = {}
        self.freed: list[tuple[int, int]] = []
        self.poisoned: list[int] = []
        self.closed = False
        # Whether the backing has no space.
        self.full = False
        # Pages that the next punch or fetch finds in another frame, with that frame.
        self.moves: dict[int, int] = {}

    @property
    def pages(self) -> int:
        return len(self.at)

    def extents(self) -> list[Extent]:
        return self._runs(sorted(self.at))

    def extents_since(self, start: int, most: int) -> list[Extent]:
        pages = sorted(page for page in self.at if page >= start)
        runs = self._runs(pages[: 2 * most])
        # Unless the last of those is cut, or there are too few.
        return (runs if len(runs) > most else self._runs(pages))[:most]

    def _runs(self, pages: Iterable[int]) -> list[Extent]:
        found: list[Extent] = []
        for page in pages:
            if found:
                offset, pfn, count, _ = found[-1]
                if (offset + count, pfn + count) == (page, self.at[page]):
                    found[-1] = Extent(offset, pfn, count + 1, 0)
                    continue
            found.append(Extent(page, self.at[page], 1, 0))
        return found

    def known(self, start: int, end: int) -> list[Extent] | None:
        pages = range(start, end)
        return self._runs(pages) if all(page in self.at for page in pages) else None

    def _move(self) -> list[Extent]:
        moved = self._runs(sorted(self.moves.keys() & self.at.keys()))
        self.at.update(self.moves)
        self.moves = {}
        return moved

    def reach(self, start: int, end: int) -> PageRange:
        return PageRange(start, end)

    def fetch(self, start: int, end: int, *, reach: bool = True) -> Fetched:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        syscalls.fallocate(self.fd, 1, start * PAGE, (end - start) * PAGE)
        moved = self._move()
        for page in range(start, end):
            self.at.setdefault(page, BASE + page)
        return Fetched(self._runs(range(start, end)), moved)

    def punch(self, start: int, end: int, punch: Callable[[], None]) -> Punched:
        punch()
        removed = self._runs(page for page in sorted(self.at) if start <= page < end)
        for page in range(start, end):
            self.at.pop(page, None)
        return Punched(removed, self._move())

    def move(self, start: int, end: int) -> list[Extent]:
        old = self._runs(page for page in sorted(self.at) if start <= page < end)
        for page in range(start, end):
            if page in self.at:
                self.at[page] += 0x100000
        return old

    def free(self, pfn: int, count: int) -> None:
        self.freed.append((pfn, count))

    def poison(self, page: int) -> None:
        self.poisoned.append(page)

    def close(self) -> None:
        self.closed = True
        self.at = {}


class FakeSource:
    """A source of `FakeFrames`, which remembers them all."""

    name = "fake"
    pinning = "nothing (fake)"

    def __init__(self) -> None:
        self.opened: list[FakeFrames] = []

    def open(self, fd: int, page_size: int) -> FakeFrames:
        self.opened.append(FakeFrames(fd))
        return self.opened[-1]

    def close(self) -> None:
        assert all(frames.closed for frames in self.opened)


@dataclass
class Peer:
    """A client that sends bytes and reads answers, one a line."""

    stream: trio.SocketStream
    # The events that arrived, in order.
    events: list[Answer] = field(default_factory=list)
    # The fds that were received; a test that takes one closes it.
    fds: list[int] = field(default_factory=list)
    _read: bytearray = field(default_factory=bytearray)

    async def receive(self) -> Answer:
        """The next message, which may be an event."""
        while b"\n" not in self._read:
            data, ancillary, _, _ = await self.stream.socket.recvmsg(
                65536, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC
            )
            assert data, "the server has closed the connection"
            self._read += data
            for _, _, received in ancillary:
                self.fds += array.array("i", received)
        line, _, rest = self._read.partition(b"\n")
        self._read = rest
        answer: Answer = json.loads(line)
        return answer

    async def answer(self) -> Answer:
        """The next answer; events before it are kept."""
        while "event" in (message := await self.receive()):
            self.events.append(message)
        return message

    async def event(self) -> Answer:
        """The next event's name and data in one dict."""
        message = self.events.pop(0) if self.events else await self.receive()
        assert "event" in message, message
        return {"event": message["event"], **message["data"]}

    async def acknowledge(self, event: Answer) -> None:
        """invalidate-done for an event of `event`."""
        done = {"notifier": event["notifier"], "sequence": event["sequence"]}
        assert await self.do("invalidate-done", **done) == {}

    async def send(self, text: str | bytes, *fds: int) -> None:
        data = text.encode() if isinstance(text, str) else text
        if not fds:
            await self.stream.send_all(data)
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        assert await self.stream.socket.sendmsg([data], rights) == len(data)

    async def ask(self, text: str | bytes, *fds: int) -> Answer:
        """Send one line and wait for its answer."""
        data = text.encode() if isinstance(text, str) else text
        await self.send(data + b"\n", *fds)
        return await self.answer()

    def line(self, command: str, **arguments: object) -> str:
        """A command as one line; _ in its name, and only there, becomes -."""
        name = command.replace("_", "-")
        return json.dumps({"execute": name, "arguments": arguments})

    async def do(self, command: str, *fds: int, **arguments: object) -> Any:
        """What a command returns, or the text of its error."""
        answer = await self.ask(self.line(command, **arguments), *fds)
        if "error" in answer:
            assert answer["error"]["class"] == "GenericError", answer
            return answer["error"]["desc"]
        return answer["return"]

    async def closed(self) -> None:
        """Wait until the server has hung up."""
        try:
            while await self.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass


@dataclass
class Control:
    """A server, its daemon, and a way in."""

    path: str
    daemon: Daemon
    server: server.Server
    namespace: Namespace
    frames: FakeSource

    @asynccontextmanager
    async def peer(self, *, negotiate: bool = True) -> AsyncIterator[Peer]:
        async with await trio.open_unix_socket(self.path) as stream:
            peer = Peer(stream)
            assert "QMP" in await peer.receive()
            if negotiate:
                answer = await peer.ask('{"execute": "qmp_capabilities"}')
                assert answer == {"return": {}}
            yield peer

    async def still_serves(self) -> None:
        async with self.peer() as peer:
            assert "return" in await peer.ask('{"execute": "query-version"}')

    def make(self, name: str, pages: int = 0) -> Node:
        """Make a file and set its size, as the kernel does."""
        namespace = self.namespace
        encoded = name.encode()
        entry = namespace.create(namespace.inodes.root, encoded, os.O_RDWR, 0o600, 0, 0)
        node = namespace.inodes[entry.nodeid]
        if pages:
            os.ftruncate(node.fd, pages * PAGE)
        return node

    def backing_fd(self, node: Node, flags: int = os.O_RDWR) -> int:
        """An fd as a peer has it open; the caller closes it."""
        return os.open(f"/proc/self/fd/{node.fd}", flags)

    async def peers_down_to(self, number: int) -> None:
        """Wait until there are at most *number* peers."""
        while len(self.server.peers) > number:
            await trio.lowlevel.checkpoint()

    async def all_closed(self) -> None:
        """Wait until there are no peers, and all connections are closed."""
        await self.peers_down_to(0)
        while self.server.parts.closings.connections:
            await trio.lowlevel.checkpoint()


class DirectHelper(Helper):
    """Does the work of the workers in this process, because nothing here hangs."""

    def __init__(self) -> None:
        # No helper is started.
        pass

    async def open_tmpfile(self, directory: str, device: str) -> int:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if syscalls.identity(fd)[0] != device:
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    async def receive_fd(
        self, connection: socket.socket, wanted: int, device: str
    ) -> Received:
        data, fd = wire.receive(connection, wanted, socket.MSG_DONTWAIT)
        if fd < 0 or syscalls.identity(fd)[0] == device:
            return Received(len(data), fd, foreign=False, closing=None)
        os.close(fd)
        return Received(len(data), -1, foreign=True, closing=None)


class Hanging:
    """A close that ends when the test lets it end."""

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def wait(self) -> None:
        await self.ended.wait()


class HangingHelper(DirectHelper):
    """Counts the calls; the close of a foreign fd hangs until a test ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.closings: list[Hanging] = []
        self.hangs = False
        self.fails: OSError | None = None

    async def receive_fd(
        self, connection: socket.socket, wanted: int, device: str
    ) -> Received:
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        received = await super().receive_fd(connection, wanted, device)
        self.reads.append(received.size)
        if received.foreign and self.hangs:
            self.closings.append(Hanging())
            received = received._replace(closing=self.closings[-1])  # type: ignore[arg-type] # waits like one
        return received


@asynccontextmanager
async def controlling(
    path: str,
    backing: Backing,
    policy: Policy | None = None,
    semantics: Semantics | None = None,
    helper: DirectHelper | None = None,
) -> AsyncIterator[Control]:
    """A server over *backing* for the length of a with block."""
    daemon = Daemon()
    frames = FakeSource()
    seconds = 10.0 if policy is None else policy.ack_seconds
    rules = V8() if semantics is None else semantics
    shim = Superblock(rules, backing.page_size, frames=frames, ack_seconds=seconds)
    device, _ = syscalls.identity(backing.root)
    actions = Actions(daemon.status, daemon.quit)
    with closing(Namespace(backing, shim)) as namespace, server.listen(path) as socket:
        mountpoint = f"/proc/self/fd/{backing.root}"
        helper = helper or DirectHelper()
        files = Files(namespace, mountpoint, device, helper)
        made = server.Server(
            socket,
            actions,
            files,
            shim,
            policy,
            receiver=helper,
            device=device,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            control = Control(path, daemon, made, namespace, frames)
            yield control
            # The peers have hung up. If the server were cancelled before it closes a
            # connection, the garbage collector would find that connection in another
            # test.
            await control.all_closed()
            nursery.cancel_scope.cancel()
