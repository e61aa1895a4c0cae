"""Waits for fds in the trio loop, even if epoll(7) accepts no more of them.

The first wait for an fd makes trio add it to its epoll. That fails when the user has as
many fds there as the kernel allows (ENOSPC; fs.epoll.max_user_watches), or without
memory (ENOMEM). The fd is then polled until it can be added: slower, but no wait fails.

All tasks of the daemon wait for fds with these functions: an `OSError` out of
`trio.lowlevel.wait_readable` would end the mount.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final, Protocol

import trio

from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_LOOK_AGAIN_SECONDS: Final = 0.02

_trouble: Final = Trouble()


class HasFileno(Protocol):
    """A socket, a file, or anything else with an fd; -1 when it is closed."""

    def fileno(self) -> int:
        """The fd."""


async def wait_readable(fd: int | HasFileno) -> None:
    """Wait until *fd* has something to read, or its end.

    Raises:
        trio.ClosedResourceError: *fd* is closed, or was closed meanwhile.
    """
    await _wait(trio.lowlevel.wait_readable, fd, select.POLLIN)


async def wait_writable(fd: int | HasFileno) -> None:
    """Wait until *fd* has room, or its other end is closed.

    Raises:
        trio.ClosedResourceError: *fd* is closed, or was closed meanwhile.
    """
    await _wait(trio.lowlevel.wait_writable, fd, select.POLLOUT)


def is_readable(fd: int) -> bool:
    """Whether a socket has something, or a process has ended, now."""
    return _is_ready(fd, select.POLLIN)


async def _wait(
    wait: Callable[[int | HasFileno], Awaitable[None]],
    fd: int | HasFileno,
    events: int,
) -> None:
    while True:
        number = fd if isinstance(fd, int) else fd.fileno()
        if number < 0:
            raise trio.ClosedResourceError
        try:
            await wait(fd)
        except OSError as exc:
            _trouble.met(f"cannot wait for fds, looks at them instead: {exc.strerror}")
        else:
            return
        if _is_ready(number, events):
            await trio.lowlevel.checkpoint()
            return
        await trio.sleep(_LOOK_AGAIN_SECONDS)


def _is_ready(fd: int, events: int) -> bool:
    # Not select(2), which takes no fd above 1023.
    poller = select.poll()
    poller.register(fd, events)
    return bool(poller.poll(0))
