"""Handlers of open files and directories: OPEN, CREATE, TMPFILE, OPENDIR, RELEASE."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from inaccfs.fuse import attributes, wire
from inaccfs.fuse.seal import unsealed
from inaccfs.fuse.wire import Op

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.requests import Answer, Handler, Request
    from inaccfs.fuse.seal import Seal


class OpenHandlers:
    """The requests about open files."""

    def __init__(self, namespace: Namespace, *, seekable: bool = False) -> None:
        """*seekable*: reads and writes have offsets, because write(2) fills files."""
        self._seekable: Final = seekable
        self._namespace: Final = namespace
        self._inodes: Final = namespace.inodes
        self._opens: Final = namespace.opens
        # The backing file of every open. The channel sets it after INIT.
        self.seal: Seal = unsealed("the kernel has not sent INIT yet")

    def handlers(self) -> Mapping[Op, Handler]:
        """The handlers by opcode."""
        return {
            Op.OPEN: self._open,
            Op.CREATE: self._create,
            Op.TMPFILE: self._tmpfile,
            Op.OPENDIR: self._opendir,
            Op.RELEASE: self._release,
        }

    def _opened(self, node: Node, entry: bytes = b"") -> bytes:
        """The payload for a new open, after *entry* if it is a new file.

        The file handle is the nodeid.
        """
        try:
            backing_id = self.seal.backing_id(node.ino, node.fd)
        except OSError:
            if entry:
                self._namespace.unmake(node)
            else:
                self._opens.release(node)
            raise
        flags = wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH
        if backing_id:
            flags |= wire.FOPEN_PASSTHROUGH
        elif not self._seekable:
            # Then the kernel itself fails pread and lseek with ESPIPE, like v8's file.
            # It does not allow this flag with FOPEN_PASSTHROUGH.
            flags |= wire.FOPEN_NONSEEKABLE
        return entry + wire.pack_open(node.ino, flags, backing_id)

    def _open(self, request: Request) -> Answer:
        request.need(wire.OPEN_SIZE)
        flags, how = wire.unpack_open(request.buffer)
        node = self._inodes[request.nodeid]
        if flags & os.O_TRUNC:
            kills = bool(how & wire.OPEN_KILL_SUIDGID)
            request.later(self._open_truncated, node, flags, request.pid, kills)
            return None
        self._opens.open(node, flags)
        return self._opened(node)

    async def _open_truncated(
        self, node: Node, flags: int, pid: int, kills_set_ids: bool
    ) -> bytes:
        """OPEN with O_TRUNC: the kernel leaves the truncation to us.

        *kills_set_ids*: the truncation by process *pid* removes the set-ID bits.
        """
        self._opens.open(node, flags)
        try:
            with self._opens.hold(node) as file:
                await file.set_size(0, who=pid)
            if kills_set_ids:
                attributes.drop_set_ids(self._namespace, node, pid)
        except BaseException:
            self._opens.release(node)
            raise
        return self._opened(node)

    def _create(self, request: Request) -> bytes:
        request.need(wire.CREATE_SIZE)
        flags, mode = wire.unpack_create(request.buffer)
        name = wire.name_at(request.buffer, wire.CREATE_SIZE, request.size)
        namespace = self._namespace
        parent = self._inodes[request.nodeid]
        entry = namespace.create(parent, name, flags, mode, *request.caller)
        return self._opened(self._inodes[entry.nodeid], wire.pack_entry(entry))

    def _tmpfile(self, request: Request) -> bytes:
        request.need(wire.CREATE_SIZE)
        flags, mode = wire.unpack_create(request.buffer)
        namespace = self._namespace
        parent = self._inodes[request.nodeid]
        entry = namespace.tmpfile(parent, flags, mode, *request.caller)
        return self._opened(self._inodes[entry.nodeid], wire.pack_entry(entry))

    def _opendir(self, request: Request) -> bytes:
        request.need(wire.OPEN_SIZE)
        flags, _ = wire.unpack_open(request.buffer)
        node = self._inodes[request.nodeid]
        return wire.pack_open(self._namespace.directories.open(node, flags), 0, 0)

    def _release(self, request: Request) -> bytes:
        try:
            self.seal.closed(request.nodeid)
        finally:
            self._opens.release(self._inodes[request.nodeid])
        return b""
