"""Fakes with no policy of their own: a kernel and a pyfuse3.

The kernel packs and reads messages with layouts written down here a second time,
from include/uapi/linux/fuse.h, so that a slip in `inaccfs.fuse.wire` shows.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import pytest
import trio

from inaccfs.fuse.channel import Channel
from inaccfs.fuse.closing import Closer
from inaccfs.fuse.namespace import Namespace
from inaccfs.fuse.seal import Seal, unsealed
from inaccfs.fuse.wire import Op
from inaccfs.semantics import V8
from inaccfs.shim.call import Begun, Call
from inaccfs.shim.superblock import LongAllocator, Superblock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from inaccfs.backing.root import Backing
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.loop import Event

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
OUT_HEADER: Final = struct.Struct("=IiQ")
ATTR: Final = struct.Struct("=QQQqqqIIIIIIIIII")
ENTRY_OUT: Final = struct.Struct("=QQQQII")  # and an ATTR
ATTR_OUT: Final = struct.Struct("=QII")  # and an ATTR
OPEN_OUT: Final = struct.Struct("=QIi")
OPEN_IN: Final = struct.Struct("=II")
SETATTR_IN: Final = struct.Struct("=IIQQQqqqIIIIIIII")
CREATE_IN: Final = struct.Struct("=IIII")
RENAME2_IN: Final = struct.Struct("=QII")
FALLOCATE_IN: Final = struct.Struct("=QQQII")
FORGET_IN: Final = struct.Struct("=Q")
BATCH_FORGET_IN: Final = struct.Struct("=II")
FORGET_ONE: Final = struct.Struct("=QQ")
INTERRUPT_IN: Final = struct.Struct("=Q")
RELEASE_IN: Final = struct.Struct("=QIIQ")
READ_IN: Final = struct.Struct("=QQIIQII")
LSEEK_IN: Final = struct.Struct("=QQII")
GETXATTR_IN: Final = struct.Struct("=II")
INIT_IN: Final = struct.Struct("=IIIII44x")
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHII24x")

FUSE_INIT_EXT: Final = 1 << 30
FUSE_PASSTHROUGH: Final = 1 << 37
EVERY_FLAG: Final = (1 << 64) - 1


class Attr(NamedTuple):
    """struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class EntryOut(NamedTuple):
    """struct fuse_entry_out."""

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    attr: Attr


class Reply(NamedTuple):
    """A reply of the channel; *error* is an errno, 0 for success."""

    unique: int
    error: int
    payload: bytes

    def attr(self) -> Attr:
        """The attributes in the reply to GETATTR."""
        assert self.error == 0, errno.errorcode[self.error]
        assert len(self.payload) == ATTR_OUT.size + ATTR.size
        return Attr(*ATTR.unpack_from(self.payload, ATTR_OUT.size))

    def entry(self) -> EntryOut:
        """The entry in the reply to LOOKUP, CREATE or TMPFILE."""
        assert self.error == 0, errno.errorcode[self.error]
        found = ENTRY_OUT.unpack_from(self.payload)
        attr = Attr(*ATTR.unpack_from(self.payload, ENTRY_OUT.size))
        return EntryOut._make((*found[:4], attr))

    def opened(self) -> tuple[int, int, int]:
        """(fh, open_flags, backing_id), which end the answer to OPEN or CREATE."""
        assert self.error == 0, errno.errorcode[self.error]
        fh, flags, backing_id = OPEN_OUT.unpack(self.payload[-OPEN_OUT.size :])
        return fh, flags, backing_id


def init_in(minor: int = 45, flags: int = EVERY_FLAG) -> bytes:
    """What a kernel says in INIT."""
    return INIT_IN.pack(7, minor, 131072, flags & 0xFFFFFFFF, flags >> 32)


def read_in(size: int) -> bytes:
    """struct fuse_read_in: READ, READDIR and READDIRPLUS."""
    return READ_IN.pack(0, 0, size, 0, 0, 0, 0)


