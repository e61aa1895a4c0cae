"""One epoll(7) for all peers: what a crowd says at once is read in one go.

A task for each peer would cost each message a turn of the trio loop and an
epoll_ctl(2), more than most messages cost themselves; and after a punch all peers
answer at once.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.readiness import wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable


# Once, for an epoll that has told of an fd seems to have more to tell until it has been
# asked again; and it would be, in a turn of the trio loop for nothing.
_EVENTS: Final = select.EPOLLIN | select.EPOLLONESHOT


# Nor do others wait longer than for this and for one peer.
_TURN_SECONDS: Final = 0.002

# After so many reads in a row other tasks get a turn.
_READS_IN_A_ROW: Final = 16


class Readers:
    """Calls those that have something to read."""

    def __init__(self) -> None:
        self._epoll: Final = select.epoll()
        self._callbacks: Final[dict[int, Callable[[int], bool]]] = {}

    def close(self) -> None:
        """End. Nobody must be left."""
        self._epoll.close()

    def add(self, fd: int, callback: Callable[[int], bool]) -> None:
        """Call *callback* when *fd* can be read, and again if it has returned true.

        It may read so many times as it is told, and must not raise.
        """
        self._callbacks[fd] = callback
        self._epoll.register(fd, _EVENTS)

    def remove(self, fd: int) -> None:
        """Forget *fd*, which is still open."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def pause(self, fd: int) -> None:
        """Call for *fd* only when it has been hung up on. epoll_ctl(2), EPOLLHUP."""
        self._epoll.modify(fd, select.EPOLLONESHOT)

    def resume(self, fd: int) -> None:
        """Call for *fd* again."""
        self._epoll.modify(fd, _EVENTS)

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            # A turn of the loop for each round, whoever has said how much.
            await wait_readable(self._epoll)
            ready = self._epoll.poll(0)
            # A reply has just woken a peer, which on one CPU runs there and then: look
            # again at once, as for the kernel's requests. In a crowd it is in vain.
            times = _READS_IN_A_ROW if len(ready) == 1 else 1
            until = time.perf_counter() + _TURN_SECONDS
            for fd, _ in ready:
                # An earlier one of this round may have removed it.
                callback = self._callbacks.get(fd)
                if callback is not None and callback(times):
                    self._epoll.modify(fd, _EVENTS)
                if time.perf_counter() > until:
                    await trio.lowlevel.checkpoint()
                    until = time.perf_counter() + _TURN_SECONDS
