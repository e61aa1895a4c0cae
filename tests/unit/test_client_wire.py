"""Bytes and fds through a socket that has little room."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from inaccfs.client import wire
from inaccfs.client.core import Outgoing
from inaccfs.control.outlet import Outlet
from tests.unit.client_fakes import no_fds_leak

if TYPE_CHECKING:
    import socket


@pytest.mark.parametrize("with_fd", [False, True], ids=["bytes", "fd"])
def test_data_without_room_is_sent_later(
    pair: tuple[socket.socket, socket.socket], with_fd: bool
) -> None:
    """The fd is sent with the first bytes, and is closed then."""
    ours, theirs = pair
    with no_fds_leak():
        data = bytes(range(256)) * 8192
        fd = os.open("/dev/null", os.O_RDWR) if with_fd else -1
        received, came = b"", []
        outlet = Outlet(ours)
        outlet.extend([Outgoing(data, fd)])
        rounds = 0
        while outlet:
            wire.flush(outlet)
            rounds += 1
            chunk, fds = wire.receive(theirs)
            received += chunk
            came += fds
            if outlet:
                assert outlet._unsent[0][1] == -1
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
    outlet = Outlet(ours)
    while wire.flush(outlet):
        outlet.extend([Outgoing(b"x" * 65536)])
    fd = os.open("/dev/null", os.O_RDWR)
    outlet.extend([Outgoing(b"x", fd)])
    # The caller tries again, or gives up.
    with no_fds_leak():
        assert not wire.flush(outlet)
        os.fstat(fd)
    outlet.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


@pytest.mark.parametrize("with_fd", [False, True], ids=["bytes", "fd"])
def test_a_closed_peer_gets_nothing(
    pair: tuple[socket.socket, socket.socket], with_fd: bool
) -> None:
    ours, theirs = pair
    theirs.close()
    with no_fds_leak():
        fd = os.open("/dev/null", os.O_RDWR) if with_fd else -1
        outlet = Outlet(ours)
        outlet.extend([Outgoing(b"x", fd), Outgoing(b"y")])
        assert wire.flush(outlet)
        assert not outlet
        assert wire.receive(ours) == (b"", [])
