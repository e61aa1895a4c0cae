"""The real allocator: what it does, its helper, and how both end."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from inaccfs.helper.pool import Pool
from inaccfs.helper.pool import Worker as PoolWorker
from inaccfs.shim.allocator import Allocator
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from tests.unit.allocator_fakes import (
    HUGE,
    PAGE,
    Worker,
    Working,
    allocated,
    has_ended,
    until_it_is_in_the_middle,
    working,
)
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from inaccfs.backing.root import Backing

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


# --- what it does -----------------------------------------------------------------


@pytest.mark.parametrize(("mode", "size"), [(0, 3 * PAGE), (FALLOC_FL_KEEP_SIZE, 0)])
async def test_memory_is_allocated(
    allocator: Working, memory: int, mode: int, size: int
) -> None:
    assert await allocator.allocate(memory, mode, PAGE, 2 * PAGE, trio.Event()) is None
    assert (os.fstat(memory).st_size, allocated(memory)) == (size, 2 * PAGE)


async def test_enospc_is_returned_and_nothing_is_allocated(
    allocator: Working, backing: Backing
) -> None:
    fd = os.open(".", os.O_RDWR | os.O_TMPFILE, 0o600, dir_fd=backing.root)
    with refused(errno.ENOSPC):
        await allocator.allocate(fd, 0, 0, 65 << 20, trio.Event())
    assert (os.fstat(fd).st_size, allocated(fd)) == (0, 0)
    # All memory can still be allocated.
    assert await allocator.allocate(fd, 0, 0, 64 << 20, trio.Event()) is None
    os.close(fd)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "error"),
    [
        pytest.param(0, 0, 0, errno.EINVAL, id="no length"),
        pytest.param(0, (1 << 63) - PAGE, PAGE, errno.EFBIG, id="past the largest"),
        pytest.param(FALLOC_FL_PUNCH_HOLE, 0, 1, errno.EOPNOTSUPP, id="bare punch"),
    ],
)
async def test_the_errno_is_the_kernels(
    allocator: Working, memory: int, mode: int, offset: int, length: int, error: int
) -> None:
    with refused(error):
        await allocator.allocate(memory, mode, offset, length, trio.Event())


async def test_many_at_once(allocator: Working) -> None:
    with ExitStack() as stack:
        fds = [os.memfd_create(f"{at}") for at in range(8)]
        for fd in fds:
            stack.callback(os.close, fd)
        async with trio.open_nursery() as nursery:
            for at, fd in enumerate(fds):
                length = (at + 1) * PAGE
                nursery.start_soon(allocator.allocate, fd, 0, 0, length, trio.Event())
        assert [allocated(fd) // PAGE for fd in fds] == list(range(1, 9))


def _count_children(pid: int) -> int:
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


async def test_nothing_is_left_of_an_allocation(
    allocator: Working, memory: int
) -> None:
    """No fd is left here, and no dead workers."""
    # The worker that is left waits for the next.
    await allocator.allocate(memory, 0, 0, PAGE, trio.Event())
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        for at in range(10):
            await allocator.allocate(memory, 0, at * PAGE, PAGE, trio.Event())
            with refused(errno.EINVAL):
                await allocator.allocate(memory, 0, 0, 0, trio.Event())
        # An fd of another test may be closed meanwhile.
        assert len(os.listdir("/proc/self/fd")) <= before
    finally:
        gc.enable()
    assert _count_children(allocator.helper) == 1


# --- what it is -------------------------------------------------------------------


def _open_fds(pid: int) -> list[str]:
    """The files that the fds of a process refer to."""
    directory = f"/proc/{pid}/fd"
    found = []
    for fd in os.listdir(directory):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"{directory}/{fd}"))
    return found


async def test_the_helper_holds_nothing_of_the_daemons(
    allocator: Working, memory: int, backing: Backing
) -> None:
    """Otherwise a mount, a lock or a pipe would stay after the daemon has closed it."""
    await allocator.allocate(memory, 0, 0, PAGE, trio.Event())
    with trio.fail_after(60):
        # The worker may answer before the helper has closed the fd that it has passed
        # on.
        while len(fds := _open_fds(allocator.helper)) > 4:
            await trio.lowlevel.checkpoint()
    (requests,) = [name for name in fds if name != os.devnull]
    assert requests.startswith("socket:")
    assert len(fds) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_for_the_daemon_do_not_end_the_helper(
    allocator: Working, memory: int, number: signal.Signals
) -> None:
    await allocator.allocate(memory, 0, 0, PAGE, trio.Event())
    os.kill(allocator.helper, number)
    await allocator.allocate(memory, 0, PAGE, PAGE, trio.Event())
    assert allocated(memory) == 2 * PAGE


async def _ask(allocator: Working, memory: int) -> tuple[int, int]:
    """The errno of an allocation, or 0, and how many more fds there are then."""
    before = len(os.listdir("/proc/self/fd"))
    number = 0
    try:
        await allocator.allocate(memory, 0, 0, PAGE, trio.Event())
    except OSError as exc:
        number = exc.errno or -1
        # While a caller still has the exception.
        more = len(os.listdir("/proc/self/fd")) - before
    else:
        more = len(os.listdir("/proc/self/fd")) - before
    gc.collect()
    return number, more


async def _end(pid: int) -> None:
    """Kill a process, and wait until it has ended."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)


