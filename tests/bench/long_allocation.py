"""The cost of a long fallocate(2) for other callers, and how soon a signal ends it.

usage: python -m tests.bench.long_allocation [--size GIB] [--cpu N]

First a plain tmpfs, then inaccfs, both with the same five allocations of --size
GiB in mode 0, each made by a process of its own on a file of its own:

1. One that runs to its end. Meanwhile this process asks for the attributes of
   another file again and again, with 1 ms in between, and measures each answer.
   (statx(2) with AT_STATX_FORCE_SYNC: the server has to answer, not the kernel's
   cache.) The same before the allocation, with nothing going on: "idle".
2. Four that get SIGINT, after 20 % and 50 % of the time that the first one took:
   where a handler catches it, measured from just before the kill(2) until
   fallocate returned in the other process; and where it is fatal (as it is to
   fallocate(1)), until that process is gone. The first 64 MiB of the file were
   allocated before: afterwards st_blocks and st_size have to be what they were.
   "too late": the allocation had ended before the signal.
   (The tmpfs of recent kernels, 6.18 for one, heeds only fatal signals.)

Nothing is pinned, unless --cpu puts all on one CPU. Needs --size GiB of memory and
1 more; all is given back.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import inaccfs
from tests.bench import harness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

PAUSE = 0.001
IDLE_SAMPLES = 1000
ALLOCATED_BEFORE = 64 * harness.MIB
SHARES = (0.2, 0.5)
RELEASE_TIMEOUT = 10.0
KILLED, COMPLETED = "killed", "completed"

AT_EMPTY_PATH = 0x1000
AT_STATX_FORCE_SYNC = 0x2000
STATX_BASIC_STATS = 0x7FF

# Spawned, not forked: a child has none of this process's descriptors.
processes = multiprocessing.get_context("spawn")


def ask(fd: int) -> int:
    """The nanoseconds that it takes to get the attributes of `fd` from the server."""
    answer = ctypes.create_string_buffer(256)
    flags = AT_EMPTY_PATH | AT_STATX_FORCE_SYNC
    start = time.monotonic_ns()
    failed = harness.libc.statx(fd, b"", flags, STATX_BASIC_STATS, answer)
    taken = time.monotonic_ns() - start
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return taken


def allocate(path: str, size: int, handled: bool, pipe: Connection) -> None:
    """Allocate, in a child process: send when it began, when it ended, and how."""
    handler = (lambda _number, _frame: None) if handled else signal.SIG_DFL
    signal.signal(signal.SIGINT, handler)
    fd = os.open(path, os.O_RDWR)
    pipe.send(time.monotonic_ns())
    code = 0
    try:
        harness.fallocate(fd, 0, 0, size)
    except OSError as failure:
        code = failure.errno or -1
    pipe.send((time.monotonic_ns(), code))


class Allocation:
    """A fallocate(2) that runs in another process."""

    def __init__(self, path: str, size: int, handled: bool) -> None:
        self.pipe, childs_end = processes.Pipe()
        arguments = (path, size, handled, childs_end)
        self.process = processes.Process(target=allocate, args=arguments)
        self.process.start()
        childs_end.close()
        self.began: int = self.pipe.recv()

    def result(self) -> tuple[int, str]:
        """Wait for its end; return the time on the monotonic clock, and the outcome."""
        try:
            ended, code = self.pipe.recv()
        except EOFError:
            return time.monotonic_ns(), KILLED
        return ended, errno.errorcode[code] if code else COMPLETED

    def close(self) -> None:
        """Leave no process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def free_space(path: str) -> int:
    """The bytes that the file system of `path` has left."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@contextmanager
def allocating(path: str, size: int, *, handled: bool) -> Iterator[Allocation]:
    """Start an allocation, after the memory of the previous one was freed."""
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while free_space(path) < size or harness.memory_available() < size + harness.GIB:
        if time.monotonic() > deadline:
            raise RuntimeError("the memory of the allocation before did not come back")
        time.sleep(0.1)
    allocation = Allocation(path, size, handled)
    try:
        yield allocation
    finally:
        allocation.close()


@contextmanager
def file(path: str, allocated: int) -> Iterator[int]:
    """A new file with its first bytes allocated; removed afterwards."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        harness.fallocate(fd, 0, 0, allocated)
        yield fd
    finally:
        os.close(fd)
        os.unlink(path)


@dataclass(frozen=True, slots=True)
class Interrupted:
    """An allocation that was interrupted by a signal."""

    result: str
    milliseconds: float
    before: tuple[int, int]
    after: tuple[int, int]


