"""The real allocator: a helper, its workers, and how all of them end."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs import syscalls
from inaccfs.helper.pool import Pool
from inaccfs.helper.pool import Worker as PoolWorker
from inaccfs.shim.allocator import Allocator, Undoing
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.backing.root import Backing

PAGE = 4096
# The kernel needs a second or so for this, enough to be interrupted.
HUGE = 4 << 30

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


class Working(Allocator):
    """An allocator with workers of its own."""

    def __init__(self) -> None:
        self.pool = Pool()
        super().__init__(self.pool)

    @property
    def helper(self) -> int:
        """The process that forks the workers."""
        return self.pool.pid


@contextmanager
def working() -> Iterator[Working]:
    """An allocator during a with block; its processes have the patches made so far."""
    allocator = Working()
    try:
        yield allocator
    finally:
        allocator.pool.close()
        gc.unfreeze()


@pytest.fixture
def allocator() -> Iterator[Working]:
    with working() as made:
        yield made


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("backing")
    yield fd
    os.close(fd)


def allocated(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def has_ended(pidfd: int, seconds: float) -> bool:
    """Whether a process ends within *seconds*, or has."""
    return bool(select.select([pidfd], [], [], seconds)[0])


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
        await _until_it_is_in_the_middle(memory)
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


# --- interrupting a real one ------------------------------------------------------


async def _until_it_is_in_the_middle(fd: int) -> None:
    with trio.fail_after(60):
        while allocated(fd) < HUGE // 32:
            await trio.lowlevel.checkpoint()


async def test_an_interrupted_allocation_gives_all_back(
    allocator: Working, memory: int
) -> None:
    interrupted = trio.Event()

    async def allocate() -> None:
        try:
            undoing = await allocator.allocate(memory, 0, 0, HUGE, interrupted)
        except OSError as exc:
            assert exc.errno == errno.EINTR  # noqa: PT017
        else:
            assert undoing is not None, "it was over before it could be interrupted"
            await undoing.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(allocate)
        await _until_it_is_in_the_middle(memory)
        interrupted.set()
    assert (os.fstat(memory).st_size, allocated(memory)) == (0, 0)


async def test_close_waits_until_all_has_been_given_back(memory: int) -> None:
    with working() as allocator:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(allocator.allocate, memory, 0, 0, HUGE, trio.Event())
            await _until_it_is_in_the_middle(memory)
            nursery.cancel_scope.cancel()
    assert allocated(memory) == 0


# --- interrupting, step by step ---------------------------------------------------


class Worker:
    """The test's side of workers that do not allocate: see `_Stuck`.

    They send their pid and wait until they are killed.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "worker"
        self.undoing_path = directory / "undoing"
        os.mkfifo(self.path)
        os.mkfifo(self.undoing_path)
        # Also for writing, so that open never waits and a reader never sees an end.
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self._undoing = os.open(self.undoing_path, os.O_RDWR | os.O_NONBLOCK)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._undoing)

    def wait_until_it_works(self) -> int:
        """A pidfd of the next worker, without letting any other task run."""
        assert select.select([self._fd], [], [], 10)[0], "there is no worker"
        return os.pidfd_open(int.from_bytes(os.read(self._fd, 4), "little"))

    async def works(self) -> int:
        """A pidfd of the next worker, once it is in its system call."""
        # The clock of the loop may be a virtual one; a thread's is not.
        return await trio.to_thread.run_sync(self.wait_until_it_works)

    def let_go(self) -> None:
        """Let the kernel free all memory that was taken."""
        os.write(self._undoing, b"\0")


