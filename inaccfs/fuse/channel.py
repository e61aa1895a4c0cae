"""The channel: connects handlers, /dev/fuse and the relay to pyfuse3.

pyfuse3 has no handler for FALLOCATE and TMPFILE and cannot express the open flags of
the seal, so it does not get /dev/fuse. It gets one end of a SOCK_SEQPACKET pair, and
the channel keeps the device. The requests of a file's life are answered in the daemon's
own handlers (handlers/), in some ten microseconds each; so are SETATTR, STATX and
OPENDIR, of which pyfuse3 does not pass on everything. Rare requests, and those whose
replies libfuse packs well, go over the pair to pyfuse3 and back: links, reading
directories, extended attributes.
"""

from __future__ import annotations

import errno
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.fuse import handshake, wire
from inaccfs.fuse.device import Device
from inaccfs.fuse.handlers import refusals
from inaccfs.fuse.handlers.allocation import AllocationHandlers
from inaccfs.fuse.handlers.attributes import AttributeHandlers
from inaccfs.fuse.handlers.names import NameHandlers
from inaccfs.fuse.handlers.openfiles import OpenHandlers
from inaccfs.fuse.relay import Relay
from inaccfs.fuse.requests import Pending, table
from inaccfs.fuse.timing import Timing
from inaccfs.fuse.wire import Op

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from inaccfs.fuse.handshake import Init
    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.requests import Answer, Handler, Reply, Request
    from inaccfs.fuse.seal import Seal

# Directory entries for one READDIRPLUS: some 180, a millisecond or two of work.
_READDIR_BYTES: Final = 32768

_RELAYED: Final = (
    Op.READLINK,
    Op.SYMLINK,
    Op.MKNOD,
    Op.MKDIR,
    Op.LINK,
    Op.STATFS,
    Op.SETXATTR,
    Op.LISTXATTR,
    Op.REMOVEXATTR,
    Op.READDIR,
    Op.READDIRPLUS,
    Op.RELEASEDIR,
    Op.FSYNCDIR,
    Op.DESTROY,
)


class Channel:
    """One connection to the kernel, and its relay to pyfuse3."""

    def __init__(
        self,
        device: int,
        relay: socket.socket,
        namespace: Namespace,
        make_seal: Callable[[bool], Seal],
        read_errno: int = errno.EINVAL,
        writing: Mapping[Op, Handler] = MappingProxyType({}),
    ) -> None:
        """Take a non-blocking *device* fd and our end of the pair to pyfuse3.

        *make_seal* is called after INIT, with whether the kernel offers passthrough.
        *read_errno* is the errno of READ and WRITE; *writing* has the handler of WRITE
        where it is not refused.
        """
        self._namespace: Final = namespace
        self._keeps_nodes: Final = namespace.inodes.keeps_nodes
        self._make_seal: Final = make_seal
        # Set when INIT is done and every later open is sealed, or known not to be.
        self.initialised: Final = trio.Event()
        # A second transport would share these two with the device.
        self.pending: Final = Pending()
        self._device: Final = Device(device, self.pending)
        self._relay: Final = Relay(relay)
        self._writes: Final = bool(writing)
        self._opens: Final = OpenHandlers(namespace, seekable=self._writes)
        self.handlers: Final[list[Handler]] = table(
            refusals.handlers(read_errno, namespace.trace),
            writing,
            NameHandlers(namespace).handlers(),
            AttributeHandlers(namespace).handlers(),
            self._opens.handlers(),
            AllocationHandlers(namespace, self.pending).handlers(),
            dict.fromkeys(_RELAYED, self._hand_on),
            {
                Op.GETXATTR: self._getxattr,
                Op.INIT: self._init,
                Op.INTERRUPT: self.pending.interrupt,
            },
        )
        Timing(self.handlers, namespace.trace)

    @property
    def seal(self) -> Seal:
        """The backing file of every open."""
        return self._opens.seal

    async def run(self) -> None:
        """Serve until the file system is unmounted."""
        async with trio.open_nursery() as nursery:
            self.pending.nursery = nursery
            self._namespace.opens.start = nursery.start_soon
            nursery.start_soon(self._relay.run)
            try:
                await self._device.serve(self.handlers)
            finally:
                self._namespace.opens.start = None
            nursery.cancel_scope.cancel()

    # --- to and from pyfuse3 ---------------------------------------------------

    def _hand_on(self, request: Request) -> None:
        """Pass a request on to pyfuse3."""
        op = request.op
        if op in (Op.READDIR, Op.READDIRPLUS):
            wire.clamp_readdir(request.buffer, request.size, _READDIR_BYTES)
        largest_reply = wire.largest_reply(op, request.buffer, request.size)
        reply = request.hold()
        self._relay.send(request.message, largest_reply, reply.send)

    def _getxattr(self, request: Request) -> Answer:
        # The kernel asks for this attribute before any change of a file. No file has
        # one: the mount is nosuid, and setting one is refused.
        if wire.getxattr_name(request.buffer, request.size) == b"security.capability":
            return errno.ENODATA
        self._hand_on(request)
        return None

    # --- INIT ------------------------------------------------------------------

    def _init(self, request: Request) -> None:
        init = handshake.parse_init(request.buffer, request.size)
        message = handshake.init_for_relay(request.buffer, request.size)
        finish = partial(self._finish_init, request.hold(), init)
        self._relay.send(message, handshake.LARGEST_INIT_REPLY, finish)

    def _finish_init(
        self, reply: Reply, init: Init, number: int, payload: memoryview
    ) -> None:
        """Answer INIT, when pyfuse3 is ready. The kernel gets our own answer."""
        if number:
            reply.send(number)
            return
        reply.succeed(
            handshake.pack_init(init, handles=self._keeps_nodes, writes=self._writes)
        )
        self._opens.seal = self._make_seal(init.passthrough)
        self.initialised.set()
