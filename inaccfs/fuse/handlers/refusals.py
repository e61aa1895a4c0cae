"""Requests with the same answer for every file: refused, or without effect."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.fuse import wire
from inaccfs.fuse.requests import safe_errno
from inaccfs.fuse.wire import Op

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inaccfs.fuse.requests import Handler, Request
    from inaccfs.shim.trace import Trace, What

log = logging.getLogger(__name__)

# The errno of system calls on a file that lacks these operations, and their name in a
# trace. v8's file has only fallocate and release.
_REFUSED: Final[dict[Op, tuple[int, What]]] = {
    Op.COPY_FILE_RANGE: (errno.EINVAL, "copy"),
    Op.COPY_FILE_RANGE_64: (errno.EINVAL, "copy"),
    # The kernel sends SEEK_DATA and SEEK_HOLE only.
    Op.LSEEK: (errno.ESPIPE, "lseek"),
    Op.IOCTL: (errno.ENOTTY, "ioctl"),
}

_NO_OPS: Final = (
    Op.FLUSH,
    # The kernel checks the mode itself (default_permissions) and does not ask.
    Op.ACCESS,
    # v8's file has no fsync, so EINVAL would be right; but fallocate(1) ends with an
    # fsync, and would report a failure.
    Op.FSYNC,
)


def handlers(read_errno: int, trace: Trace) -> Mapping[Op, Handler]:
    """The handlers by opcode. *read_errno* is the errno of READ and WRITE.

    The kernel answers reads of no bytes itself.
    """
    number = safe_errno(read_errno)
    reads: dict[Op, tuple[int, What]]
    reads = {Op.READ: (number, "read"), Op.WRITE: (number, "write")}
    refused = {
        op: _refuser(op, number, what, trace)
        for op, (number, what) in (_REFUSED | reads).items()
    }
    return {**refused, **dict.fromkeys(_NO_OPS, _done)}


def _done(request: Request) -> bytes:
    return b""


def _refuser(op: Op, number: int, what: What, trace: Trace) -> Handler:
    has_range = op in (Op.READ, Op.WRITE)
    listeners = trace.listeners

    def refuse(request: Request) -> int:
        if listeners:
            start, size = 0, 0
            if has_range and request.size >= wire.RANGE_SIZE:
                start, size = wire.unpack_range(request.buffer)
            file, who = request.nodeid, request.pid
            trace.tell_refused(what, file, start, start + size, who, number)
        return number

    def refuse_and_log(request: Request) -> int:
        log.debug("%s: refused, %s", op.name, errnos.NAMES.get(number, number))
        return refuse(request)

    return refuse_and_log if log.isEnabledFor(logging.DEBUG) else refuse
