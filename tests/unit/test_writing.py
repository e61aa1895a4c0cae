"""WRITE, in semantics by which write(2) fills files: its trace."""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

import trio

from inaccfs.fuse.handlers.writing import WritingHandlers
from inaccfs.fuse.namespace import Namespace
from inaccfs.fuse.requests import Pending, Request
from inaccfs.fuse.wire import Op
from inaccfs.semantics import WriteV7
from inaccfs.shim import trace
from inaccfs.shim.superblock import Superblock
from tests.unit.fakes import IN_HEADER, READ_IN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from inaccfs.backing.root import Backing
    from inaccfs.shim.trace import Happened

PAGE = 4096


class Writer:
    """Sends WRITE for one file of four pages, as a transport does."""

    def __init__(self, backing: Backing, pending: Pending) -> None:
        self.namespace = Namespace(backing, Superblock(WriteV7(), backing.page_size))
        root = self.namespace.inodes.root
        entry = self.namespace.create(root, b"f", os.O_RDWR, 0o600, 0, 0)
        self.nodeid = entry.nodeid
        os.ftruncate(self.namespace.inodes[self.nodeid].fd, 4 * PAGE)
        self._handler = WritingHandlers(self.namespace).handlers()[Op.WRITE]
        self._request = Request(pending, self._reply)
        self._errors: list[int] = []
        self._replied = trio.Event()

    def _reply(self, unique: int, number: int, payload: bytes | memoryview) -> None:
        self._errors.append(number)
        self._replied.set()

    async def write(self, offset: int, data: bytes) -> int:
        """The errno of write(2), or 0."""
        arguments = READ_IN.pack(0, offset, len(data), 0, 0, 0, 0) + data
        size = IN_HEADER.size + len(arguments)
        header = (size, Op.WRITE, 1, self.nodeid, 0, 0, 4711, 0, 0)
        request = self._request
        request.buffer[:size] = IN_HEADER.pack(*header) + arguments
        request.size, request.nodeid = size, self.nodeid
        self._replied = trio.Event()
        assert self._handler(request) is None
        await self._replied.wait()
        return self._errors.pop()


@asynccontextmanager
async def writing(backing: Backing) -> AsyncIterator[Writer]:
    pending = Pending()
    with trio.fail_after(60):
        async with trio.open_nursery() as pending.nursery:
            writer = Writer(backing, pending)
            yield writer
            writer.namespace.close()


async def test_a_write_is_traced_with_its_beginning_and_its_error(
    backing: Backing,
) -> None:
    async with writing(backing) as writer:
        found: list[Happened] = []
        writer.namespace.trace.listen(found.append)
        assert await writer.write(PAGE, bytes(PAGE)) == 0
        assert await writer.write(1, bytes(PAGE)) == errno.EINVAL
    assert [(one.what, one.start, one.end, one.error) for one in found] == [
        ("write", PAGE, 2 * PAGE, 0),
        ("write", 1, PAGE + 1, errno.EINVAL),
    ]
    assert {(one.file, one.who) for one in found} == {(writer.nodeid, 4711)}
    assert all(0 < one.began <= one.time for one in found)


async def test_nothing_is_built_for_a_trace_without_listeners(
    backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(trace, "Happened", built)
    async with writing(backing) as writer:
        assert await writer.write(0, bytes(PAGE)) == 0
        assert await writer.write(1, bytes(PAGE)) == errno.EINVAL
