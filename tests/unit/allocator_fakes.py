"""Allocators with workers of their own, and workers that get stuck."""

from __future__ import annotations

import gc
import os
import select
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from inaccfs.helper.pool import Pool
from inaccfs.shim.allocator import Allocator
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


PAGE = 4096
# The kernel needs a second or so for this, enough to be interrupted.
HUGE = 4 << 30


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


def allocated(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def has_ended(pidfd: int, seconds: float) -> bool:
    """Whether a process ends within *seconds*, or has."""
    return bool(select.select([pidfd], [], [], seconds)[0])


async def until_it_is_in_the_middle(fd: int) -> None:
    """Wait until an allocation of `HUGE` bytes has taken some of them."""
    with trio.fail_after(60):
        while allocated(fd) < HUGE // 32:
            await trio.lowlevel.checkpoint()


class Worker:
    """The test's side of workers that do not allocate: see `Stuck`.

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


class Stuck:
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


class StuckInUndoing(Stuck):
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