class _Stuck:
    """Stands in for syscalls.fallocate(), in a worker."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, fd: int, mode: int, offset: int, length: int) -> None:
        if mode != FALLOC_FL_KEEP_SIZE:
            os.posix_fallocate(fd, offset, length)
            return
        with open(self._path, "wb", buffering=0) as fifo:
            fifo.write(os.getpid().to_bytes(4, "little"))
        signal.pause()


class _StuckInUndoing(_Stuck):
    """As if the memory took long to free, even after a SIGKILL.

    Then a process with the worker's fds stays.
    """

    def __init__(self, path: Path, undoing_path: Path) -> None:
        super().__init__(path)
        self._undoing_path = undoing_path

    def __call__(self, fd: int, mode: int, offset: int, length: int) -> None:
        if os.fork() == 0:
            fifo = os.open(self._undoing_path, os.O_RDONLY)
            # A failed test must not leave it for ever.
            select.select([fifo], [], [], 20)
            os._exit(0)
        super().__call__(fd, mode, offset, length)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """The workers of every allocator that is made from now on get stuck."""
    made = Worker(tmp_path)
    monkeypatch.setattr(syscalls, "fallocate", _Stuck(made.path))
    yield made
    made.close()


@pytest.fixture
def undoing_worker(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """The same, but they take long to die."""
    stuck = _StuckInUndoing(worker.path, worker.undoing_path)
    monkeypatch.setattr(syscalls, "fallocate", stuck)
    return worker


async def test_a_worker_that_dies_at_once_is_eintr(
    worker: Worker, memory: int, mock_clock: trio.testing.MockClock
) -> None:
    """The clock stands still, so the call waits only for the worker's end."""
    interrupted = trio.Event()

    async def allocate(with_: Allocator) -> None:
        with refused(errno.EINTR):
            await with_.allocate(memory, FALLOC_FL_KEEP_SIZE, 0, PAGE, interrupted)

    with working() as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(allocate, made)
            pidfd = await worker.works()
            interrupted.set()
        assert has_ended(pidfd, 10)
        os.close(pidfd)


async def test_an_interrupt_before_the_call_is_not_lost(
    worker: Worker, memory: int, mock_clock: trio.testing.MockClock
) -> None:
    interrupted = trio.Event()
    interrupted.set()
    with working() as allocator, refused(errno.EINTR):
        await allocator.allocate(memory, FALLOC_FL_KEEP_SIZE, 0, PAGE, interrupted)


async def _interrupt(allocator: Working, worker: Worker, memory: int) -> Undoing:
    """Interrupt an allocation that takes long to be undone."""
    interrupted = trio.Event()
    found: list[Undoing | None] = []

    async def allocate() -> None:
        mode = FALLOC_FL_KEEP_SIZE
        found.append(await allocator.allocate(memory, mode, 0, PAGE, interrupted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(allocate)
        pidfd = await worker.works()
        begun = trio.current_time()
        interrupted.set()
    assert trio.current_time() - begun < 0.1
    # It was killed, not only forgotten.
    assert has_ended(pidfd, 10)
    os.close(pidfd)
    (undoing,) = found
    assert undoing is not None
    return undoing


async def test_an_undo_that_takes_long_is_reported_within_a_tenth_of_a_second(
    undoing_worker: Worker, memory: int, autojump_clock: trio.testing.MockClock
) -> None:
    with working() as allocator:
        undoing = await _interrupt(allocator, undoing_worker, memory)
        before = len(os.listdir("/proc/self/fd"))
        undoing_worker.let_go()
        await undoing.wait()
        # A socket and a pidfd.
        assert len(os.listdir("/proc/self/fd")) == before - 2


async def test_any_number_can_wait_for_an_undoing(
    undoing_worker: Worker, memory: int
) -> None:
    over = 0

    async def wait() -> None:
        nonlocal over
        await undoing.wait()
        over += 1

    with working() as allocator:
        undoing = await _interrupt(allocator, undoing_worker, memory)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(wait)
            # The first of them is cancelled.
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_when_blocked, scope)
                await undoing.wait()
            assert over == 0
            undoing_worker.let_go()
        assert over == 5
        # And a late caller.
        await wait()
        assert over == 6


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_a_task_that_waits_for_an_undo_may_give_up(
    undoing_worker: Worker, memory: int
) -> None:
    """The others go on waiting."""
    over = trio.Event()

    async def wait() -> None:
        await undoing.wait()
        over.set()

    with working() as allocator:
        undoing = await _interrupt(allocator, undoing_worker, memory)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as first:
                first.start_soon(undoing.wait)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert not over.is_set()
            undoing_worker.let_go()
        assert over.is_set()


async def test_one_that_is_stuck_holds_up_no_other(worker: Worker, memory: int) -> None:
    with working() as allocator:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                allocator.allocate, memory, FALLOC_FL_KEEP_SIZE, 0, PAGE, trio.Event()
            )
            os.close(await worker.works())
            assert await allocator.allocate(memory, 0, 0, PAGE, trio.Event()) is None
            nursery.cancel_scope.cancel()
    assert allocated(memory) == PAGE


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
from inaccfs.helper.pool import Pool, Worker as PoolWorker
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
