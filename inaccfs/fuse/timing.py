"""Traces all other requests, by handlers that read the clock, while a trace needs them.

Calls that change a file's memory, and those that no file allows, are traced by the shim
and by their own handlers. For the others even checking an empty list each time costs
too much.
"""

from __future__ import annotations

import errno
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from inaccfs.fuse.wire import Op

if TYPE_CHECKING:
    from inaccfs.fuse.requests import Answer, Handler, Request
    from inaccfs.shim.trace import Trace

# These are traced by what they do; or no process has made them.
_TRACED_ELSEWHERE: Final = frozenset(
    (
        *(Op.FALLOCATE, Op.READ, Op.WRITE, Op.LSEEK, Op.IOCTL),
        *(Op.COPY_FILE_RANGE, Op.COPY_FILE_RANGE_64),
        *(Op.INIT, Op.DESTROY, Op.INTERRUPT, Op.FORGET, Op.BATCH_FORGET),
    )
)


class Timing:
    """Puts its own handlers into a table, and takes them out again."""

    def __init__(self, handlers: list[Handler], trace: Trace) -> None:
        """*handlers* are by opcode; the table is changed in place."""
        self._handlers: Final = handlers
        self._trace: Final = trace
        # The handlers that were replaced.
        self._plain: Final[dict[Op, Handler]] = {}
        trace.watch_requests = self.switch

    def switch(self, on: bool) -> None:
        """Start or stop tracing requests."""
        if on and not self._plain:
            for op in Op:
                if op not in _TRACED_ELSEWHERE:
                    self._plain[op] = self._handlers[op]
                    self._handlers[op] = self._timed(op, self._handlers[op])
        elif not on:
            for op, handler in self._plain.items():
                self._handlers[op] = handler
            self._plain.clear()

    def _timed(self, op: Op, handler: Handler) -> Handler:
        trace, name = self._trace, op.name

        def timed(request: Request) -> Answer:
            # Read these first: the handler does not change them, but the next request
            # reuses the object.
            ino, who = request.nodeid, request.pid
            began = monotonic_ns()
            try:
                answer = handler(request)
            except Exception as exc:
                number = getattr(exc, "errno", None) or errno.EIO
                trace.tell_request(name, ino, who, number, began)
                raise
            # The duration of a request that is answered later is unknown here.
            number = answer if isinstance(answer, int) else 0
            trace.tell_request(name, ino, who, number, 0 if answer is None else began)
            return answer

        return timed
