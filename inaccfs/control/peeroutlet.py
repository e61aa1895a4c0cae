"""The output of a peer, and how much of it may wait until the peer reads it."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.control.outlet import Outlet
from inaccfs.readiness import wait_writable
from inaccfs.shim.deadlines import in_time

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from inaccfs.control.limits import Policy


# The most bytes of short replies for one send(2), which costs more than they do.
_JOINED_BYTES: Final = 2048


class Backlog:
    """The output of all peers that is not read yet."""

    def __init__(self) -> None:
        self.bytes = 0
        # The outlets with waiting output.
        self.outlets: Final[set[PeerOutlet]] = set()

    def largest(self) -> PeerOutlet:
        """The outlet with the most waiting output."""
        return max(self.outlets, key=lambda outlet: outlet.waiting)


class _Joined:
    """A with block in which an outlet sends short messages together.

    It sends them at the latest when the block ends. Use it for the commands of one
    read. The block must not await anything.
    """

    __slots__ = ("_outlet",)

    def __init__(self, outlet: PeerOutlet) -> None:
        self._outlet: Final = outlet

    def __enter__(self) -> None:
        self._outlet.join()

    def __exit__(self, *_: object) -> None:
        self._outlet.end_join()


class PeerOutlet:
    """The writing end of the non-blocking connection to a peer."""

    def __init__(
        self,
        connection: socket.socket,
        policy: Policy,
        backlog: Backlog,
        start: Callable[[Callable[[], Awaitable[None]]], None],
        progressed: Callable[[], None],
        disconnect: Callable[[str], None],
        evict: Callable[[str, str], None],
    ) -> None:
        """*start* runs a task, for output that waits.

        *progressed* is called after the peer has read something; *disconnect* with the
        reason when the peer has hung up; *evict* with the reason and a text for the log
        when the peer does not read.
        """
        self._connection: Final = connection
        self._outlet: Final = Outlet(connection)
        self._policy: Final = policy
        self._backlog: Final = backlog
        self._start: Final = start
        self._progressed: Final = progressed
        self._disconnect: Final = disconnect
        self.evict: Final = evict
        # Whether a task writes waiting output.
        self._writing = False
        self._closed = False
        # Messages of a `joined` block that will be sent with the next ones.
        self._joined: bytearray | None = None
        self.joined: Final = _Joined(self)
        # How many waiting bytes are counted in the backlog.
        self._counted = 0

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self._outlet)

    @property
    def waiting(self) -> int:
        """How many bytes wait."""
        return self._outlet.waiting

    @property
    def lost(self) -> int:
        """How many messages `offer` has dropped."""
        return self._outlet.lost

    @property
    def is_full(self) -> bool:
        """Whether to answer no more commands until the peer has read something.

        It is full if too much output waits for this peer; or if too much waits for all
        peers together, and some of it for this one.
        """
        waiting = self._outlet.waiting
        if self._joined is not None:
            waiting += len(self._joined)
        if not waiting:
            return False
        limits = self._policy.limits
        return waiting > limits.output or self._backlog.bytes > limits.total_output

    def send(self, data: bytes, fd: int = -1) -> None:
        """Send *data* and *fd*, and close *fd*. Never blocks, never raises."""
        if self._joined is not None:
            if fd < 0 and len(self._joined) < _JOINED_BYTES:
                self._joined += data
                return
            self.end_join()
            self.join()
        if self._closed:
            if fd >= 0:
                os.close(fd)
            return
        try:
            if self._outlet.send(data, fd):
                return
        except OSError:
            # The reader will notice it, too, but later.
            self._disconnect("it hung up")
            return
        self._write_later()
        self._check()

    def join(self) -> None:
        """Begin a `joined` block."""
        self._joined = bytearray()

    def end_join(self) -> None:
        """End it, and send the rest."""
        data, self._joined = self._joined, None
        # No check is needed: nearly always these are replies, which `is_full` limits.
        if data and not self._closed:
            self._outlet.extend([(bytes(data), -1)])
            self._flush()
            if self._outlet.waiting:
                self._write_later()

    def offer(self, data: bytes) -> bool:
        """Send *data* if there is room now; otherwise drop it, count it, return False.

        Never blocks, never raises, and never causes the peer's eviction.
        """
        if self._joined is not None:
            self.end_join()
            self.join()
        if self._closed:
            return False
        try:
            sent = self._outlet.offer(data)
        except OSError:
            self._disconnect("it hung up")
            return False
        if self._outlet.waiting != self._counted:
            self._write_later()
        return sent

    def close(self) -> None:
        """Stop sending."""
        self._closed = True
        self._outlet.close()
        self._count()

    def _count(self) -> None:
        """Update the backlog's count."""
        waiting = self._outlet.waiting
        self._backlog.bytes += waiting - self._counted
        self._counted = waiting
        if waiting:
            self._backlog.outlets.add(self)
        else:
            self._backlog.outlets.discard(self)

    def _check(self) -> None:
        """Evict a peer that leaves too much unread: this one, or the worst of all."""
        # Commands wait until output is read, so only events can become so many. The
        # first message may be a reply, which may have any length.
        limits = self._policy.limits
        events = self._outlet.waiting_after_first
        if events > limits.output:
            self.evict("it does not read", f"{events} bytes of events unread")
        elif self._backlog.bytes > 2 * limits.total_output:
            # More than the replies in progress can be.
            self._backlog.largest().evict(
                "it does not read", "peers leave too much unread, and this one the most"
            )

    def _write_later(self) -> None:
        self._count()
        if not self._writing and not self._closed:
            self._writing = True
            self._start(self._write)

    async def _write(self) -> None:
        while self._outlet:
            waiting = self._outlet.waiting
            was_in_time = await in_time(
                self._policy.ack_seconds, partial(wait_writable, self._connection)
            )
            # Send as much as there is room for: a punch may have thousands of events.
            self._flush()
            if not was_in_time and self._outlet.waiting == waiting:
                self.evict("it does not read", "reads nothing")
                return
            self._progressed()
        self._writing = False
        self._progressed()

    def _flush(self) -> None:
        try:
            self._outlet.flush()
        except OSError:
            self._disconnect("it hung up")
        else:
            self._count()
