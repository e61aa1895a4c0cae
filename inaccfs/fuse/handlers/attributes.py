"""Handlers of attributes: GETATTR, STATX, SETATTR."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from inaccfs.fuse import attributes, wire
from inaccfs.fuse.wire import Op

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.requests import Answer, Handler, Request
    from inaccfs.fuse.wire import Setattr


class AttributeHandlers:
    """The requests about attributes."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace: Final = namespace
        self._inodes: Final = namespace.inodes
        # Looked up once: GETATTR is the most frequent request.
        self._nodes: Final = namespace.inodes.nodes

    def handlers(self) -> Mapping[Op, Handler]:
        """The handlers by opcode."""
        return {
            Op.GETATTR: self._getattr,
            Op.STATX: self._statx,
            Op.SETATTR: self._setattr,
        }

    def _getattr(self, request: Request) -> Answer:
        node = self._nodes.get(request.nodeid)
        if node is None:
            return errno.ESTALE
        file = node.file
        if file is None:
            return self._attributes(node)
        if file.turn.undoing is not None:
            request.later(self._getattr_undone, node)
            return None
        # The kernel never keeps the attributes of a file: see Inodes.attr_valid().
        return wire.pack_attr(node.ino, os.fstat(node.fd), 0)

    def _attributes(self, node: Node) -> bytes:
        namespace = self._namespace
        return wire.pack_attr(
            node.ino,
            namespace.inodes.attributes(node),
            namespace.inodes.attr_valid(node),
        )

    async def _getattr_undone(self, node: Node) -> bytes:
        if node.file is not None:
            await node.file.turn.wait_undone()
        return self._attributes(node)

    def _statx(self, request: Request) -> Answer:
        """As GETATTR, and the time of birth."""
        node = self._inodes[request.nodeid]
        if node.file is None or node.file.turn.undoing is None:
            return self._extended(node)
        request.later(self._statx_undone, node)
        return None

    def _extended(self, node: Node) -> bytes:
        inodes = self._inodes
        return wire.pack_statx(node.ino, inodes.statx(node), inodes.attr_valid(node))

    async def _statx_undone(self, node: Node) -> bytes:
        if node.file is not None:
            await node.file.turn.wait_undone()
        return self._extended(node)

    def _setattr(self, request: Request) -> None:
        wanted = wire.setattr_in(request.buffer, request.size)
        node = self._inodes[request.nodeid]
        request.later(self._change, node, wanted, request.pid)

    async def _change(self, node: Node, wanted: Setattr, pid: int) -> bytes:
        await attributes.change(self._namespace, node, wanted, pid)
        return self._attributes(node)
