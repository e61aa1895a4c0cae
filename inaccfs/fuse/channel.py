"""The channel: reads requests from /dev/fuse, answers most, relays the rest.

pyfuse3 has no handler for FALLOCATE and TMPFILE and cannot express the seal's open
flags, so it does not get /dev/fuse. It gets one end of a SOCK_SEQPACKET pair, and
the channel keeps the device. What a file's life is made of is answered here, in some
ten microseconds a request: LOOKUP, CREATE, OPEN, GETATTR, FALLOCATE, RENAME, UNLINK,
FORGET; and so is what pyfuse3 does not tell whole: SETATTR, STATX, OPENDIR. What is
rarer, or needs replies that libfuse packs well, goes over the pair to pyfuse3 and
back: links, the reading of directories, extended attributes.
"""

from __future__ import annotations

import errno
import io
import logging
import os
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, overload

import trio

from inaccfs import errnos
from inaccfs.fuse import attributes, handshake, wire
from inaccfs.fuse.relay import Relay
from inaccfs.fuse.seal import Seal, unsealed
from inaccfs.fuse.wire import Op
from inaccfs.syscalls import FALLOC_FL_PUNCH_HOLE

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from inaccfs.fuse.inodes import Node
    from inaccfs.fuse.namespace import Namespace
    from inaccfs.shim.file import InaccessibleFile

log = logging.getLogger(__name__)

# After so many requests in a row the other tasks get a turn. Fewer than one request in
# a hundred then pays for a round of the trio loop.
_REQUESTS_IN_A_ROW: Final = 128

# Directory entries for one READDIRPLUS: some 180, a millisecond or two of work.
_READDIR_BYTES: Final = 32768

_RELAYED: Final = frozenset(
    {
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
    }
)

# The answers of a file whose operations lack these: the seed's has fallocate and
# release only.
_REFUSED: Final = {
    Op.COPY_FILE_RANGE: errno.EINVAL,
    Op.COPY_FILE_RANGE_64: errno.EINVAL,
    # Only SEEK_DATA and SEEK_HOLE are asked of the daemon.
    Op.LSEEK: errno.ESPIPE,
    Op.IOCTL: errno.ENOTTY,
}


# These have no reply, not even when they are wrong.
_UNANSWERED: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})


