"""Bytes and fds through a socket that has little room."""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING

import pytest

from inaccfs.client import wire
from inaccfs.client.core import Outgoing
from tests.unit.client_fakes import no_fds_leak

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.mark.parametrize("with_fd", [False, True], ids=["bytes", "fd"])
def test_what_there_is_no_room_for_is_sent_later(
    pair: tuple[socket.socket, socket.socket], with_fd: bool
) -> None:
    """The fd goes with the first bytes, and is closed then."""
    ours, theirs = pair
    with no_fds_leak():
        data = bytes(range(256)) * 8192
        fd = os.open("/dev/null", os.O_RDWR) if with_fd else None
        received, came = b"", []
        left: Outgoing | None = Outgoing(data, fd)
        rounds = 0
        while left is not None:
            left = wire.send(ours, left)
            rounds += 1
            chunk, fds = wire.receive(theirs)
            received += chunk
            came += fds
            if left is not None:
                assert left.fd is None
        while len(received) < len(data):
            chunk, fds = wire.receive(theirs)
            received += chunk
            came += fds
        assert received == data
        assert rounds > 1
        assert len(came) == int(with_fd)
        for one in came:
            assert not os.get_inheritable(one)
            os.close(one)


def test_without_any_room_nothing_is_lost(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = pair

    def fill() -> None:
        while True:
            wire.send(ours, Outgoing(b"x" * 65536, None))

    with no_fds_leak(), pytest.raises(BlockingIOError):
        fill()
    fd = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        wire.send(ours, Outgoing(b"x", fd))
    # Whoever has it tries again, or gives up.
    with no_fds_leak():
        os.fstat(fd)
    wire.close_fds(deque([Outgoing(b"x", fd), Outgoing(b"y", None)]))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


@pytest.mark.parametrize("with_fd", [False, True], ids=["bytes", "fd"])
def test_whoever_has_gone_gets_nothing(
    pair: tuple[socket.socket, socket.socket], with_fd: bool
) -> None:
    ours, theirs = pair
    theirs.close()
    with no_fds_leak():
        fd = os.open("/dev/null", os.O_RDWR) if with_fd else None
        assert wire.send(ours, Outgoing(b"x", fd)) is None
        assert wire.receive(ours) == (b"", [])