def blocks_and_size(fd: int) -> tuple[int, int]:
    """st_blocks and st_size, as any program sees them."""
    status = os.fstat(fd)
    return status.st_blocks, status.st_size


def complete(directory: str, size: int) -> tuple[float, list[int], list[int]]:
    """Allocate to the end; return the seconds, and others' waits before and in it."""
    with (
        file(f"{directory}/other", harness.MIB) as other,
        file(f"{directory}/long", harness.MIB),
    ):
        idle = []
        for _ in range(IDLE_SAMPLES):
            time.sleep(PAUSE)
            idle.append(ask(other))
        meanwhile = []
        with allocating(f"{directory}/long", size, handled=False) as allocation:
            while not allocation.pipe.poll(PAUSE):
                meanwhile.append(ask(other))
            ended, result = allocation.result()
        if result != COMPLETED:
            raise RuntimeError(f"fallocate of {size} bytes in {directory}: {result}")
        return (ended - allocation.began) / 1e9, idle, meanwhile


def interrupted(
    directory: str, size: int, seconds: float, *, handled: bool
) -> Interrupted:
    """Interrupt an allocation after some seconds."""
    with file(f"{directory}/interrupted", ALLOCATED_BEFORE) as fd:
        before = blocks_and_size(fd)
        path = f"{directory}/interrupted"
        with allocating(path, size, handled=handled) as allocation:
            pid = allocation.process.pid
            assert pid is not None
            time.sleep(seconds)
            sent = time.monotonic_ns()
            os.kill(pid, signal.SIGINT)
            ended, result = allocation.result()
        after = blocks_and_size(fd)
        return Interrupted(result, (ended - sent) / 1e6, before, after)


def measure(
    name: str, directory: str, size: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Measure one file system; return its rows in both tables."""
    seconds, idle, meanwhile = complete(directory, size)
    took = f"{seconds:.2f} s, {seconds * harness.GIB / size * 1e3:.0f} ms a GiB"
    print(f"{name}: {size // harness.GIB} GiB allocated in {took}")
    waits = [
        [
            f"{name}, {when}",
            f"{harness.quantile(samples, 0.5) / 1e6:.3f}",
            f"{harness.quantile(samples, 0.99) / 1e6:.3f}",
            f"{max(samples) / 1e6:.3f}",
            f"{len(samples)}",
        ]
        for when, samples in (("idle", idle), ("allocating", meanwhile))
    ]
    ends = []
    for handled, share in itertools.product((True, False), SHARES):
        one = interrupted(directory, size, share * seconds, handled=handled)
        ends.append(
            [
                f"{name}, {'caught' if handled else 'fatal'}, after {share:.0%}",
                one.result,
                f"{one.milliseconds:.1f}" if one.milliseconds > 0 else "too late",
                f"{one.before[0]} -> {one.after[0]}",
                f"{one.before[1]} -> {one.after[1]}",
                "yes" if one.before == one.after else "NO",
            ]
        )
    return waits, ends


def main() -> None:
    """Measure both file systems, print the tables."""
    parser = harness.parser(__doc__)
    parser.add_argument("--size", type=int, default=8, metavar="GIB")
    parser.add_argument("--cpu", type=int, help="put all on this CPU")
    options = parser.parse_args()
    size = options.size * harness.GIB
    if (available := harness.memory_available()) < size + harness.GIB:
        sys.exit(
            f"{options.size} GiB and 1 more are needed, but only"
            f" {available / harness.GIB:.1f} GiB are available: try a smaller --size"
        )
    harness.begin()
    if options.cpu is not None:
        harness.pin(os.getpid(), options.cpu)

    with harness.tmpfs(size + harness.GIB) as path:
        waits, ends = measure("tmpfs", path, size)
    with inaccfs.mounted(size=f"{options.size + 1}g") as mount:
        if options.cpu is not None:
            harness.pin(mount.pid, options.cpu)
        our_waits, our_ends = measure("inaccfs", str(mount.path), size)

    harness.print_table(
        "Attributes of another file, ms",
        ["", "p50", "p99", "max", "samples"],
        waits + our_waits,
    )
    print("target: 5 ms for inaccfs, allocating")
    harness.print_table(
        "From SIGINT to the end of fallocate, ms",
        ["", "result", "ms", "st_blocks", "st_size", "as before"],
        ends + our_ends,
    )
    print("target: 100 ms for inaccfs, EINTR where it is caught, and all as before")


if __name__ == "__main__":
    main()
