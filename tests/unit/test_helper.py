"""The real helper: what workers do for the daemon, and how all of them end."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from inaccfs import syscalls
from inaccfs.helper import wire
from inaccfs.helper.tasks import Helper
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@contextmanager
def working() -> Iterator[Helper]:
    """A helper during a with block; its processes have the patches made so far."""
    made = Helper()
    try:
        yield made
    finally:
        made.close()
        gc.unfreeze()


@pytest.fixture
def helper() -> Iterator[Helper]:
    with working() as made:
        yield made


class Connection:
    """A peer's end of a connection, and the daemon's."""

    def __init__(self) -> None:
        self.peer, self.daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.daemon.setblocking(False)

    def close(self) -> None:
        self.peer.close()
        self.daemon.close()


@pytest.fixture
def connection() -> Iterator[Connection]:
    made = Connection()
    yield made
    made.close()


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[int]:
    """An fd of the file system that the tests use as the mount."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


@pytest.fixture
def device(ours: int) -> str:
    return syscalls.identity(ours)[0]


@pytest.fixture
def theirs() -> Iterator[int]:
    """An fd of another file system."""
    fd = os.memfd_create("theirs")
    yield fd
    os.close(fd)


def same(one: int, other: int) -> bool:
    """Whether two fds are of the same file."""
    return os.path.sameopenfile(one, other)


# --- receiving --------------------------------------------------------------------


async def test_an_fd_of_the_mount_is_received(
    helper: Helper, connection: Connection, ours: int, device: str
) -> None:
    socket.send_fds(connection.peer, [b"hello"], [ours])
    received = await helper.receive_fd(connection.daemon, 4096, device)
    assert received[:1] + received[2:] == (5, False, None)
    assert same(received.fd, ours)
    assert not os.get_inheritable(received.fd)
    os.close(received.fd)


async def test_no_more_is_read_than_is_wanted(
    helper: Helper, connection: Connection, ours: int, device: str
) -> None:
    socket.send_fds(connection.peer, [b"hello"], [ours])
    received = await helper.receive_fd(connection.daemon, 2, device)
    assert received.size == 2
    os.close(received.fd)
    assert await helper.receive_fd(connection.daemon, 9, device) == (3, -1, False, None)


async def test_a_foreign_fd_stays_out(
    helper: Helper, connection: Connection, theirs: int, device: str
) -> None:
    before = os.listdir("/proc/self/fd")
    socket.send_fds(connection.peer, [b"hello"], [theirs])
    received = await helper.receive_fd(connection.daemon, 4096, device)
    assert received[:3] == (5, -1, True)
    if received.closing is not None:
        await received.closing.wait()
    # The worker, which waits for more to do, has a socket and a pidfd.
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2


async def test_of_many_fds_one_is_received(
    helper: Helper, connection: Connection, ours: int, device: str
) -> None:
    reading, writing = os.pipe()
    socket.send_fds(connection.peer, [b"hello"], [ours, writing, writing])
    os.close(writing)
    received = await helper.receive_fd(connection.daemon, 4096, device)
    os.close(received.fd)
    # No other process has the other end.
    assert os.read(reading, 1) == b""
    os.close(reading)


@pytest.mark.parametrize("flags", [os.O_PATH, os.O_PATH | os.O_DIRECTORY, os.O_RDONLY])
async def test_fds_of_all_kinds(
    helper: Helper, connection: Connection, tmp_path: Path, device: str, flags: int
) -> None:
    name = tmp_path if flags & os.O_DIRECTORY else tmp_path / "file"
    fd = os.open(name, flags)
    socket.send_fds(connection.peer, [b"hello"], [fd])
    received = await helper.receive_fd(connection.daemon, 4096, device)
    assert same(received.fd, fd)
    os.close(fd)
    os.close(received.fd)


async def test_nothing_to_read(
    helper: Helper, connection: Connection, device: str
) -> None:
    with pytest.raises(BlockingIOError):
        await helper.receive_fd(connection.daemon, 4096, device)
    connection.peer.close()
    assert await helper.receive_fd(connection.daemon, 9, device) == (0, -1, False, None)


async def test_a_connection_that_is_no_socket_any_more(
    helper: Helper, connection: Connection, device: str
) -> None:
    connection.daemon.close()
    with refused(errno.EBADF):
        await helper.receive_fd(connection.daemon, 4096, device)


# --- opening ----------------------------------------------------------------------


async def test_a_file_without_a_name(
    helper: Helper, tmp_path: Path, device: str
) -> None:
    fd = await helper.open_tmpfile(str(tmp_path), device)
    assert syscalls.identity(fd)[0] == device
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


async def test_a_directory_elsewhere_is_estale(helper: Helper, device: str) -> None:
    with refused(errno.ESTALE):
        await helper.open_tmpfile("/dev/shm", device)


async def test_the_errno_is_the_kernels(
    helper: Helper, tmp_path: Path, device: str
) -> None:
    with refused(errno.ENOENT):
        await helper.open_tmpfile(str(tmp_path / "missing"), device)


# --- all ways to end it -----------------------------------------------------------


async def _kill(helper: Helper) -> None:
    with ExitStack() as stack:
        pidfd = os.pidfd_open(helper.pid)
        stack.callback(os.close, pidfd)
        os.kill(helper.pid, signal.SIGKILL)
        await trio.lowlevel.wait_readable(pidfd)


async def test_a_helper_that_was_killed_is_started_anew(
    helper: Helper, tmp_path: Path, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        before = helper.pid
        await _kill(helper)
        os.close(await helper.open_tmpfile(str(tmp_path), device))
        assert helper.pid != before
    assert [record.message for record in caplog.records] == (
        ["the helper was killed: started a new one"] * 2
    )


async def test_a_helper_that_was_killed_is_started_anew_unasked(
    helper: Helper,
) -> None:
    before = helper.pid
    async with trio.open_nursery() as nursery:
        nursery.start_soon(helper.run)
        await _kill(helper)
        with trio.fail_after(60):
            while helper.pid == before:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_a_request_that_cannot_be_sent_does_not_wait_for_the_worker(
    helper: Helper, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EPIPE is the first sign that the worker has ended."""
    helper.give_back(await helper.lease())
    really_send = wire.send

    def send(connection: socket.socket, packet: bytes, fd: int | None = None) -> None:
        if packet.startswith(wire.OPEN_TMPFILE):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        really_send(connection, packet, fd)

    with trio.fail_after(60):
        with monkeypatch.context() as patch:
            patch.setattr(wire, "send", send)
            with refused(errno.EIO):
                await helper.open_tmpfile(str(tmp_path), device)
        os.close(await helper.open_tmpfile(str(tmp_path), device))


async def test_of_a_worker_that_was_killed_nothing_stays(helper: Helper) -> None:
    helper.give_back(await helper.lease())
    fds = len(os.listdir("/proc/self/fd"))
    worker = await helper.lease()
    helper.let_die(worker)
    worker.wait_ended()
    # It ends now, and not only when the next one is killed.
    helper.give_back(await helper.lease())
    assert len(os.listdir("/proc/self/fd")) == fds
