"""The trace of one peer: trace-start, trace-stop, and TRACE events in between."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

import trio

from inaccfs.control import messages, qmp
from inaccfs.control.feed import Feed
from inaccfs.control.messages import Command, Nothing
from inaccfs.shim.deadlines import in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inaccfs.control.context import Context
    from inaccfs.control.outlet import Sink
    from inaccfs.shim.trace import What

# Messages up to this size are sent as a whole or not at all: see `Outlet.offer`.
_MESSAGE_BYTES: Final = 32 << 10
_RECORDS_A_MESSAGE: Final = 100

_LOOK_AGAIN_SECONDS: Final = 0.01


class Tracing:
    """Records what happens, and sends it to one peer."""

    def __init__(self, context: Context, sink: Sink) -> None:
        self._context: Final = context
        self._sink: Final = sink
        # None if there is no trace.
        self._feed: Feed | None = None

    def handlers(self) -> dict[type[Command], Callable[[Any], Any]]:
        """The handler of each command."""
        return {messages.TraceStart: self._start, messages.TraceStop: self._stop}

    def _start(self, command: messages.TraceStart) -> Nothing:
        if self._feed is not None:
            raise OSError(errno.EBUSY, "this connection has a trace: stop that first")
        self.start(command.kinds)
        return Nothing()

    async def _stop(self, command: messages.TraceStop) -> messages.TraceSummary:
        feed = self._feed
        if feed is None:
            raise OSError(errno.EINVAL, "this connection has no trace to stop")
        # Events from now on are not in the trace, however long the peer takes to read.
        self._listen_no_more(feed)
        if not await in_time(self._context.policy.ack_seconds, self._finish):
            feed.give_up()
        self.stop()
        return messages.TraceSummary(records=feed.taken, lost=feed.lost)

    async def _finish(self) -> None:
        # The socket has no room, and nothing reports when it has some.
        while not self.flush():  # noqa: ASYNC110
            await trio.sleep(_LOOK_AGAIN_SECONDS)

    # --- any trace --------------------------------------------------------------------

    def start(self, kinds: Sequence[What] = ()) -> None:
        """Start a trace of these *kinds*, or of all."""
        context = self._context
        feed = Feed(kinds, context.callers, context.files, context.tracers.wake)
        self._feed = feed
        context.superblock.trace.listen(feed.hear, requests="request" in kinds)
        context.tracers.taken.add(self)

    def flush(self) -> bool:
        """Send what there is room for now; return whether that was all."""
        feed = self._feed
        while feed:
            records = feed.first(_RECORDS_A_MESSAGE)
            data = encoded(records, feed.lost)
            while len(data) > _MESSAGE_BYTES and len(records) > 1:
                # Names of files may be long.
                del records[len(records) // 2 :]
                data = encoded(records, feed.lost)
            if not self._sink.offer(data):
                return False
            feed.drop(len(records))
        return True

    def stop(self) -> int:
        """End the trace; returns how many records were lost, unsent ones included.

        May be called again.
        """
        if (feed := self._feed) is None:
            return 0
        self._feed = None
        self._listen_no_more(feed)
        self._context.tracers.taken.discard(self)
        feed.give_up()
        return feed.lost

    def _listen_no_more(self, feed: Feed) -> None:
        self._context.superblock.trace.stop(feed.hear)


def encoded(records: list[messages.TraceRecord], lost: int) -> bytes:
    """Encode a TRACE event."""
    return qmp.encode_event(messages.Trace(records=records, lost=lost))
