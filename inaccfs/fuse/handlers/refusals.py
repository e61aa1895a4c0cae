"""Requests with the same answer for every file: refusals, and what does nothing."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.fuse.requests import safe_errno
from inaccfs.fuse.wire import Op

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inaccfs.fuse.requests import Handler, Request

log = logging.getLogger(__name__)

# What system calls answer for a file whose operations lack these. v8's has fallocate
# and release only.
_REFUSED: Final = {
    Op.COPY_FILE_RANGE: errno.EINVAL,
    Op.COPY_FILE_RANGE_64: errno.EINVAL,
    # The kernel sends SEEK_DATA and SEEK_HOLE only.
    Op.LSEEK: errno.ESPIPE,
    Op.IOCTL: errno.ENOTTY,
}

_NO_OPS: Final = (
    Op.FLUSH,
    # The kernel checks the mode itself (default_permissions) and does not ask.
    Op.ACCESS,
    # v8's file has no fsync, so EINVAL would be right; but fallocate(1) ends with an
    # fsync, and would report a failure.
    Op.FSYNC,
)


def handlers(read_errno: int) -> Mapping[Op, Handler]:
    """The handlers by opcode. *read_errno* is the errno of READ and WRITE.

    The kernel answers reads of no bytes itself.
    """
    numbers = {**_REFUSED, Op.READ: read_errno, Op.WRITE: read_errno}
    refused = {op: _refuser(op, number) for op, number in numbers.items()}
    return {**refused, **dict.fromkeys(_NO_OPS, _done)}


def _done(request: Request) -> bytes:
    return b""


def _refuser(op: Op, number: int) -> Handler:
    number = safe_errno(number)

    def refuse(request: Request) -> int:
        return number

    def refuse_and_log(request: Request) -> int:
        log.debug("%s: refused, %s", op.name, errnos.NAMES.get(number, number))
        return number

    return refuse_and_log if log.isEnabledFor(logging.DEBUG) else refuse
