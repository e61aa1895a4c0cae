"""A file over a memfd with rules of a test's choice; its holders and notifiers."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from inaccfs.shim.acktimeouts import AckTimeouts
from inaccfs.shim.fetch import INLINE_FETCH_BYTES
from inaccfs.shim.file import InaccessibleFile
from inaccfs.shim.superblock import Superblock
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.unit.control_fakes import BASE, PAGE, FakeFrames, FakeSource
from tests.unit.fakes import fallocate

if TYPE_CHECKING:
    import pytest

    from inaccfs.semantics import Semantics
    from inaccfs.shim.frames import Extent, Fetched
    from inaccfs.shim.notifiers import Notice

ACK_SECONDS = 10.0
KEEP = FALLOC_FL_KEEP_SIZE
# So many pages are fetched in a thread.
MANY = INLINE_FETCH_BYTES // PAGE + 1
SIZE = 4 * MANY


@dataclass(eq=False)
class Holder:
    """A peer that gets pages."""

    evicted_at: list[float] = field(default_factory=list)

    who = 7

    def evict_holder(self) -> None:
        self.evicted_at.append(trio.current_time())


@dataclass(eq=False)
class Listener:
    """A notifier that answers at once, unless *answers* is false."""

    world: World
    answers: bool = True
    events: list[tuple[str, int, int]] = field(default_factory=list)
    frames: list[list[tuple[int, int, int]] | None] = field(default_factory=list)
    sequence: int | None = None

    who = 8
    number = 3

    def tell(self, notice: Notice, sequence: int | None) -> None:
        self.events.append((notice.event, notice.start, notice.end))
        self.frames.append(
            None
            if notice.frames is None
            else [(one.offset, one.pfn, one.count) for one in notice.frames]
        )
        self.sequence = sequence
        if sequence is not None and self.answers:
            self.answer()

    def answer(self) -> None:
        assert self.sequence is not None
        self.world.file.notifiers.answer(self, self.sequence)

    def evict(self) -> None:
        self.world.evicted.append(self)


class BlockedFrames(FakeFrames):
    """Frames whose fetching takes as long as a test wants."""

    blocks = False

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def fetch(self, start: int, end: int, *, reach: bool = True) -> Fetched:
        if self.blocks:
            self.entered.set()
            self.let_go.wait()
        return super().fetch(start, end, reach=reach)


class HeldSource(FakeSource):
    def open(self, fd: int, page_size: int) -> FakeFrames:
        self.opened.append(BlockedFrames(fd))
        return self.opened[-1]


@dataclass
class World:
    """A file over a memfd, with rules of a test's choice."""

    file: InaccessibleFile
    source: FakeSource
    ack_timeouts: AckTimeouts
    evicted: list[Listener] = field(default_factory=list)

    @property
    def frames(self) -> FakeFrames:
        (frames,) = self.source.opened
        return frames

    async def listener(self, *, answers: bool = True) -> Listener:
        made = Listener(self, answers)
        await self.file.notifiers.register(made)
        return made

    async def bound(self, start: int, end: int, *, answers: bool = True) -> Listener:
        made = Listener(self, answers)
        await self.file.notifiers.bind(made, start, end, exclusive=True)
        return made

    async def get(self, holder: Holder, start: int, end: int) -> list[Extent]:
        extents, moved = await self.file.pages.get(holder, start, end)
        await self.file.pages.moved.tell(moved)
        return extents

    def put(self, holder: Holder, start: int, count: int = 1) -> None:
        self.file.pages.put(holder, BASE + start, count)

    def allocate(self, start: int, end: int) -> None:
        """In the backing, without an event."""
        os.posix_fallocate(self.file.fd, start * PAGE, (end - start) * PAGE)

    async def fallocate(self, mode: int, start: int, end: int) -> None:
        await self.in_bytes(mode, start * PAGE, (end - start) * PAGE)

    async def punch(self, start: int, end: int) -> None:
        await self.fallocate(PUNCH, start, end)

    async def in_bytes(self, mode: int, offset: int, length: int) -> None:
        await fallocate(self.file, mode, offset, length, trio.Event())

    @property
    def allocated(self) -> int:
        return os.fstat(self.file.fd).st_blocks * 512 // PAGE

    def is_punched(self, holder: Holder) -> list[tuple[int, bool]]:
        """The pages that *holder* has, and whether they have been punched."""
        memory = self.file.pages.memory
        assert memory is not None
        return [
            (record.offset + at, record.punched)
            for record in memory.references.describe(holder)
            for at in range(record.count)
        ]


_worlds: list[World] = []


def world_of(
    semantics: Semantics, pages: int = SIZE, *, fd: int | None = None
) -> World:
    if fd is None:
        fd = os.memfd_create("backing")
        os.ftruncate(fd, pages * PAGE)
    source, timeouts = HeldSource(), AckTimeouts(ACK_SECONDS)
    shim = Superblock(
        semantics,
        PAGE,
        frames=source,
        ack_seconds=ACK_SECONDS,
        ack_timeouts=timeouts,
    )
    _worlds.append(World(InaccessibleFile(fd, shim), source, timeouts))
    return _worlds[-1]


def assert_no_strays() -> None:
    """No test leaves a list or a page locked, or a file busy."""
    for world in _worlds:
        assert world.file.notifiers.take()
        assert not world.file.turn.taken
        locks = world.file.pages._locks
        assert locks is None or not locks._claims
        os.close(world.file.fd)
    _worlds.clear()


def count_calls(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> list[tuple[Any, ...]]:
    """The arguments of each call of os.*name* from now on, in any module."""
    calls: list[tuple[Any, ...]] = []
    real = getattr(module.os, name)

    def counted(*args: Any) -> Any:
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(module.os, name, counted)
    return calls


async def fetching(world: World, frames: BlockedFrames) -> None:
    """Wait until a thread fetches."""
    await trio.to_thread.run_sync(frames.entered.wait)
