"""The handler of FALLOCATE."""

from __future__ import annotations

from contextlib import ExitStack
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from inaccfs.fuse import wire
from inaccfs.fuse.wire import Op
from inaccfs.shim.call import Call
from inaccfs.shim.file import DONE, UNDER_WAY

if TYPE_CHECKING:
    from collections.abc import Mapping

    import trio

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.requests import Answer, Handler, Pending, Request
    from inaccfs.shim.file import InaccessibleFile


class AllocationHandlers:
    """Allocates and punches."""

    def __init__(self, namespace: Namespace, pending: Pending) -> None:
        self._inodes: Final = namespace.inodes
        self._opens: Final = namespace.opens
        self._listeners: Final = namespace.trace.listeners
        self._pending: Final = pending

    def handlers(self) -> Mapping[Op, Handler]:
        """The handlers by opcode."""
        return {Op.FALLOCATE: self._fallocate}

    def _fallocate(self, request: Request) -> Answer:
        if request.size < wire.FALLOCATE_SIZE:
            request.need(wire.FALLOCATE_SIZE)
        offset, length, mode = wire.unpack_fallocate(request.buffer)
        node = self._inodes[request.nodeid]
        file = node.file
        if file is None:
            file = self._opens.reopen(node)
        who = request.pid if self._listeners else 0
        begun = file.begin(mode, offset, length, request.finisher, who)
        if begun is DONE:
            return b""
        if begun is UNDER_WAY:
            return None
        began = monotonic_ns() if self._listeners else 0
        call, reply = Call(mode, offset, length, who, began), request.hold()
        # Register this before reading on: the next request may be the INTERRUPT for
        # this one.
        interrupted = reply.on_interrupt()
        # By the time the task runs, pending FORGETs have been read. They may free the
        # space that was missing: the kernel lets some of them overtake a FALLOCATE.
        reply.later(self._finish_call, node, call, interrupted)
        return None

    async def _finish_call(
        self, node: Node, call: Call, interrupted: trio.Event
    ) -> bytes:
        # Keep the file open: after an interrupt the caller may close it before the
        # backing has freed the memory that it took.
        with ExitStack() as stack:
            file = stack.enter_context(self._opens.hold(node))
            try:
                await file.finish(call, interrupted)
            finally:
                if file.turn.undoing is not None:
                    self._pending.start(_close_when_undone, file, stack.pop_all())
        return b""


async def _close_when_undone(file: InaccessibleFile, hold: ExitStack) -> None:
    with hold:
        await file.turn.wait_undone()
