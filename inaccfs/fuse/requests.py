"""Requests and replies, for all transports between the kernel and the daemon.

A transport (device.py is the one for /dev/fuse) reads a request, calls the handler of
its opcode (handlers/), and sends what the handler returns:

- bytes: success, and the payload that follows the header of the reply;
- a positive int: the errno to fail with, for refusals that should cost little;
- None: no reply now. Either the request takes none, or the handler has called
  `Request.hold` and replies later.

A handler may also raise an exception: `errno_of` translates it. A handler knows neither
the number of its request nor the header of its reply.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVarTuple

import trio

from inaccfs import errnos
from inaccfs.fuse import wire
from inaccfs.fuse.wire import Op

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

Ts = TypeVarTuple("Ts")

log = logging.getLogger(__name__)

# The kernel accepts no reply to these, not even to malformed ones.
_UNANSWERED: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})

Answer = bytes | int | None
"""The return of a handler: see the docstring of the module."""

Send = Callable[[int, int, bytes | memoryview], None]
"""A transport's function that sends a late reply: unique, errno or 0, payload."""


class Pending:
    """The requests of one connection that are answered later, for all transports."""

    def __init__(self) -> None:
        # Runs the tasks that answer later. Set while the connection is served.
        self.nursery: trio.Nursery | None = None
        # By unique: set when the kernel sends an INTERRUPT for that request.
        self.interrupts: Final[dict[int, trio.Event]] = {}

    def start(self, task: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Run *task* in the background."""
        assert self.nursery is not None
        self.nursery.start_soon(task, *args)

    def interrupt(self, request: Request) -> None:
        """INTERRUPT: the caller of a request has got a signal.

        It is ignored for requests without `on_interrupt`: those are short.
        """
        request.need(wire.INTERRUPT_SIZE)
        (target,) = wire.unpack_interrupt(request.buffer)
        if (interrupted := self.interrupts.get(target)) is not None:
            interrupted.set()


class Request:
    """One request. A transport has one of these and uses it for all its requests.

    `buffer` has the request in the form of /dev/fuse, the header followed by the
    arguments: a transport that gets them in pieces joins them, because wire.py and
    pyfuse3 need that form. All of it is valid only until the handler returns: tasks
    that answer later get values, not the request.
    """

    __slots__ = ("_pending", "_send", "buffer", "nodeid", "size")

    def __init__(self, pending: Pending, send: Send) -> None:
        """*send* is the transport's, for replies that come later."""
        self._pending: Final = pending
        self._send: Final = send
        self.buffer: Final = bytearray(wire.REQUEST_BUFFER_SIZE)
        # Bytes of `buffer` that belong to this request.
        self.size = 0
        # The inode of the request. The transport sets it, with the size.
        self.nodeid = 0

    def need(self, size: int) -> None:
        """Check that header and arguments have *size* bytes.

        Raises:
            Truncated: they have fewer.
        """
        if self.size < size:
            wire.need(self.size, size)

    @property
    def op(self) -> int:
        """The opcode."""
        return int(wire.unpack_header(self.buffer)[1])

    @property
    def pid(self) -> int:
        """The process that makes the system call; 0 if our pid namespace lacks it."""
        return int(wire.unpack_pid(self.buffer)[0])

    @property
    def caller(self) -> tuple[int, int]:
        """uid and gid that a new inode gets."""
        uid, gid = wire.unpack_caller(self.buffer)
        return uid, gid

    @property
    def message(self) -> bytes:
        """A copy of the whole request, for pyfuse3."""
        return bytes(memoryview(self.buffer)[: self.size])

    def hold(self) -> Reply:
        """The reply to this request, which may be sent after the handler returns."""
        _, op, unique, _ = wire.unpack_header(self.buffer)
        return Reply(self._pending, self._send, unique, op)

    def finisher(self) -> Callable[[Exception | None], None]:
        """A function that replies later, with the error of the call, or success."""
        return self.hold().finish

    def later(self, answer: Callable[[*Ts], Awaitable[bytes]], *args: *Ts) -> None:
        """Reply with what *answer*, run as a task, returns or raises."""
        self.hold().later(answer, *args)


class Reply:
    """The reply to a request whose handler has returned. Must be sent exactly once."""

    __slots__ = ("_op", "_pending", "_send", "_unique")

    def __init__(self, pending: Pending, send: Send, unique: int, op: int) -> None:
        self._pending: Final = pending
        self._send: Final = send
        self._unique: Final = unique
        self._op: Final = op

    def succeed(self, payload: bytes = b"") -> None:
        """Reply that the call has succeeded. Never raises."""
        self.send(0, payload)

    def fail(self, exc: Exception) -> None:
        """Reply that the call has failed. Never raises."""
        self.send(errno_of(exc, self._op) or errno.EIO)

    def finish(self, failure: Exception | None) -> None:
        """Reply that the call has failed with *failure*, or succeeded. Never raises."""
        if failure is None:
            self.succeed()
        else:
            self.fail(failure)

    def send(self, number: int, payload: bytes | memoryview = b"") -> None:
        """Reply with errno *number* if it is not 0, else with *payload*."""
        self._pending.interrupts.pop(self._unique, None)
        self._send(self._unique, number, payload)

    def later(self, answer: Callable[[*Ts], Awaitable[bytes]], *args: *Ts) -> None:
        """Reply with what *answer*, run as a task, returns or raises."""
        self._pending.start(self._send_result, answer, args)

    async def _send_result(
        self, answer: Callable[[*Ts], Awaitable[bytes]], args: tuple[*Ts]
    ) -> None:
        try:
            payload = await answer(*args)
        except Exception as exc:
            self.fail(exc)
        else:
            self.succeed(payload)

    def on_interrupt(self) -> trio.Event:
        """An event that is set if the caller is interrupted before the reply."""
        event = self._pending.interrupts[self._unique] = trio.Event()
        return event


Handler = Callable[[Request], Answer]


def unknown(request: Request) -> int:
    """ENOSYS, for an unknown opcode: the kernel need not send it again."""
    return errno.ENOSYS


def table(*groups: Mapping[Op, Handler]) -> list[Handler]:
    """Handlers by opcode. Opcodes from `wire.OP_TABLE_SIZE` on are treated as 0."""
    handlers: list[Handler] = [unknown] * wire.OP_TABLE_SIZE
    for group in groups:
        for op, handler in group.items():
            handlers[op] = handler
    return handlers


def errno_of(exc: Exception, op: int) -> int | None:
    """Translate an exception of a handler, once: the errno of the reply.

    An `OSError` is for the caller; anything else is a bug of ours or of the kernel,
    which is logged, and EIO. None if opcode *op* takes no reply.
    """
    number = errno.EIO
    if isinstance(exc, OSError) and errnos.is_errno(exc.errno):
        number = safe_errno(exc.errno)
    elif isinstance(exc, wire.Truncated):
        log.error("malformed request, opcode %d: %s", op, exc)
    else:
        log.error("bug in the handler of opcode %d", op, exc_info=exc)
    return None if op in _UNANSWERED else number


def safe_errno(number: int) -> int:
    """*number*, or another errno if the kernel would misunderstand it.

    Every errno passes through here, except the answer to an unknown opcode. The kernel
    refuses a reply whose errno is out of range, and the caller would wait for ever:
    such an errno becomes EIO. After ENOSYS the kernel never sends that opcode again on
    this mount, or wrongly does the work without us (as for OPEN): ENOSYS becomes
    EOPNOTSUPP.
    """
    if number == errno.ENOSYS:
        return errno.EOPNOTSUPP
    return number if errnos.is_errno(number) else errno.EIO
