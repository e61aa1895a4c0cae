"""The cost of the trace for fallocate(2): without a reader, and with one.

usage: python -m tests.bench.trace [--rounds N] [--calls N]

Each pair has two consecutive rounds, in an order that changes from pair to pair. The
share is the median over the pairs, with an interval of 95 % (bootstrap).

"off" compares `InaccessibleFile.begin`, in this process, with itself without the lines
for the trace, which are taken out of its source. "on" is fallocate(2) on a mount, with
and without a process that reads a trace as `inaccfs trace -o` does: caller and daemon
on one CPU, that process on another. In µs of the CPU's time (schedstat): on one CPU
that is what a call takes, and much the same on a machine that has other things to do.
"""

from __future__ import annotations

import ast
import inspect
import os
import random
import statistics
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import inaccfs
from inaccfs import runtime
from inaccfs.semantics import V8
from inaccfs.shim import file as module
from inaccfs.shim.file import InaccessibleFile
from inaccfs.shim.superblock import Superblock
from inaccfs.syscalls import fallocate
from tests.bench import harness
from tests.bench.harness import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.shim.order import Done

_MODES = {
    "fallocate, mode 0": 0,
    "fallocate, KEEP_SIZE": FALLOC_FL_KEEP_SIZE,
    "punch": FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
}

# The target in docs/tracing.md.
_TARGET = 0.20


class Pairs(NamedTuple):
    """The times of a call without and with the trace, in µs."""

    without: list[float]
    with_it: list[float]

    def row(self, name: str, target: str) -> list[str]:
        """A row of the table."""
        both = zip(self.with_it, self.without, strict=True)
        shares = [one / other - 1 for one, other in both]
        low, high = interval(shares)
        return [
            name,
            f"{statistics.median(self.without):.2f}",
            f"{statistics.median(self.with_it):.2f}",
            f"{statistics.median(shares):+.1%}",
            f"{low:+.1%} to {high:+.1%}",
            target,
        ]


def interval(samples: list[float]) -> tuple[float, float]:
    """The interval that contains the median with 95 %."""
    chosen = random.Random(1)
    medians = sorted(
        statistics.median(chosen.choices(samples, k=len(samples))) for _ in range(2000)
    )
    return medians[50], medians[-51]


def paired(
    rounds: int, without: Callable[[], float], with_it: Callable[[], float]
) -> Pairs:
    """Measure both in turn."""
    pairs = Pairs([], [])
    for number in range(rounds):
        if number % 2:
            pairs.with_it.append(with_it())
            pairs.without.append(without())
        else:
            pairs.without.append(without())
            pairs.with_it.append(with_it())
    return pairs


def timed(calls: int, call: Callable[[], object], *others: int) -> float:
    """µs a call, of this thread and of the main threads of *others*, which are pids."""
    began = time.thread_time_ns() + sum(map(cpu_time, others))
    for _ in range(calls):
        call()
    taken = time.thread_time_ns() + sum(map(cpu_time, others)) - began
    return taken / calls / 1000


def cpu_time(pid: int) -> int:
    """How long the main thread of a process has run so far, in ns."""
    with open(f"/proc/{pid}/task/{pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[0])


# --- off --------------------------------------------------------------------------


class _Untraced(ast.NodeTransformer):
    """Removes the lines of `begin` that are for the trace."""

    def __init__(self) -> None:
        self.taken = 0

    def visit_Assign(self, node: ast.Assign) -> Any:
        if ast.unparse(node.targets[0]) != "began":
            return node
        self.taken += 1
        return ast.parse("began = 0").body[0]

    def visit_If(self, node: ast.If) -> Any:
        if ast.unparse(node.test) != "began":
            return self.generic_visit(node)
        self.taken += 1
        return None


def untraced() -> Callable[..., Any]:
    """`InaccessibleFile.begin` without its lines for the trace."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(InaccessibleFile.begin)))
    transformer = _Untraced()
    tree = ast.fix_missing_locations(transformer.visit(tree))
    assert transformer.taken == 4, "begin has changed: so must this"
    names = dict(vars(module))
    exec(compile(tree, "untraced", "exec"), names)
    made: Callable[..., Any] = names["begin"]
    return made


def off(rounds: int, calls: int) -> Iterator[list[str]]:
    """Measure without a reader."""
    fd = os.memfd_create("trace")
    os.ftruncate(fd, PAGE)
    file = InaccessibleFile(fd, Superblock(V8(), PAGE))
    # Both are bound in the same way.
    plain, traced = untraced().__get__(file), file.begin

    def hold() -> Done:
        raise AssertionError("the call waits for nobody")

    for name, mode in _MODES.items():

        def without(mode: int = mode) -> float:
            return timed(calls, lambda: plain(mode, 0, PAGE, hold))

        def with_it(mode: int = mode) -> float:
            return timed(calls, lambda: traced(mode, 0, PAGE, hold))

        yield paired(rounds, without, with_it).row(f"off: {name}", "around 0")
    os.close(fd)


# --- on ---------------------------------------------------------------------------


class Reader:
    """A process that reads a trace between two commands."""

    def __init__(self, mount: str, cpu: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READER, mount],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=runtime.environment(),
        )
        harness.pin(self._process.pid, cpu)
        self.lost = 0

    def tell(self, word: str) -> str:
        """Start or stop; return its reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().decode().strip()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read during a with block."""
        self.tell("start")
        yield
        self.lost += int(self.tell("stop"))

    def close(self) -> None:
        """End it."""
        self._process.communicate()


_READER = """
import select, sys
import inaccfs
from inaccfs import runtime
from inaccfs.tracing.chrome import Picture
with inaccfs.connect(sys.argv[1]) as shim:
    while sys.stdin.readline():
        with shim.trace() as trace, open("/dev/null", "wb") as file:
            picture = Picture(file.write)
            print("started", flush=True)
            poller = select.poll()
            poller.register(trace, select.POLLIN)
            poller.register(0, select.POLLIN)
            while 0 not in dict(poller.poll()):
                for record in trace.read(0):
                    picture.add(record)
            sys.stdin.readline()
            trace.stop()
            for record in trace:
                picture.add(record)
            print(trace.lost, flush=True)
"""


def on(rounds: int, calls: int) -> Iterator[list[str]]:
    """Measure with a reader."""
    cpus = sorted(os.sched_getaffinity(0))
    with inaccfs.mounted() as mount:
        harness.pin(mount.pid, cpus[0])
        os.sched_setaffinity(0, {cpus[0]})
        reader = Reader(str(mount.path), cpus[-1])
        fd = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, PAGE)
        for name, mode in _MODES.items():

            def without(mode: int = mode) -> float:
                return timed(calls, lambda: fallocate(fd, mode, 0, PAGE), mount.pid)

            def with_it(mode: int = mode) -> float:
                with reader.reading():
                    return without(mode)

            target = f"<= {_TARGET:+.0%}"
            yield paired(rounds, without, with_it).row(f"on: {name}", target)
        os.close(fd)
        reader.close()
        if reader.lost:
            print(f"{reader.lost} records were lost")


def main() -> None:
    """Print the table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=3000, help="per round")
    args = parser.parse_args()
    harness.begin()
    rows = [*off(args.rounds, args.calls), *on(args.rounds, args.calls)]
    harness.print_table(
        "One fallocate(2), µs",
        ["", "without", "with", "share", "95 %", "target"],
        rows,
    )


if __name__ == "__main__":
    main()
