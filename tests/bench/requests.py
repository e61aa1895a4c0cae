"""The cost of a request, beside that of a minimal libfuse server in C.

usage: python -m tests.bench.requests [--cpu N] [--rounds N] [--calls N]

The two file systems are mounted at the same time: inaccfs, and floor.c from this
directory. Both servers and the client stay on one CPU, since on several the
figures mostly show the cost of waking a CPU that sleeps. Each round makes the same
calls on inaccfs, then on the floor, operation by operation, and a clock is read
around each call:

    fstat                 fstat(2)
    read, refused         read(2), EINVAL
    fallocate, KEEP_SIZE  of a page that is allocated already
    fallocate, mode 0     of a page that is allocated already
    punch, a hole         a punched page once more
    punch, a page         an allocated page (allocated before, outside the clock)

p50 and p99 are those of a round, the median over the rounds, in µs. A ratio is
taken within a round (inaccfs / floor), and then the median over the rounds. The
client's own work (the call from Python, two readings of the clock) is in both.
Any other process that keeps this CPU busy spoils the figures, inaccfs's the most.

Needs: a C compiler, pkg-config, libfuse3's headers.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import inaccfs
from tests.bench import harness
from tests.bench.harness import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, PAGE

WARM_UP = 300

Call = Callable[[], object]

# PyDLL keeps the GIL, and arguments that are ctypes already need no conversion.
_fallocate = ctypes.PyDLL(None).fallocate


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table: a call to time, and one to make before it untimed."""

    name: str
    call: Callable[[int], Call]
    before: Callable[[int], Call] | None
    p50_target: float
    p99_target: float | None


def fstat(fd: int) -> Call:
    """fstat(2) of `fd`."""
    return partial(os.fstat, fd)


def refused_read(fd: int) -> Call:
    """read(2) from `fd`, which fails."""

    def call() -> bool:
        try:
            os.read(fd, 8)
        except OSError:
            return True
        return False

    return call


def fallocate(mode: int) -> Callable[[int], Call]:
    """fallocate(2) of the first page, in the given mode."""
    start, page = ctypes.c_int64(0), ctypes.c_int64(PAGE)

    def for_file(fd: int) -> Call:
        return partial(_fallocate, ctypes.c_int(fd), ctypes.c_int(mode), start, page)

    return for_file


PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

OPERATIONS = (
    Operation("fstat", fstat, None, 1.4, None),
    Operation("read, refused", refused_read, None, 1.3, None),
    Operation("fallocate, KEEP_SIZE", fallocate(FALLOC_FL_KEEP_SIZE), None, 1.3, 3.0),
    Operation("fallocate, mode 0", fallocate(0), None, 1.3, 3.0),
    Operation("punch, a hole", fallocate(PUNCH), None, 1.3, 3.0),
    Operation(
        "punch, a page", fallocate(PUNCH), fallocate(FALLOC_FL_KEEP_SIZE), 1.3, 3.0
    ),
)


def check(fd: int) -> None:
    """Raise unless each operation on `fd` ends as the benchmark assumes."""
    os.fstat(fd)
    for mode in (FALLOC_FL_KEEP_SIZE, 0, PUNCH):
        harness.fallocate(fd, mode, 0, PAGE)
    try:
        os.read(fd, 8)
    except OSError as refusal:
        if refusal.errno == errno.EINVAL:
            return
        raise
    raise RuntimeError("a read was not refused")


def measure(call: Call, before: Call | None, count: int) -> list[int]:
    """The nanoseconds that each of `count` calls took."""
    now = time.perf_counter_ns
    samples = []
    for _ in range(count):
        if before is not None:
            before()
        start = now()
        call()
        samples.append(now() - start)
    return samples


@dataclass(frozen=True, slots=True)
class Round:
    """The times of one operation in one round, in µs: inaccfs first, then the floor."""

    p50: tuple[float, float]
    p99: tuple[float, float]


def one_round(operation: Operation, files: tuple[int, int], calls: int) -> Round:
    """Make the calls on one file and then on the other."""
    taken = []
    for fd in files:
        before = operation.before and operation.before(fd)
        taken.append(measure(operation.call(fd), before, calls))
    ours, floor = taken
    return Round(
        p50=(harness.quantile(ours, 0.5) / 1e3, harness.quantile(floor, 0.5) / 1e3),
        p99=(harness.quantile(ours, 0.99) / 1e3, harness.quantile(floor, 0.99) / 1e3),
    )


def row(operation: Operation, rounds: list[Round]) -> list[str]:
    """One operation's line in the table."""

    def cells(pairs: list[tuple[float, float]], target: float | None) -> list[str]:
        return [
            f"{statistics.median(ours for ours, _ in pairs):.1f}",
            f"{statistics.median(floor for _, floor in pairs):.1f}",
            f"{statistics.median(ours / floor for ours, floor in pairs):.2f}",
            f"<= {target}" if target else "",
        ]

    return [
        operation.name,
        *cells([a_round.p50 for a_round in rounds], operation.p50_target),
        *cells([a_round.p99 for a_round in rounds], operation.p99_target),
    ]


def main() -> None:
    """Mount both, measure, print the table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--cpu", type=int, default=0, help="the CPU that all share")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=2000, help="per round")
    options = parser.parse_args()
    harness.begin()
    harness.pin(os.getpid(), options.cpu)

    with ExitStack() as stack:
        floor = stack.enter_context(harness.compiled_floor())
        floor_path = stack.enter_context(harness.serving(floor, cpu=options.cpu))
        mount = stack.enter_context(inaccfs.mounted(size="1g"))
        harness.pin(mount.pid, options.cpu)

        ours_fd = os.open(f"{mount.path}/f", os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, ours_fd)
        floor_fd = os.open(f"{floor_path}/f", os.O_RDWR)
        stack.callback(os.close, floor_fd)

        files = (ours_fd, floor_fd)
        for fd in files:
            harness.fallocate(fd, 0, 0, harness.MIB)
            check(fd)
        rounds: dict[Operation, list[Round]] = {each: [] for each in OPERATIONS}
        gc.disable()
        for operation in OPERATIONS:
            one_round(operation, files, WARM_UP)
        for _ in range(options.rounds):
            for operation, so_far in rounds.items():
                so_far.append(one_round(operation, files, options.calls))

    harness.print_table(
        f"One request, µs, all on CPU {options.cpu}"
        f" ({options.rounds} rounds of {options.calls} calls)",
        ["", "p50", "floor", "ratio", "target", "p99", "floor", "ratio", "target"],
        [row(operation, so_far) for operation, so_far in rounds.items()],
    )


if __name__ == "__main__":
    main()
