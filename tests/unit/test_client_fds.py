"""The blocking client and fds: which are sent, given, closed and refused."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs import MFD_CLOEXEC, MFD_INACCESSIBLE
from inaccfs.control.messages import CloseFd, GetFd, GetMemory, GetPfn, MemfdCreate
from tests.unit.client_calls import some_file
from tests.unit.client_fakes import FakeDaemon, GivenFd, Peer, no_fds_leak
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from inaccfs.client import Client


def test_a_file_by_its_fd(daemon: FakeDaemon, shim: Client, peer: Peer) -> None:
    came: list[os.stat_result] = []

    def getfd(peer: Peer, _: GetFd) -> None:
        fd = peer.fds.pop(0)
        came.append(os.fstat(fd))
        os.close(fd)

    daemon.handlers[GetFd] = getfd
    with some_file() as fd:
        with shim.file(fd) as memory, shim.file(fd) as other:
            assert memory.get_pfn(3).pfn == 1003
            other.get_pfn(1)
        assert [os.path.samestat(found, os.fstat(fd)) for found in came] == [True] * 2
    names = [peer.next(GetFd).fdname, peer.next(GetFd).fdname]
    assert len(set(names)) == 2
    assert [peer.next(GetPfn).file for _ in names] == names
    assert [peer.next(CloseFd).fdname for _ in names] == names[::-1]
    with pytest.raises(ValueError, match="closed"):
        memory.get_pfn(3)


def test_a_file_that_the_daemon_does_not_want(daemon: FakeDaemon, shim: Client) -> None:
    def refuse(peer: Peer, _: GetFd) -> None:
        os.close(peer.fds.pop())
        raise OSError(errno.EINVAL, "no file of this mount")

    daemon.handlers[GetFd] = refuse
    with some_file() as fd, no_fds_leak(), pytest.raises(OSError, match="no file of"):
        shim.file(fd)


def test_an_argument_that_is_no_file(shim: Client) -> None:
    with pytest.raises(ValueError, match="begins with /"):
        shim.file("guest0")
    with refused(errno.EBADF):
        shim.file(1 << 20)


@pytest.mark.parametrize("flags", [MFD_CLOEXEC | MFD_INACCESSIBLE, MFD_INACCESSIBLE])
def test_memfd_create_gives_an_fd_and_keeps_no_name(
    daemon: FakeDaemon, shim: Client, peer: Peer, flags: int
) -> None:
    made = os.memfd_create("x")
    inode = os.fstat(made).st_ino
    daemon.handlers[MemfdCreate] = lambda *_: GivenFd(made)
    fd = shim.memfd_create("guest", flags=flags, size=8192)
    try:
        assert os.fstat(fd).st_ino == inode
        assert os.get_inheritable(fd) is not bool(flags & MFD_CLOEXEC)
    finally:
        os.close(fd)
    command = peer.next(MemfdCreate)
    assert (command.memfd, command.flags, command.size) == ("guest", flags, 8192)
    assert peer.next_any() == CloseFd(fdname=command.fdname)


def test_a_memfd_whose_name_cannot_be_closed_is_closed(
    daemon: FakeDaemon, shim: Client
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "a bug")

    daemon.handlers[MemfdCreate] = lambda *_: GivenFd(os.memfd_create("x"))
    daemon.handlers[CloseFd] = refuse
    with no_fds_leak(), pytest.raises(OSError, match="a bug"):
        shim.memfd_create("guest")


def test_get_memory_gives_an_fd(daemon: FakeDaemon, shim: Client) -> None:
    daemon.handlers[GetMemory] = lambda *_: GivenFd(os.memfd_create("x"))
    fd = shim.file("/a").get_memory()
    assert not os.get_inheritable(fd)
    os.close(fd)
    fd = shim.execute(GetMemory(file="/a"))
    os.close(fd)


def test_a_forgotten_file_is_closed_with_its_client(daemon: FakeDaemon) -> None:
    """The fixture counts."""
    with some_file() as fd, inaccfs.connect(daemon.path) as shim:
        shim.file(fd)
        shim.file(fd)
