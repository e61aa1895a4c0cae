"""The handler of WRITE, in semantics by which write(2) fills files."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from inaccfs.fuse import wire
from inaccfs.fuse.wire import Op
from inaccfs.shim import hostaccess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.requests import Answer, Handler, Request


class WritingHandlers:
    """Fills pages. A larger write(2) arrives as several requests in sequence."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace: Final = namespace

    def handlers(self) -> Mapping[Op, Handler]:
        """The handlers by opcode."""
        return {Op.WRITE: self._write}

    def _write(self, request: Request) -> Answer:
        offset, data = wire.written(request.buffer, request.size)
        node = self._namespace.inodes[request.nodeid]
        began = monotonic_ns() if self._namespace.trace.listeners else 0
        request.later(self._fill, node, offset, data, request.pid, began)
        return None

    async def _fill(
        self, node: Node, offset: int, data: bytes, pid: int, began: int
    ) -> bytes:
        end = offset + len(data)
        with self._namespace.opens.hold(node) as file:
            trace = file.trace
            try:
                await hostaccess.write(file, offset, data)
            except Exception as exc:
                if trace.listeners:
                    trace.tell("write", offset, end, pid, exc, began)
                raise
            if trace.listeners:
                trace.tell("write", offset, end, pid, None, began)
        return wire.pack_write(len(data))