class FakeKernel:
    """The kernel's end of a /dev/fuse that is a socket pair."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self._ours = ours
        self._socket = trio.socket.from_stdlib_socket(ours)
        self._uniques = itertools.count(2, 2)
        # The channel's end.
        self.device = theirs

    async def send_raw(self, message: bytes) -> None:
        await self._socket.send(message)

    def send_now(
        self, op: int, nodeid: int, unique: int, body: bytes, length: int = 0
    ) -> None:
        """Send a request without letting any other task run; *length* may lie."""
        length = length or IN_HEADER.size + len(body)
        header = (length, op, unique, nodeid, os.geteuid(), os.getegid(), 1, 0, 0)
        self._ours.send(IN_HEADER.pack(*header) + body)

    async def send(self, op: int, nodeid: int = 1, body: bytes = b"") -> int:
        """Send a request; return its unique."""
        unique = next(self._uniques)
        await trio.lowlevel.wait_writable(self._ours)
        self.send_now(op, nodeid, unique, body)
        return unique

    async def receive(self) -> Reply:
        message = await self._socket.recv(1 << 17)
        length, error, unique = OUT_HEADER.unpack_from(message)
        assert length == len(message), "the kernel refuses a reply with a wrong length"
        return Reply(unique, -error, message[OUT_HEADER.size :])

    async def call(self, op: int, nodeid: int = 1, body: bytes = b"") -> Reply:
        """Send a request and wait for its reply, which must be the next one."""
        unique = await self.send(op, nodeid, body)
        reply = await self.receive()
        assert reply.unique == unique
        return reply

    # Requests whose arguments several tests need.

    async def lookup(self, name: bytes, parent: int = 1) -> Reply:
        return await self.call(Op.LOOKUP, parent, name + b"\0")

    async def create(
        self, name: bytes, flags: int = os.O_RDWR, mode: int = 0o600
    ) -> Reply:
        body = CREATE_IN.pack(flags | os.O_CREAT, 0o100000 | mode, 0o22, 0)
        return await self.call(Op.CREATE, 1, body + name + b"\0")

    async def open(self, nodeid: int, flags: int) -> Reply:
        return await self.call(Op.OPEN, nodeid, OPEN_IN.pack(flags, 0))

    async def release(self, nodeid: int) -> Reply:
        return await self.call(Op.RELEASE, nodeid, RELEASE_IN.pack(nodeid, 0, 0, 0))

    async def setattr(self, nodeid: int, valid: int, **fields: int) -> Reply:
        """SETATTR of *fields*, named as those of fuse_setattr_in."""
        names = (
            *("valid", "padding", "fh", "size", "lock_owner", "atime", "mtime"),
            *("ctime", "atimensec", "mtimensec", "ctimensec", "mode", "unused4"),
            *("uid", "gid", "unused5"),
        )
        body = SETATTR_IN.pack(*({"valid": valid, **fields}.get(n, 0) for n in names))
        return await self.call(Op.SETATTR, nodeid, body)

    async def fallocate(self, nodeid: int, mode: int, offset: int, len_: int) -> Reply:
        body = FALLOCATE_IN.pack(nodeid, offset, len_, mode, 0)
        return await self.call(Op.FALLOCATE, nodeid, body)

    async def forget(self, nodeid: int, nlookup: int) -> None:
        await self.send(Op.FORGET, nodeid, FORGET_IN.pack(nlookup))

    def is_silent(self) -> bool:
        """Whether there is no reply to read."""
        try:
            self._ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        return False

    def unmount(self) -> None:
        """Close the connection, as umount(2) does."""
        self._socket.close()


class FakePyfuse3:
    """libfuse's end of the relay: answers all requests with success, or not at all."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        # Whether requests pile up in `waiting` instead of being answered.
        self.holding = False
        self.waiting: list[tuple[int, int]] = []
        # (opcode, whole message), in order of arrival.
        self.seen: list[tuple[int, bytes]] = []
        # The errno of the replies, and the payload of a successful one.
        self.error = 0
        self.payload = b""

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._end)
            if not (message := self._end.recv(1 << 17)):
                return
            _, op, unique, *_ = IN_HEADER.unpack_from(message)
            self.seen.append((op, message))
            if op == Op.INIT:
                self.answer(unique, bytes(INIT_OUT.size))
            elif self.holding:
                self.waiting.append((unique, op))
            else:
                self.answer(unique, self.payload)

    def answer(self, unique: int, payload: bytes = b"") -> None:
        """Reply at once. As in libfuse, it is an error if the socket has no room."""
        payload = b"" if self.error else payload
        header = OUT_HEADER.pack(OUT_HEADER.size + len(payload), -self.error, unique)
        self._end.send(header + payload)


