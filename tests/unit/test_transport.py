"""A second transport beside /dev/fuse, on the same handlers: lists in, lists out."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.fuse import requests, wire
from inaccfs.fuse.requests import Pending, Request
from inaccfs.fuse.wire import Op
from inaccfs.syscalls import PUNCH
from tests.unit import fakes
from tests.unit.blocked_fakes import BlockedAllocator
from tests.unit.fakes import FALLOCATE_IN, INTERRUPT_IN, World, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from inaccfs.backing.root import Backing
    from inaccfs.fuse.requests import Handler

PAGE = 4096
INTERRUPTIBLE = 256 << 20


class Lists:
    """A transport with headers and arguments apart, as a ring has them."""

    def __init__(self, handlers: list[Handler], pending: Pending) -> None:
        self._handlers = handlers
        self.request = Request(pending, self._late)
        # By number of the request: errno or 0, and the payload.
        self.replies: dict[int, tuple[int, bytes]] = {}

    def serve(self, op: int, nodeid: int, unique: int, arguments: bytes) -> None:
        """Take one request out of the kernel's hands, and answer it if possible."""
        request = self.request
        size = fakes.IN_HEADER.size + len(arguments)
        header = (size, op, unique, nodeid, 1000, 1001, 4711, 0, 0)
        request.buffer[:size] = fakes.IN_HEADER.pack(*header) + arguments
        request.size, request.nodeid = size, nodeid
        answer: bytes | int | None
        try:
            answer = self._handlers[op](request)
        except Exception as exc:
            answer = requests.errno_of(exc, op)
        # Code that reads the request after its handler has returned sees this.
        request.buffer[:size] = b"\xff" * size
        request.size = request.nodeid = 0
        if isinstance(answer, int):
            self._late(unique, answer, b"")
        elif answer is not None:
            self._late(unique, 0, answer)

    def _late(self, unique: int, number: int, payload: bytes | memoryview) -> None:
        assert unique not in self.replies, "two replies to one request"
        self.replies[unique] = number, bytes(payload)


@pytest.fixture
async def both(backing: Backing) -> AsyncIterator[tuple[World, Lists]]:
    """A channel, and a second transport on its handlers."""
    blocked = BlockedAllocator()
    async with serving(backing, allocator=blocked) as world:
        yield world, Lists(world.channel.handlers, world.channel.pending)
        blocked.let_go()


async def _file(world: World) -> int:
    return (await world.kernel.create(b"f")).entry().nodeid


async def test_both_transports_give_the_same_answers(
    both: tuple[World, Lists],
) -> None:
    world, lists = both
    nodeid = await _file(world)
    allocation = FALLOCATE_IN.pack(nodeid, 0, PAGE, 0, 0)
    for unique, (op, body) in enumerate(
        (
            (Op.GETATTR, b""),
            (Op.FALLOCATE, allocation),
            (Op.FALLOCATE, FALLOCATE_IN.pack(nodeid, 0, PAGE, PUNCH, 0)),
            (Op.FALLOCATE, FALLOCATE_IN.pack(nodeid, 1, PAGE, 0, 0)),
            (Op.READ, fakes.read_in(8)),
            (Op.IOCTL, bytes(32)),
            (Op.FLUSH, bytes(24)),
            (Op.OPENDIR, bytes(7)),
            (63, b""),
        )
    ):
        expected = await world.kernel.call(op, nodeid, body)
        lists.serve(op, nodeid, unique, body)
        number, payload = lists.replies[unique]
        assert number == expected.error
        assert len(payload) == len(expected.payload)
    lists.serve(Op.LOOKUP, 1, 100, b"f\0")
    assert fakes.ENTRY_OUT.unpack_from(lists.replies[100][1])[0] == nodeid
    lists.serve(Op.FORGET, nodeid, 101, fakes.FORGET_IN.pack(1))
    assert 101 not in lists.replies


async def test_late_answers_go_back_the_way_their_request_came(
    both: tuple[World, Lists],
) -> None:
    """They answer their own request, not the one that is in the buffer by then."""
    world, lists = both
    nodeid = await _file(world)
    number = await world.kernel.send(
        Op.FALLOCATE, nodeid, FALLOCATE_IN.pack(nodeid, 0, INTERRUPTIBLE, 0, 0)
    )
    lists.serve(Op.FALLOCATE, nodeid, 7, FALLOCATE_IN.pack(nodeid, 0, PAGE, 0, 0))
    lists.serve(Op.SETATTR, nodeid, 8, bytes(88))
    lists.serve(Op.SYMLINK, 1, 9, b"name\0target\0")
    lists.serve(Op.GETATTR, nodeid, 10, b"")
    assert 10 in lists.replies
    await trio.testing.wait_all_tasks_blocked()
    # The kernel's, and by way of pyfuse3.
    assert lists.replies[9] == (0, b"")
    # INTERRUPT always comes by /dev/fuse.
    await world.kernel.send(Op.INTERRUPT, 0, INTERRUPT_IN.pack(number))
    assert await world.kernel.receive() == (number, errno.EINTR, b"")
    await trio.testing.wait_all_tasks_blocked()
    assert lists.replies[7][0] == lists.replies[8][0] == 0


async def test_an_interrupt_reaches_a_request_of_another_transport(
    both: tuple[World, Lists],
) -> None:
    world, lists = both
    nodeid = await _file(world)
    body = FALLOCATE_IN.pack(nodeid, 0, INTERRUPTIBLE, 0, 0)
    lists.serve(Op.FALLOCATE, nodeid, 1001, body)
    await world.kernel.send(Op.INTERRUPT, 0, INTERRUPT_IN.pack(1001))
    await world.kernel.call(Op.GETATTR)
    await trio.testing.wait_all_tasks_blocked()
    assert lists.replies == {1001: (errno.EINTR, b"")}
    assert not world.channel.pending.interrupts


async def test_a_request_has_its_caller() -> None:
    request = Request(Pending(), lambda *_: None)
    header = (40, Op.GETATTR, 8, 1, 1000, 1001, 4711, 0, 0)
    request.buffer[:40] = fakes.IN_HEADER.pack(*header)
    request.size = 40
    assert (request.op, request.pid, request.caller) == (3, 4711, (1000, 1001))
    with pytest.raises(wire.Truncated):
        request.need(41)


@pytest.mark.parametrize(
    ("number", "sent"),
    [
        (errno.EINVAL, errno.EINVAL),
        (511, 511),
        (errno.ENOSYS, errno.EOPNOTSUPP),
        (0, errno.EIO),
        (-22, errno.EIO),
        (512, errno.EIO),
    ],
)
def test_no_errno_is_sent_that_the_kernel_would_misunderstand(
    number: int, sent: int
) -> None:
    assert requests.safe_errno(number) == sent
    refused = OSError(number, os.strerror(abs(number)))
    assert requests.errno_of(refused, Op.GETATTR) == sent
    assert requests.errno_of(refused, Op.FORGET) is None
