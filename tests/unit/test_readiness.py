"""Waiting for fds when epoll(7) accepts no more."""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing

from inaccfs import readiness
from inaccfs.readiness import wait_readable, wait_writable
from inaccfs.trouble import Trouble
from tests.unit.fakes import refused

if TYPE_CHECKING:
    import socket

_EPOLL: Final = select.epoll


class FullEpoll:
    """An epoll(7) at the limit: it takes no new fds, and serves those that it has."""

    is_full = False

    def __init__(self) -> None:
        self._epoll = _EPOLL()
        self.modify = self._epoll.modify
        self.poll = self._epoll.poll
        self.close = self._epoll.close

    def register(self, fd: int, events: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._epoll.register(fd, events)


def at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "epoll", FullEpoll)
    monkeypatch.setattr(readiness, "_trouble", Trouble())


def test_an_fd_that_cannot_be_added_is_polled(
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, theirs = pair

    async def main() -> None:
        # The loop has added its own fds at its start.
        await trio.testing.wait_all_tasks_blocked()
        with refused(errno.ENOSPC):
            await trio.lowlevel.wait_readable(ours)
        await wait_writable(ours)
        for wait_for in (ours, ours.fileno()):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_readable, wait_for)
                await trio.sleep(0.05)
                assert nursery.child_tasks
                theirs.send(b"x")
            assert ours.recv(1) == b"x"
        theirs.close()
        # The end of a stream makes an fd readable, too.
        await wait_readable(ours)

    at_the_limit(monkeypatch)
    monkeypatch.setattr(FullEpoll, "is_full", False)

    async def fill() -> None:
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(FullEpoll, "is_full", True)
        await main()

    trio.run(fill)
    assert caplog.text.count("cannot wait for fds") == 1


def test_it_ends_when_its_fd_is_closed(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair

    async def main() -> None:
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(FullEpoll, "is_full", True)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await wait_readable(ours)

            nursery.start_soon(wait)
            await trio.sleep(0.05)
            ours.close()

    at_the_limit(monkeypatch)
    trio.run(main)