class Channel:
    """Both ends of a connection: the kernel's requests and pyfuse3's replies."""

    def __init__(
        self,
        device: int,
        relay: socket.socket,
        namespace: Namespace,
        make_seal: Callable[[bool], Seal],
        read_errno: int = errno.EINVAL,
    ) -> None:
        """Take a non-blocking *device* fd and our end of the pair to pyfuse3.

        *make_seal* is called once INIT is done, with whether the kernel offers
        passthrough. *read_errno* is the errno of READ and WRITE.
        """
        self._device = device
        self._relay = Relay(relay)
        self._namespace = namespace
        self._nodes = namespace.nodes
        self._make_seal = make_seal
        self.seal = unsealed("the kernel has not said INIT yet")
        # Set when INIT is done and every later open is sealed, or known not to be.
        self.initialised = trio.Event()

        # One request at a time is read into this and dealt with before the next.
        self._request = bytearray(wire.REQUEST_BUFFER_SIZE)
        self._init: tuple[int, handshake.Init] | None = None
        # FALLOCATE requests in worker threads, by unique: set to interrupt one.
        self._interrupts: dict[int, trio.Event] = {}
        self._nursery: trio.Nursery | None = None

        self._handlers = self._make_handlers(read_errno)

    def _make_handlers(
        self, read_errno: int
    ) -> list[Callable[[int, int, int], bytes | None]]:
        handlers: list[Callable[[int, int, int], bytes | None]]
        handlers = [self._unknown] * wire.OP_TABLE_SIZE
        for op in _RELAYED:
            handlers[op] = self._hand_on
        for op, number in _REFUSED.items():
            handlers[op] = _refuser(op, number)
        # Zero-length reads never come here; the kernel answers those itself.
        for op in (Op.READ, Op.WRITE):
            handlers[op] = _refuser(op, read_errno)
        handlers[Op.INIT] = self._init_request
        handlers[Op.LOOKUP] = self._lookup
        handlers[Op.FORGET] = self._forget
        handlers[Op.BATCH_FORGET] = self._batch_forget
        handlers[Op.GETATTR] = self._getattr
        handlers[Op.STATX] = self._statx
        handlers[Op.SETATTR] = self._setattr
        handlers[Op.UNLINK] = self._unlink
        handlers[Op.RMDIR] = self._rmdir
        handlers[Op.RENAME] = self._rename
        handlers[Op.RENAME2] = self._rename2
        handlers[Op.OPEN] = self._open
        handlers[Op.CREATE] = self._create
        handlers[Op.TMPFILE] = self._tmpfile
        handlers[Op.OPENDIR] = self._opendir
        handlers[Op.FLUSH] = self._done
        # The kernel looks at the mode itself (default_permissions) and does not ask.
        handlers[Op.ACCESS] = self._done
        # The seed's file has no fsync, so EINVAL; but fallocate(1) ends with one, and
        # would tell its user that it had failed.
        handlers[Op.FSYNC] = self._done
        handlers[Op.RELEASE] = self._release
        handlers[Op.FALLOCATE] = self._fallocate
        handlers[Op.GETXATTR] = self._getxattr
        handlers[Op.INTERRUPT] = self._interrupt
        return handlers

    async def run(self) -> None:
        """Serve until the file system is unmounted."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._relay.run, self._deliver)
            await self._serve_kernel()
            nursery.cancel_scope.cancel()

    # --- from the kernel -------------------------------------------------------

    async def _serve_kernel(self) -> None:
        # Every microsecond in this loop is one of each request's. A FileIO reads and
        # writes with less ado than the os module, and says None for EAGAIN.
        device = io.FileIO(self._device, "r+", closefd=False)
        readinto, write = device.readinto, device.write
        request, handlers = self._request, self._handlers
        unpack_header = wire.unpack_header
        in_a_row = 0
        while True:
            try:
                size = readinto(request)
                if size is None:
                    # The reply has just woken the caller, who may be about to ask
                    # again. Where client and daemon share a CPU it needs that CPU
                    # first: let it run, and spare both a round of epoll. Elsewhere
                    # this costs half a microsecond.
                    os.sched_yield()
                    size = readinto(request)
            except OSError as exc:
                if exc.errno in (errno.ENODEV, errno.ECONNABORTED):
                    # Unmounted, or aborted (fusectl, umount -f): there is no more.
                    return
                if exc.errno == errno.ENOENT:
                    # The request was interrupted before we could have it.
                    continue
                raise
            if size is None:
                in_a_row = 0
                await trio.lowlevel.wait_readable(self._device)
                continue
            if size < wire.IN_HEADER_SIZE:
                if size == 0:
                    return
                log.error("request of %d bytes has no header: dropped", size)
                continue
            length, op, unique, nodeid = unpack_header(request)
            try:
                if length > size:
                    wire.need(size, length)
                handler = handlers[op] if op < wire.OP_TABLE_SIZE else self._unknown
                reply = handler(size, unique, nodeid)
            except Exception as exc:
                reply = _failure(unique, exc, op)
            if reply is not None:
                try:
                    write(reply)
                except OSError as exc:
                    self._refused(reply, exc)
            in_a_row += 1
            if in_a_row >= _REQUESTS_IN_A_ROW:
                in_a_row = 0
                await trio.lowlevel.checkpoint()

    def _write(self, reply: bytes | memoryview) -> None:
        try:
            os.write(self._device, reply)
        except OSError as exc:
            self._refused(reply, exc)

    def _refused(self, reply: bytes | memoryview, exc: OSError) -> None:
        """The kernel did not take a reply: nobody waits for it, or it was wrong."""
        # ENOENT: the connection was aborted, and the request with it. The others:
        # unmounted, which the next read tells too.
        if exc.errno in (errno.ENOENT, errno.ENODEV, errno.EPIPE, errno.ECONNRESET):
            return
        _, error, unique = wire.unpack_out_header(reply)
        log.error("the kernel refused a reply: %s", exc.strerror)
        if error != -errno.EIO:
            # Whoever waits for it must not wait for ever.
            self._write(wire.reply_error(unique, errno.EIO))

    def _later(self, unique: int, answer: Callable[[], Awaitable[bytes]]) -> None:
        """Answer a request when *answer* has an answer."""

        async def task() -> None:
            try:
                reply = await answer()
            except Exception as exc:
                self._write(_failure(unique, exc))
            else:
                self._write(reply)

        assert self._nursery is not None
        self._nursery.start_soon(task)

    # --- to and from pyfuse3 ---------------------------------------------------

    def _hand_on(self, size: int, unique: int, nodeid: int) -> None:
        """Let pyfuse3 answer a request."""
        _, op, _, _ = wire.unpack_header(self._request)
        if op in (Op.READDIR, Op.READDIRPLUS):
            wire.clamp_readdir(self._request, size, _READDIR_BYTES)
        largest_reply = wire.largest_reply(op, self._request, size)
        message = bytes(memoryview(self._request)[:size])
        self._relay.send(unique, message, largest_reply)

    def _deliver(self, reply: memoryview) -> None:
        """Give the kernel what pyfuse3 has answered."""
        _, error, unique = wire.unpack_out_header(reply)
        if self._init is not None and unique == self._init[0]:
            self._finish_init(error)
        elif error:
            self._write(wire.reply_error(unique, -error))
        else:
            self._write(reply)

    # --- INIT ------------------------------------------------------------------

    def _init_request(self, size: int, unique: int, nodeid: int) -> None:
        self._init = unique, handshake.parse_init(self._request, size)
        message = handshake.init_for_relay(self._request, size)
        self._relay.send(unique, message, handshake.LARGEST_INIT_REPLY)

    def _finish_init(self, error: int) -> None:
        """pyfuse3 is ready for requests: the kernel gets our answer, not its."""
        assert self._init is not None
        unique, init = self._init
        self._init = None
        if error:
            self._write(wire.reply_error(unique, -error))
            return
        handles = self._namespace.keeps_nodes
        self._write(handshake.reply_init(unique, init, handles=handles))
        self.seal = self._make_seal(init.passthrough)
        self.initialised.set()

    # --- inodes ----------------------------------------------------------------

    def _lookup(self, size: int, unique: int, nodeid: int) -> bytes:
        namespace = self._namespace
        name = wire.looked_up(self._request, size)
        node = namespace[nodeid]
        if name in wire.DOTS:
            entry = namespace.lookup_dots(node, name)
            return wire.reply_payload(unique, wire.pack_entry(entry))
        try:
            entry = namespace.lookup(node, name)
        except FileNotFoundError:
            return wire.reply_no_entry(unique, namespace.entry_valid)
        return wire.reply_payload(unique, wire.pack_entry(entry))

    def _forget(self, size: int, unique: int, nodeid: int) -> None:
        wire.need(size, wire.FORGET_SIZE)
        self._namespace.forget(nodeid, wire.unpack_forget(self._request)[0])

    def _batch_forget(self, size: int, unique: int, nodeid: int) -> None:
        for forgotten, nlookup in wire.forgets(self._request, size):
            self._namespace.forget(forgotten, nlookup)

    def _getattr(self, size: int, unique: int, nodeid: int) -> bytes | None:
        node = self._nodes.get(nodeid)
        if node is None:
            return wire.reply_error(unique, errno.ESTALE)
        file = node.file
        if file is None:
            return self._attributes(unique, node)
        if file.turn.undoing is not None:
            self._later(unique, lambda: self._getattr_settled(unique, node))
            return None
        # The attributes of a file are never kept: see Inodes.attr_valid().
        return wire.reply_attr(unique, nodeid, os.fstat(node.fd), 0)

    def _attributes(self, unique: int, node: Node) -> bytes:
        namespace = self._namespace
        return wire.reply_attr(
            unique, node.ino, namespace.attributes(node), namespace.attr_valid(node)
        )

    async def _getattr_settled(self, unique: int, node: Node) -> bytes:
        if node.file is not None:
            await node.file.turn.wait_undone()
        return self._attributes(unique, node)

    def _statx(self, size: int, unique: int, nodeid: int) -> bytes | None:
        """As GETATTR, and the time of birth."""
        node = self._namespace[nodeid]
        if node.file is None or node.file.turn.undoing is None:
            return self._statx_reply(unique, node)
        self._later(unique, lambda: self._statx_settled(unique, node))
        return None

    def _statx_reply(self, unique: int, node: Node) -> bytes:
        namespace = self._namespace
        return wire.reply_statx(
            unique, node.ino, namespace.statx(node), namespace.attr_valid(node)
        )

    async def _statx_settled(self, unique: int, node: Node) -> bytes:
        if node.file is not None:
            await node.file.turn.wait_undone()
        return self._statx_reply(unique, node)

    def _setattr(self, size: int, unique: int, nodeid: int) -> None:
        wanted = wire.setattr_in(self._request, size)
        (pid,) = wire.unpack_pid(self._request)
        node = self._namespace[nodeid]

        async def answer() -> bytes:
            await attributes.change(self._namespace, node, wanted, pid)
            return self._attributes(unique, node)

        self._later(unique, answer)

    # --- names -----------------------------------------------------------------

    def _unlink(self, size: int, unique: int, nodeid: int) -> bytes | None:
        namespace = self._namespace
        place = namespace[nodeid], wire.only_name(self._request, size)
        return self._move(unique, lambda: namespace.unlink(*place), place)

    def _rmdir(self, size: int, unique: int, nodeid: int) -> bytes:
        name = wire.only_name(self._request, size)
        self._namespace.rmdir(self._namespace[nodeid], name)
        return wire.reply_done(unique)

    def _rename(
        self, size: int, unique: int, nodeid: int, *, with_flags: bool = False
    ) -> bytes | None:
        newdir, flags, old_name, new_name = wire.rename_names(
            self._request, size, with_flags=with_flags
        )
        namespace = self._namespace
        old, new = (namespace[nodeid], old_name), (namespace[newdir], new_name)
        return self._move(unique, lambda: namespace.rename(*old, *new, flags), old, new)

    def _rename2(self, size: int, unique: int, nodeid: int) -> bytes | None:
        return self._rename(size, unique, nodeid, with_flags=True)

    def _move(
        self, unique: int, move: Callable[[], None], *places: tuple[Node, bytes]
    ) -> bytes | None:
        """Do what changes the names of *places*, when none of them is busy."""
        if self._namespace.busy_at(*places) is None:
            move()
            return wire.reply_done(unique)

        async def answer() -> bytes:
            while (busy := self._namespace.busy_at(*places)) is not None:
                await self._namespace.wait_idle(busy)
            move()
            return wire.reply_done(unique)

        self._later(unique, answer)
        return None

    def _getxattr(self, size: int, unique: int, nodeid: int) -> bytes | None:
        # The kernel asks for this before it lets anybody change a file. There is none:
        # the mount is nosuid, and setting one is refused.
        if wire.getxattr_name(self._request, size) == b"security.capability":
            return wire.reply_error(unique, errno.ENODATA)
        self._hand_on(size, unique, nodeid)
        return None

    # --- open files --------------------------------------------------------------

    def _opened(self, unique: int, node: Node, entry: bytes = b"") -> bytes:
        """The reply to a successful open; the file handle is the nodeid."""
        try:
            backing_id = self.seal.behind(node.ino, node.fd)
        except OSError:
            if entry:
                self._namespace.unmake(node)
            else:
                self._namespace.release(node)
            raise
        if backing_id:
            flags = wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH | wire.FOPEN_PASSTHROUGH
        else:
            # The kernel then answers pread and lseek itself, with ESPIPE as the seed's
            # file does; it takes this flag and passthrough only one at a time.
            flags = wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH | wire.FOPEN_NONSEEKABLE
        return wire.reply_payload(
            unique, entry + wire.pack_open(node.ino, flags, backing_id)
        )

    def _open(self, size: int, unique: int, nodeid: int) -> bytes | None:
        wire.need(size, wire.OPEN_SIZE)
        flags, how = wire.unpack_open(self._request)
        node = self._namespace[nodeid]
        if flags & os.O_TRUNC:
            (pid,) = wire.unpack_pid(self._request)
            kills = pid if how & wire.OPEN_KILL_SUIDGID else None
            self._later(
                unique, lambda: self._open_truncated(unique, node, flags, kills)
            )
            return None
        self._namespace.open(node, flags)
        return self._opened(unique, node)

    async def _open_truncated(
        self, unique: int, node: Node, flags: int, kills: int | None
    ) -> bytes:
        """OPEN with O_TRUNC: the kernel leaves the truncation to us.

        *kills* is the process whose truncation takes the set-ID bits away, if it does.
        """
        self._namespace.open(node, flags)
        try:
            with self._namespace.opened(node) as file:
                await file.set_size(0)
            if kills is not None:
                attributes.drop_set_ids(self._namespace, node, kills)
        except BaseException:
            self._namespace.release(node)
            raise
        return self._opened(unique, node)

    def _create(self, size: int, unique: int, nodeid: int) -> bytes:
        wire.need(size, wire.CREATE_SIZE)
        flags, mode = wire.unpack_create(self._request)
        uid, gid = wire.unpack_caller(self._request)
        name = wire.name_at(self._request, wire.CREATE_SIZE, size)
        namespace = self._namespace
        entry = namespace.create(namespace[nodeid], name, flags, mode, uid, gid)
        return self._opened(unique, namespace[entry.nodeid], wire.pack_entry(entry))

    def _tmpfile(self, size: int, unique: int, nodeid: int) -> bytes:
        wire.need(size, wire.CREATE_SIZE)
        flags, mode = wire.unpack_create(self._request)
        uid, gid = wire.unpack_caller(self._request)
        namespace = self._namespace
        entry = namespace.tmpfile(namespace[nodeid], flags, mode, uid, gid)
        return self._opened(unique, namespace[entry.nodeid], wire.pack_entry(entry))

    def _opendir(self, size: int, unique: int, nodeid: int) -> bytes:
        wire.need(size, wire.OPEN_SIZE)
        flags, _ = wire.unpack_open(self._request)
        fh = self._namespace.open_directory(self._namespace[nodeid], flags)
        return wire.reply_payload(unique, wire.pack_open(fh, 0, 0))

    def _release(self, size: int, unique: int, nodeid: int) -> bytes:
        try:
            self.seal.closed(nodeid)
        finally:
            self._namespace.release(self._namespace[nodeid])
        return wire.reply_done(unique)

    def _fallocate(self, size: int, unique: int, nodeid: int) -> bytes | None:
        if size < wire.FALLOCATE_SIZE:
            wire.need(size, wire.FALLOCATE_SIZE)
        offset, length, mode = wire.unpack_fallocate(self._request)
        node = self._namespace[nodeid]
        file = node.file
        if file is None:
            file = self._namespace.reopen(node)
        if file.fallocate_quick(mode, offset, length):
            return wire.pack_reply(wire.OUT_HEADER_SIZE, 0, unique)
        if mode & FALLOC_FL_PUNCH_HOLE and file.punch_at_once(
            mode, offset, length, partial(self._punched, unique)
        ):
            return None
        # The task runs when all requests have been read. If there was no space, one of
        # them may be the FORGET of a file that is gone: the kernel lets some pass it.
        # Now and not in the task: the very next request may be the INTERRUPT.
        interrupted = self._interrupts[unique] = trio.Event()

        async def answer() -> bytes:
            try:
                await self._fallocate_long(node, mode, offset, length, interrupted)
            finally:
                del self._interrupts[unique]
            return wire.reply_done(unique)

        self._later(unique, answer)
        return None

    def _punched(self, unique: int, failure: Exception | None) -> None:
        """A punch that notifiers were told of is over. Never raises."""
        if failure is None:
            self._write(wire.reply_done(unique))
        else:
            self._write(_failure(unique, failure))

    async def _fallocate_long(
        self, node: Node, mode: int, offset: int, length: int, interrupted: trio.Event
    ) -> None:
        # Held open by us too: once interrupted, the caller may close the file before
        # the backing has given back what it had taken.
        with ExitStack() as stack:
            file = stack.enter_context(self._namespace.opened(node))
            try:
                await file.fallocate(mode, offset, length, interrupted)
            finally:
                if file.turn.undoing is not None:
                    # Nobody may look until the memory has been given back.
                    assert self._nursery is not None
                    hold = stack.pop_all()
                    self._nursery.start_soon(_close_when_settled, file, hold)

    def _interrupt(self, size: int, unique: int, nodeid: int) -> None:
        wire.need(size, wire.INTERRUPT_SIZE)
        (target,) = wire.unpack_interrupt(self._request)
        # Anything else that runs is over before a caller could grow impatient.
        if (interrupted := self._interrupts.get(target)) is not None:
            interrupted.set()

    # --- the rest ----------------------------------------------------------------

    def _done(self, size: int, unique: int, nodeid: int) -> bytes:
        return wire.reply_done(unique)

    def _unknown(self, size: int, unique: int, nodeid: int) -> bytes:
        return wire.reply_unknown(unique)


async def _close_when_settled(file: InaccessibleFile, hold: ExitStack) -> None:
    with hold:
        await file.turn.wait_undone()


@overload
def _failure(unique: int, exc: Exception) -> bytes: ...
@overload
def _failure(unique: int, exc: Exception, op: int) -> bytes | None: ...
def _failure(unique: int, exc: Exception, op: int = 0) -> bytes | None:
    """Translate errors, once: `OSError` to the caller, all else to the log and EIO."""
    number = errno.EIO
    if isinstance(exc, OSError) and errnos.is_errno(exc.errno):
        number = exc.errno
    elif isinstance(exc, wire.Truncated):
        log.error("malformed request, opcode %d: %s", op, exc)
    else:
        log.error("bug in the handler of opcode %d", op, exc_info=exc)
    return None if op in _UNANSWERED else wire.reply_error(unique, number)


def _refuser(op: int, number: int) -> Callable[[int, int, int], bytes]:
    def refuse(size: int, unique: int, nodeid: int) -> bytes:
        return wire.reply_error(unique, number)

    def tell(size: int, unique: int, nodeid: int) -> bytes:
        log.debug("%s: refused, %s", Op(op).name, errnos.NAMES.get(number, number))
        return refuse(size, unique, nodeid)

    return tell if log.isEnabledFor(logging.DEBUG) else refuse
