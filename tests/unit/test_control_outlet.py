"""The writing end of a connection: what has no room waits or is lost."""

from __future__ import annotations

import os
import socket

import pytest

from inaccfs.control.limits import Limits, Policy
from inaccfs.control.outlet import Outlet
from inaccfs.control.peeroutlet import Backlog, PeerOutlet


def received(theirs: socket.socket) -> bytes:
    """All data that can be read now."""
    theirs.setblocking(False)
    data = b""
    while True:
        try:
            data += theirs.recv(1 << 16)
        except BlockingIOError:
            return data


def filled(outlet: Outlet | PeerOutlet, message: bytes) -> int:
    """Send until something waits; return the number of messages."""
    count = 0
    while not len(outlet):
        outlet.send(message)
        count += 1
    return count


def test_data_without_room_waits_in_order(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    outlet = Outlet(ours)
    sent = filled(outlet, b"a" * 5000)
    outlet.send(b"b")
    data = b""
    assert not outlet.flush()
    while outlet:
        data += received(theirs)
        outlet.flush()
    assert outlet.waiting == 0
    assert data + received(theirs) == b"a" * 5000 * sent + b"b"


def test_an_fd_goes_with_the_first_of_its_bytes(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    outlet = Outlet(ours)
    filled(outlet, b"a" * 5000)
    fd = os.memfd_create("mine")
    outlet.send(b"b", fd)
    os.fstat(fd)
    received(theirs)
    assert outlet.flush()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    got: list[int] = []
    while not got:
        data, got, _, _ = socket.recv_fds(theirs, 1 << 16, 4)
    # The kernel may join it with the data before it.
    assert data.endswith(b"b")
    assert "mine" in os.readlink(f"/proc/self/fd/{got[0]}")
    os.close(got[0])


@pytest.mark.parametrize("waits", [False, True])
def test_the_fd_of_a_message_that_cannot_be_sent_is_closed(
    pair: tuple[socket.socket, socket.socket], waits: bool
) -> None:
    ours, theirs = pair
    outlet = Outlet(ours)
    if waits:
        filled(outlet, b"a" * 5000)
    fd = os.memfd_create("mine")
    theirs.close()
    if waits:
        outlet.send(b"b", fd)
        outlet.close()
    else:
        with pytest.raises(BrokenPipeError):
            outlet.send(b"b", fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    assert (outlet.waiting, len(outlet)) == (0, 0)


def test_offered_data_is_sent_whole_or_counted_as_lost(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    outlet = Outlet(ours)
    message = b"x" * 3000
    sent = 0
    while outlet.offer(message):
        sent += 1
    assert (outlet.lost, len(outlet)) == (1, 0)
    assert not outlet.offer(message)
    assert outlet.lost == 2
    assert received(theirs) == message * sent
    assert outlet.offer(message)
    assert outlet.lost == 2


def test_offered_data_does_not_overtake_waiting_data(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    outlet = Outlet(ours)
    filled(outlet, b"a" * 5000)
    received(theirs)
    assert not outlet.offer(b"b")
    assert outlet.lost == 1


def test_a_peer_is_never_disconnected_for_offered_data(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = pair
    given_up: list[str] = []
    backlog = Backlog()
    outlet = PeerOutlet(
        ours,
        Policy(Limits(output=1, total_output=1)),
        backlog,
        start=lambda task: None,
        progressed=lambda: None,
        disconnect=given_up.append,
        evict=lambda reason, text: given_up.append(text),
    )
    for _ in range(10_000):
        outlet.offer(b"x" * 1000)
    assert outlet.lost > 1000
    assert (backlog.bytes, outlet.is_full, given_up) == (0, False, [])
    outlet.close()
    assert not outlet.offer(b"x")
