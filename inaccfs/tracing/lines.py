"""Records of a trace as lines like strace's: when, who, what, outcome, how long.

19:20:21.123456 [4711 fallocate] punch(/guest0, 0x2000, 0x4000) = 0 <0.000812>
19:20:21.123501 [peer 2, 4712 python3] <- INVALIDATE(/guest0, 0x2000, 0x4000) #7
19:20:21.124210 [peer 2, 4712 python3] answers INVALIDATE #7 <0.000709>
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Final

from inaccfs import errnos

if TYPE_CHECKING:
    from inaccfs.control.messages import TraceRecord


_NS: Final = 1_000_000_000
"""A second, in nanoseconds."""


class Lines:
    """Makes lines. It reads the clock once, so that times keep their distances."""

    def __init__(self) -> None:
        self._offset: Final = time.time_ns() - time.monotonic_ns()

    def line(self, record: TraceRecord) -> str:
        """The line of a record, whose names may have any character."""
        what, result = _what(record)
        clock = self._clock(record.time)
        took = (record.time - record.began) / 1e9 if record.began else None
        duration = "" if took is None else f" <{took:.6f}>"
        return f"{clock} [{_who(record)}] {what}{result}{duration}"

    def _clock(self, moment: int) -> str:
        seconds, rest = divmod(moment + self._offset, _NS)
        clock = time.strftime("%H:%M:%S", time.localtime(seconds))
        return f"{clock}.{rest // 1000:06}"


def lost(count: int) -> str:
    """The line that says that records are missing here."""
    return f"+++ {count} records lost: they were not read in time +++"


def _who(record: TraceRecord) -> str:
    process = f"{record.pid} {record.command}".rstrip()
    if not record.peer:
        return process if record.pid else "?"
    return f"peer {record.peer}, {process}" if record.pid else f"peer {record.peer}"


def _what(record: TraceRecord) -> tuple[str, str]:
    """The call and its result."""
    file = record.file or f"inode {record.ino}"
    place = f"{file}, {record.start:#x}, {record.end:#x}"
    number = f" #{record.sequence}" if record.sequence else ""
    match record.kind:
        case "event":
            return f"<- {record.event}({place})", number
        case "answer":
            return f"answers {record.event}({place})", number
        case "evict":
            return f"is evicted, without an answer to {record.event}({place})", number
        case "truncate":
            call = f"truncate({file}, from {record.end:#x} to {record.start:#x})"
        case "request":
            call = f"{record.event.lower()}({file})"
        case "lseek" | "ioctl" | "copy":
            call = f"{record.kind}({file})"
        case "move" | "poison" | "get" | "put":
            return f"{record.kind}({place})", ""
        case _:
            call = f"{record.kind}({place})"
    if not record.error:
        return call, " = 0"
    number_of = errnos.NUMBERS.get(record.error, errno.EIO)
    return call, f" = -1 {record.error} ({os.strerror(number_of)})"
