"""One epoll(7) for all peers: messages that many peers send at once are read together.

With a task for each peer, each message would cost a turn of the trio loop and an
epoll_ctl(2), which is more than most messages cost themselves. After a punch all peers
answer at the same time.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.readiness import wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable


# EPOLLONESHOT: otherwise the epoll fd would stay readable after its events were taken,
# and cost a useless turn of the trio loop.
_EVENTS: Final = select.EPOLLIN | select.EPOLLONESHOT

# Other tasks wait at most for this long, plus the time for one peer.
_TURN_SECONDS: Final = 0.002

# After so many reads in a row other tasks get a turn.
_READS_IN_A_ROW: Final = 16


class Readers:
    """Calls a function for each connection that can be read."""

    def __init__(self) -> None:
        self._epoll: Final = select.epoll()
        self._callbacks: Final[dict[int, Callable[[int, float], bool]]] = {}

    def close(self) -> None:
        """Close the epoll fd. All connections must have been removed."""
        self._epoll.close()

    def add(self, fd: int, callback: Callable[[int, float], bool]) -> None:
        """Call *callback* when *fd* can be read, until it returns false.

        Its arguments are how many times it may read, and until when by
        time.perf_counter(). After that time it must not read any more, and leave the
        rest to a task. It must not raise.

        Raises:
            OSError: ENOSPC, ENOMEM of epoll_ctl(2).
        """
        self._epoll.register(fd, _EVENTS)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Stop calling back for *fd*, which must still be open."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def pause(self, fd: int) -> None:
        """Call back for *fd* only if its peer hangs up: EPOLLHUP of epoll_ctl(2)."""
        self._epoll.modify(fd, select.EPOLLONESHOT)

    def resume(self, fd: int) -> None:
        """Call back for *fd* when it can be read, after `pause` or a false return."""
        self._epoll.modify(fd, _EVENTS)

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            # Each round costs one turn of the loop, however many peers have sent
            # something.
            await wait_readable(self._epoll)
            ready = self._epoll.poll(0)
            # A reply wakes its peer, which on one CPU runs at once: so read again, as
            # for the kernel's requests. With several peers another read finds nothing.
            times = _READS_IN_A_ROW if len(ready) == 1 else 1
            now = time.perf_counter()
            until = now + _TURN_SECONDS
            for fd, _ in ready:
                # An earlier callback of this round may have removed it.
                callback = self._callbacks.get(fd)
                if callback is not None and callback(times, now + _TURN_SECONDS):
                    self._epoll.modify(fd, _EVENTS)
                now = time.perf_counter()
                if now > until:
                    await trio.lowlevel.checkpoint()
                    now = time.perf_counter()
                    until = now + _TURN_SECONDS