async def test_a_helper_that_was_killed_is_followed_by_another(
    allocator: Working, memory: int
) -> None:
    for _ in range(2):
        await _end(allocator.helper)
        assert await allocator.allocate(memory, 0, 0, PAGE, trio.Event()) is None
    assert allocated(memory) == PAGE


async def test_requests_in_progress_are_repeated_when_the_helper_was_killed(
    allocator: Working, memory: int
) -> None:
    async with trio.open_nursery() as nursery:
        # It runs to its end, so it is only as large as a kill in the middle needs.
        size = HUGE // 4
        nursery.start_soon(allocator.allocate, memory, 0, 0, size, trio.Event())
        await until_it_is_in_the_middle(memory)
        await _end(allocator.helper)
    assert allocated(memory) == size


async def test_a_worker_that_was_killed_is_enomem(worker: Worker, memory: int) -> None:
    """EINTR is only for a caller that was interrupted."""

    async def allocate(with_: Allocator) -> None:
        with refused(errno.ENOMEM):
            await with_.allocate(memory, FALLOC_FL_KEEP_SIZE, 0, PAGE, trio.Event())

    with working() as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(allocate, made)
            pidfd = await worker.works()
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


class FewForks:
    """Replaces os.fork(): after some calls one fails."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._fork = os.fork

    def __call__(self) -> int:
        self._left -= 1
        if self._left == -1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self._fork()


async def test_a_missing_process_for_an_allocation_is_an_error(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", FewForks(1))
    with working() as allocator:
        assert await _ask(allocator, memory) == (errno.EAGAIN, 0)


async def test_the_helper_survives_a_fork_that_fails(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", FewForks(1))
    with working() as allocator:
        await _ask(allocator, memory)
        number, _ = await _ask(allocator, memory)
    assert number == 0


class Cancelling(Pool):
    """Leases a worker, and cancels its caller before that has it."""

    scope: trio.CancelScope

    async def lease(self) -> PoolWorker:
        worker = await super().lease()
        self.scope.cancel()
        return worker


async def test_a_worker_that_a_cancelled_call_has_leased_is_given_back(
    memory: int,
) -> None:
    pool = Cancelling()
    try:
        with trio.CancelScope() as pool.scope:
            await Allocator(pool).allocate(memory, 0, 0, PAGE, trio.Event())
        assert pool.scope.cancelled_caught
        assert len(pool._idle) == 1
    finally:
        pool.close()
        gc.unfreeze()


# --- other ways to end it ---------------------------------------------------------


async def test_a_cancelled_allocation_is_killed(worker: Worker, memory: int) -> None:
    mode = FALLOC_FL_KEEP_SIZE
    with working() as allocator:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(allocator.allocate, memory, mode, 0, PAGE, trio.Event())
            pidfd = await worker.works()
            nursery.cancel_scope.cancel()
        ended = has_ended(pidfd, 1)
        if not ended:
            # close() would wait for it.
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        assert ended


async def test_one_that_is_cancelled_at_once_is_killed(
    worker: Worker, memory: int
) -> None:
    """Before there is a worker: close() would wait for it without end."""
    with working() as allocator:
        with trio.CancelScope() as scope:
            scope.cancel()
            await allocator.allocate(memory, FALLOC_FL_KEEP_SIZE, 0, PAGE, trio.Event())
        assert scope.cancelled_caught


DAEMON = """
import os, signal, sys, trio
from inaccfs import syscalls
from inaccfs.helper.pool import Pool
from inaccfs.shim.allocator import Allocator

def tell(number):
    with open(sys.argv[1], "wb", buffering=0) as fifo:
        fifo.write(number.to_bytes(4, "little"))

def stuck(*_):
    tell(os.getpid())
    signal.pause()

syscalls.fallocate = stuck
pool = Pool()
allocator = Allocator(pool)
tell(pool.pid)
trio.run(allocator.allocate, os.memfd_create("backing"), 0, 0, 4096, trio.Event())
"""


def test_all_die_with_the_daemon(worker: Worker) -> None:
    """Even when the daemon is killed and can send nothing."""
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON, str(worker.path)])
    helper = worker.wait_until_it_works()
    allocation = worker.wait_until_it_works()
    assert not has_ended(helper, 0)
    assert not has_ended(allocation, 0)
    daemon.kill()
    daemon.wait()
    for pidfd in (helper, allocation):
        assert has_ended(pidfd, 10)
        os.close(pidfd)


def test_close_ends_the_helper() -> None:
    with working() as allocator:
        helper = os.pidfd_open(allocator.helper)
        assert not has_ended(helper, 0)
    assert has_ended(helper, 0)
    os.close(helper)
    with pytest.raises(ChildProcessError):
        os.waitpid(allocator.helper, 0)


def test_the_requests_are_for_the_daemon_alone(allocator: Working) -> None:
    """A process that inherits them, such as fusermount3, could keep it alive."""
    fd = allocator.pool._process.requests.fileno()
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
