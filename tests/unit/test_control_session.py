"""A session without a server, a connection or a socket: the test is its peer."""

from __future__ import annotations

import errno
import json
import os
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.control import messages, qmp
from inaccfs.control.caller import Caller
from inaccfs.control.context import Actions, Context
from inaccfs.control.limits import Limits, Policy
from inaccfs.control.request import Answer, Passed, Request
from inaccfs.control.session import Session
from inaccfs.fuse.files import Files
from inaccfs.fuse.namespace import Namespace
from inaccfs.semantics import V8
from inaccfs.shim.superblock import Superblock
from tests.unit.control_fakes import PAGE, DirectHelper, FakeSource
from tests.unit.daemon_fakes import Daemon
from tests.unit.fakes import fallocate, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from inaccfs.backing.root import Backing
    from inaccfs.control.messages import Command


@dataclass
class Out:
    """What a session sends."""

    events: list[dict[str, Any]] = field(default_factory=list)
    evictions: list[str] = field(default_factory=list)

    def send(self, data: bytes, fd: int = -1) -> None:
        assert fd == -1
        message = json.loads(data)
        self.events.append({"event": message["event"], **message["data"]})

    def offer(self, data: bytes) -> bool:
        self.send(data)
        return True

    def evict(self, reason: str, text: str) -> None:
        self.evictions.append(f"{reason}: {text}")


@dataclass
class Driven:
    """A session, and the peer at its other end."""

    context: Context
    session: Session
    out: Out

    async def do(self, command: Command, passed: Passed | None = None) -> Any:
        """What a command returns, an `Answer` included."""
        request = Request(command, qmp.NO_ID, passed or Passed())
        value = self.session.execute(request)
        request.close()
        return await value if isawaitable(value) else value


class Mount:
    """The mount of a test's sessions, with one file of eight pages, /guest."""

    def __init__(self, backing: Backing, policy: Policy) -> None:
        self.daemon = Daemon()
        superblock = Superblock(V8(), backing.page_size, frames=FakeSource())
        self.namespace = Namespace(backing, superblock)
        device, _ = syscalls.identity(backing.root)
        root = f"/proc/self/fd/{backing.root}"
        files = Files(self.namespace, root, device, DirectHelper())
        actions = Actions(self.daemon.status, self.daemon.quit)
        self.context = Context(superblock, files, actions, policy)
        top = self.namespace.inodes.root
        entry = self.namespace.create(top, b"guest", os.O_RDWR, 0o600, 0, 0)
        self.node = self.namespace.inodes[entry.nodeid]
        os.ftruncate(self.node.fd, 8 * PAGE)
        assert self.node.file is not None
        self.file = self.node.file
        self._numbers = iter(range(1, 100))

    @asynccontextmanager
    async def session(self, uid: int = 0) -> AsyncIterator[Driven]:
        out = Out()
        caller = Caller(next(self._numbers), 4711, uid, uid)
        session = Session(self.context, caller, out)
        try:
            yield Driven(self.context, session, out)
        finally:
            await session.close()


@pytest.fixture
async def mount(backing: Backing) -> AsyncIterator[Mount]:
    made = Mount(backing, Policy(Limits(pages=4, notifiers=1, total_notifiers=2)))
    with closing(made.namespace):
        yield made
        assert not made.context.callers
        assert not made.context.notifiers
        assert not made.file.notifiers


async def test_commands_are_carried_out_without_a_socket(mount: Mount) -> None:
    async with mount.session() as one:
        assert await one.do(messages.QueryVersion()) == messages.version()
        frames = await one.do(messages.GetPfn(file="/guest", offset=1))
        stats = await one.do(messages.QueryStats())
        assert (stats.peers, stats.references, stats.fetched) == (1, 1, 1)
        await one.do(messages.PutPfn(file="/guest", pfn=frames.pfn))
        assert (await one.do(messages.QueryStats())).references == 0


