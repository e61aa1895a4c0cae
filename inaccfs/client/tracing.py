"""Traces: each has its own connection, which the caller reads.

`Reading` is for both faces; `Trace` is the blocking face. A trace consists of
`inaccfs.control.messages.TraceRecord`s.
"""

from __future__ import annotations

import select
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from inaccfs.client import wire
from inaccfs.client.errors import ConnectionLostError, closed, interrupted
from inaccfs.client.requests import Request, no_result
from inaccfs.control import messages
from inaccfs.control.messages import TraceStart, TraceStop
from inaccfs.control.outlet import Outlet

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator
    from typing import Self

    from inaccfs.client.core import Call, Conversation
    from inaccfs.control.messages import TraceRecord, TraceSummary
    from inaccfs.shim.trace import What


class Reading:
    """A trace on its own connection. It does not wait."""

    def __init__(
        self, path: str, connection: socket.socket, conversation: Conversation
    ) -> None:
        self.path: Final = path
        self.connection: Final = connection
        self._conversation: Final = conversation
        self._outlet: Final = Outlet(connection)
        # Received records that were not taken yet.
        self.records: Final[deque[TraceRecord]] = deque()
        # How many records the daemon has dropped so far.
        self.lost = 0
        self._started: Call[None]
        self._stopping: Call[TraceSummary] | None = None

    def start(self, kinds: Iterable[What]) -> None:
        """Ask for the trace."""
        command = TraceStart(kinds=list(kinds))
        self._started = self._conversation.start(no_result(command))
        self._send()

    @property
    def started(self) -> bool:
        """Whether the trace has begun.

        Raises:
            OSError: the daemon has refused it.
        """
        if self._started.done:
            self._started.result()
        return self._started.done

    def stop(self) -> None:
        """Ask for the end of the trace; earlier records still come."""
        if self._stopping is None:
            request: Request[TraceSummary] = Request(TraceStop(), lambda got: got)
            self._stopping = self._conversation.start(request)
            self._send()

    @property
    def over(self) -> bool:
        """Whether no more records will come.

        Raises:
            ConnectionLostError: the daemon has hung up, and has not said why.
        """
        if self._stopping is not None and self._stopping.done:
            return True
        ended = self._conversation.ended
        if ended is None:
            return False
        if self._conversation.shutdown is None:
            raise ended.again()
        return True

    def receive(self) -> None:
        """Read from the connection, and parse records.

        Raises:
            BlockingIOError: there is no data, and the connection does not block.
        """
        try:
            for event in self._conversation.feed(*wire.receive(self.connection)):
                if isinstance(event, messages.Trace):
                    self.records.extend(event.records)
                    self.lost = event.lost
        except BlockingIOError:
            raise
        except BaseException:
            # Ctrl-C: a part of a message may have been lost.
            self._conversation.end(interrupted(self.path))
            raise
        stopping = self._stopping
        if stopping is not None and stopping.done and stopping.error is None:
            self.lost = stopping.result().lost

    def take(self) -> list[TraceRecord]:
        """All records since the last call."""
        found = list(self.records)
        self.records.clear()
        return found

    def close(self) -> None:
        """End the connection."""
        self._conversation.end(closed(self.path))
        self._outlet.close()
        self.connection.close()

    def _send(self) -> None:
        try:
            wire.send_all(self._outlet, self._conversation)
        except OSError as exc:
            self._conversation.end(ConnectionLostError(f"{self.path}: {exc}"))


class Trace:
    """Records of what happens to the files of a mount; use it as a context manager.

    Iterating waits for the next records, and ends with the daemon, or after `stop`. A
    reader that is too slow loses records, which `lost` counts, and delays no one. A
    trace belongs to one thread, and not to a child after fork(2).
    """

    def __init__(self, path: str, kinds: Iterable[What]) -> None:
        """Use `Client.trace`."""
        self._reading: Final = Reading(path, *wire.dial(path))
        try:
            self._reading.start(kinds)
            while not self._reading.started:
                self._reading.receive()
        except BaseException:
            self._reading.close()
            raise

    def __repr__(self) -> str:
        return f"<Trace of {self._reading.path}>"

    @property
    def lost(self) -> int:
        """How many records were lost, because they were not read in time."""
        return self._reading.lost

    @property
    def over(self) -> bool:
        """Whether no more records will come: it was stopped, or the daemon has ended.

        Raises:
            ControlError: the daemon has hung up, and has not said why.
        """
        return self._reading.over

    def fileno(self) -> int:
        """For poll(2): readable when there are records, or the trace is over."""
        return self._reading.connection.fileno()

    def read(self, seconds: float | None = None) -> list[TraceRecord]:
        """Records since the last call; waits for some, at most *seconds*.

        Empty if nothing has happened, and when it is `over`.

        Raises:
            ControlError: the daemon has hung up, and has not said why.
        """
        reading = self._reading
        deadline = None if seconds is None else time.monotonic() + seconds
        while not reading.records and not reading.over:
            if not self._wait(deadline):
                break
            reading.receive()
        return reading.take()

    def _wait(self, deadline: float | None) -> bool:
        """Wait until there is something to receive; False if it takes too long."""
        poller = select.poll()
        poller.register(self._reading.connection, select.POLLIN)
        left = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
        return bool(poller.poll(left))

    def __iter__(self) -> Iterator[TraceRecord]:
        while found := self.read():
            yield from found

    def stop(self) -> None:
        """End the trace. Earlier records can still be read; then it is `over`."""
        self._reading.stop()

    def close(self) -> None:
        """End the connection, and with it the trace. May be called again."""
        self._reading.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
