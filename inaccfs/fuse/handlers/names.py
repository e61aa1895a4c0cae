"""Handlers of names: LOOKUP and FORGET, UNLINK, RMDIR and RENAME."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.fuse import wire
from inaccfs.fuse.wire import Op

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.requests import Answer, Handler, Request

Place = tuple["Node", bytes]
"""A directory, and a name in it."""


class NameHandlers:
    """The requests about names."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace: Final = namespace
        self._inodes: Final = namespace.inodes

    def handlers(self) -> Mapping[Op, Handler]:
        """The handlers by opcode."""
        return {
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._batch_forget,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            Op.RENAME: self._rename,
            Op.RENAME2: self._rename2,
        }

    def _lookup(self, request: Request) -> bytes:
        namespace = self._namespace
        name = wire.looked_up(request.buffer, request.size)
        node = self._inodes[request.nodeid]
        if name in wire.DOTS:
            return wire.pack_entry(namespace.lookup_dots(node, name))
        try:
            return wire.pack_entry(namespace.lookup(node, name))
        except FileNotFoundError:
            return wire.pack_no_entry(self._inodes.entry_valid)

    def _forget(self, request: Request) -> None:
        request.need(wire.FORGET_SIZE)
        (nlookup,) = wire.unpack_forget(request.buffer)
        self._inodes.forget(request.nodeid, nlookup)

    def _batch_forget(self, request: Request) -> None:
        for nodeid, nlookup in wire.forgets(request.buffer, request.size):
            self._inodes.forget(nodeid, nlookup)

    def _unlink(self, request: Request) -> Answer:
        namespace = self._namespace
        name = wire.only_name(request.buffer, request.size)
        place = self._inodes[request.nodeid], name
        return self._change(request, lambda: namespace.unlink(*place), place)

    def _rmdir(self, request: Request) -> bytes:
        name = wire.only_name(request.buffer, request.size)
        self._namespace.rmdir(self._inodes[request.nodeid], name)
        return b""

    def _rename(self, request: Request, *, with_flags: bool = False) -> Answer:
        newdir, flags, old_name, new_name = wire.rename_names(
            request.buffer, request.size, with_flags=with_flags
        )
        namespace = self._namespace
        old = self._inodes[request.nodeid], old_name
        new = self._inodes[newdir], new_name
        return self._change(
            request, lambda: namespace.rename(*old, *new, flags), old, new
        )

    def _rename2(self, request: Request) -> Answer:
        return self._rename(request, with_flags=True)

    def _change(
        self, request: Request, change: Callable[[], None], *places: Place
    ) -> Answer:
        """Change the names at *places* when no file there has a long operation."""
        if self._namespace.busy_at(*places) is not None:
            request.later(self._change_when_idle, change, places)
            return None
        change()
        return b""

    async def _change_when_idle(
        self, change: Callable[[], None], places: tuple[Place, ...]
    ) -> bytes:
        while (busy := self._namespace.busy_at(*places)) is not None:
            await self._namespace.wait_idle(busy)
        change()
        return b""