class BlockedCloser(Closer):
    """A closer that can claim that memory is being freed."""

    def __init__(self) -> None:
        super().__init__()
        self._on_its_way: trio.Event | None = None
        # How many tasks have waited for it.
        self.awaited = 0

    def claim(self) -> None:
        self._on_its_way = trio.Event()

    def let_go(self) -> None:
        assert self._on_its_way is not None
        self.closed += 1
        self._on_its_way.set()
        self._on_its_way = None

    @property
    def busy(self) -> bool:
        return self._on_its_way is not None or super().busy

    async def wait_idle(self) -> None:
        if self._on_its_way is not None:
            self.awaited += 1
            await self._on_its_way.wait()
        await super().wait_idle()


@dataclass
class World:
    """A channel between a fake kernel and a fake pyfuse3, over a real tmpfs."""

    kernel: FakeKernel
    pyfuse3: FakePyfuse3
    channel: Channel
    namespace: Namespace
    closer: BlockedCloser


class SealFactory:
    """Stands in for make_seal(); remembers whether passthrough was offered."""

    def __init__(self, backing_id: int = 0) -> None:
        self._seal = (
            Seal("refused", backing_id)
            if backing_id
            else unsealed("this is a fake kernel")
        )
        self.offered: bool | None = None

    def __call__(self, passthrough: bool) -> Seal:
        self.offered = passthrough
        return self._seal


@asynccontextmanager
async def serving(
    backing: Backing,
    *,
    make_seal: Callable[[bool], Seal] | None = None,
    handshake: bool = True,
    relay_bytes: int = 1 << 17,
    allocator: LongAllocator | None = None,
) -> AsyncIterator[World]:
    """A channel that runs during a with block, and ends by itself afterwards."""
    closer = BlockedCloser()
    shim = Superblock(V8(), backing.page_size, allocator=allocator, frees=closer)
    namespace = Namespace(backing, shim, closer.close)
    kernel = FakeKernel()
    relay, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (relay, theirs):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, relay_bytes)
    pyfuse3 = FakePyfuse3(theirs)
    channel = Channel(
        kernel.device.fileno(), relay, namespace, make_seal or SealFactory()
    )
    with kernel.device, relay, theirs, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            closer.nursery = nursery
            nursery.start_soon(pyfuse3.run)
            nursery.start_soon(channel.run)
            if handshake:
                await kernel.call(Op.INIT, 0, init_in())
            yield World(kernel, pyfuse3, channel, namespace, closer)
            kernel.unmount()
            # channel.run() ends by itself; closing its end then ends pyfuse3's.
            relay.shutdown(socket.SHUT_RDWR)
    namespace.close()


@contextmanager
def refused(number: int, match: str | None = None) -> Iterator[None]:
    """What stands in the block must raise `OSError` with the errno *number*."""
    with pytest.raises(OSError, match=match) as caught:
        yield
    assert caught.value.errno == number, errno.errorcode[caught.value.errno or 0]


def fallocated_now(file: InaccessibleFile, mode: int, offset: int, length: int) -> bool:
    """Begin a fallocate(2); return whether it is complete. Do not go on with it."""

    def hold() -> NoReturn:
        raise AssertionError("it is under way")

    begun = file.begin(mode, offset, length, hold)
    return begun is Begun.DONE


async def fallocate(
    file: InaccessibleFile, mode: int, offset: int, length: int, interrupted: Event
) -> None:
    """What the channel does for fallocate(2)."""
    over = trio.Event()
    failures: list[Exception | None] = []

    def done(failure: Exception | None) -> None:
        failures.append(failure)
        over.set()

    begun = file.begin(mode, offset, length, lambda: done)
    if begun is Begun.LATER:
        await file.finish(Call(mode, offset, length), interrupted)
    elif begun is Begun.UNDER_WAY:
        await over.wait()
        if failures[0] is not None:
            raise failures[0]