async def test_events_go_to_the_outlet_and_their_answers_come_back(
    mount: Mount,
) -> None:
    async with mount.session() as one, trio.open_nursery() as nursery:
        made = await one.do(messages.RegisterNotifier(file="/guest"))
        nursery.start_soon(fallocate, mount.file, 3, 0, PAGE, trio.Event())
        await trio.testing.wait_all_tasks_blocked()
        (event,) = one.out.events
        assert (event["event"], event["notifier"]) == ("INVALIDATE", made.notifier)
        assert (event["start"], event["end"]) == (0, 1)
        (row,) = (await one.do(messages.QueryNotifiers())).value
        assert (row.peer, row.pid, row.events_sent) == (1, 4711, 1)
        answer = messages.InvalidateDone(
            notifier=made.notifier, sequence=event["sequence"]
        )
        await one.do(answer)
    assert one.out.evictions == []


async def test_the_silent_are_evicted_by_the_outlet(
    mount: Mount, autojump_clock: trio.testing.MockClock
) -> None:
    async with mount.session() as one:
        await one.do(messages.RegisterNotifier(file="/guest"))
        await fallocate(mount.file, 3, 0, PAGE, trio.Event())
        assert one.out.evictions == [
            "it does not answer events: no answer to an event of notifier 1 within 10 s"
        ]


async def test_limits_count_all_sessions(mount: Mount) -> None:
    register = messages.RegisterNotifier(file="/guest")
    async with mount.session() as one, mount.session() as two, mount.session() as three:
        await one.do(register)
        with pytest.raises(OSError, match="1 notifiers are registered"):
            await one.do(register)
        await two.do(register)
        with pytest.raises(OSError, match="all peers have 2 notifiers"):
            await three.do(register)


async def test_a_session_and_the_file_count_the_same(mount: Mount) -> None:
    """The session's sum is kept separately from the file's references."""
    async with mount.session() as one, mount.session() as two:
        got = await one.do(messages.GetPfn(file="/guest", offset=0, count=3))
        await two.do(messages.GetPfn(file="/guest", offset=0))
        with pytest.raises(OSError, match="3 pages are got or pinned"):
            await one.do(messages.GetPfn(file="/guest", offset=0, count=2))
        with refused(errno.EINVAL, "Invalid argument"):
            await one.do(messages.PutPfn(file="/guest", pfn=got.extents[0].pfn + 5))
        await one.do(messages.GetPfn(file="/guest", offset=7))
        memory = mount.file.pages.memory
        assert memory is not None
        assert (one.session.page_room.used, two.session.page_room.used) == (4, 1)
        assert sorted(map(memory.references.total, memory.references.holders())) == [
            1,
            4,
        ]
        assert memory.references_count == 5
    assert memory.references_count == 0


async def test_quit_comes_after_its_reply(mount: Mount) -> None:
    async with mount.session() as one:
        answer = await one.do(messages.Quit())
        assert isinstance(answer, Answer)
        assert mount.daemon.quits == 0
        assert answer.after is not None
        answer.after()
        assert mount.daemon.quits == 1


async def test_others_than_the_owner_have_no_paths(mount: Mount) -> None:
    async with mount.session(uid=12345) as stranger:
        with pytest.raises(PermissionError, match="paths are for root"):
            await stranger.do(messages.QueryFile(file="/guest"))
        with pytest.raises(PermissionError, match="quit is for root"):
            await stranger.do(messages.Quit())


async def test_an_fdname_is_the_session_s_own(mount: Mount) -> None:
    before = mount.node.opens
    fd = os.open(f"/proc/self/fd/{mount.node.fd}", os.O_RDWR)
    async with mount.session() as one, mount.session() as two:
        await one.do(messages.GetFd(fdname="mine"), Passed(fd))
        assert (await one.do(messages.QueryFile(file="mine"))).opens == before + 1
        with pytest.raises(FileNotFoundError, match="no fdname 'mine'"):
            await two.do(messages.QueryFile(file="mine"))
    assert mount.node.opens == before
