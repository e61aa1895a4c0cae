"""The cost of the choice of rules: fallocate(2) under each semantics, beside v8.

usage: python -m tests.bench.semantics [--cpu N] [--rounds N] [--calls N]
       [--only NAME ...]

All versions are mounted at the same time, v8 twice: the second one ("v8, again") shows
how exact the figures are. All daemons and the client stay on one CPU. In each round
every mount has its turn in an order that changes from round to round, operation by
operation, and just before each of them v8 has one, which is what it is divided by:

    fallocate, KEEP_SIZE  of a page that is allocated already
    punch, a page         an allocated page (allocated before, outside the clock)

No notifier is registered: these are the costs of a file without notifiers, under any
rules. p50 is that of a turn, the median over the rounds, in µs. A ratio is taken within
a round, between two turns that follow each other, and then the median over the rounds.

Any other process that keeps this CPU busy spoils the figures.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import inaccfs
from inaccfs.semantics import VERSIONS
from tests.bench import harness
from tests.bench.harness import FALLOC_FL_KEEP_SIZE, PAGE
from tests.bench.requests import PUNCH, Call, fallocate, measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BASE: Final = "v8"
AGAIN: Final = "v8, again"
TARGET: Final = 1.05
WARM_UP: Final = 300


@dataclass
class Operation:
    """One half of the table: calls on a file of each mount, and their times."""

    name: str
    mode: int
    # Made before each call, outside the clock.
    before: int | None
    # By the mount's name, one pair for each round: its time, and v8's just before, in
    # µs.
    taken: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def turn(self, fd: int, calls: int) -> float:
        """The median of some calls on one file, in µs."""
        before: Call | None = None
        if self.before is not None:
            before = fallocate(self.before)(fd)
        samples = measure(fallocate(self.mode)(fd), before, calls)
        return harness.quantile(samples, 0.5) / 1e3

    def round(self, files: dict[str, int], order: Sequence[str], calls: int) -> None:
        """Each mount's turn, with one of v8 before it."""
        for name in order:
            base = self.turn(files[BASE], calls)
            pair = self.turn(files[name], calls), base
            self.taken.setdefault(name, []).append(pair)

    def ratio(self, name: str) -> float:
        """How much longer than in v8 the calls take."""
        return statistics.median(mine / base for mine, base in self.taken[name])

    def p50(self, name: str) -> float:
        """The time of a call, in µs."""
        return statistics.median(mine for mine, _ in self.taken[name])


def new_file(stack: ExitStack, mount: inaccfs.Mount) -> int:
    """An fd of a new file of 1 MiB, all of it allocated."""
    fd = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    stack.callback(os.close, fd)
    os.ftruncate(fd, harness.MIB)
    harness.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, harness.MIB)
    # The benchmark assumes this.
    harness.fallocate(fd, PUNCH, 0, PAGE)
    harness.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, PAGE)
    return fd


def rows(operations: Sequence[Operation], names: Sequence[str]) -> Iterator[list[str]]:
    """A row for each mount."""
    for name in names:
        line = [name]
        for operation in operations:
            ratio = operation.ratio(name)
            line += [
                f"{operation.p50(name):.2f}",
                f"{ratio:.3f}",
                "" if ratio <= TARGET else "!",
            ]
        yield line


def main() -> None:
    """Mount all, measure, print the table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--cpu", type=int, default=0, help="the CPU that all share")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=1000, help="a turn")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these beside v8")
    options = parser.parse_args()
    harness.begin()
    harness.pin(os.getpid(), options.cpu)

    # A file of huge pages is larger.
    small = [version.name for version in VERSIONS if version.granule == "page"]
    known = [name for name in small if name != BASE]
    names = [AGAIN, *(options.only or known)]
    with ExitStack() as stack:
        files = {}
        for name in (BASE, *names):
            rules = BASE if name == AGAIN else name
            mount = stack.enter_context(inaccfs.mounted(size="16m", semantics=rules))
            harness.pin(mount.pid, options.cpu)
            files[name] = new_file(stack, mount)
        operations = (
            Operation("fallocate, KEEP_SIZE", FALLOC_FL_KEEP_SIZE, None),
            Operation("punch, a page", PUNCH, FALLOC_FL_KEEP_SIZE),
        )
        gc.disable()
        for operation in operations:
            operation.round(files, names, WARM_UP)
            operation.taken.clear()
        dice = random.Random(0)
        for _ in range(options.rounds):
            for operation in operations:
                operation.round(files, dice.sample(names, len(names)), options.calls)

    titles = [operation.name for operation in operations]
    header = ["", *(cell for title in titles for cell in (title, "/ v8", ""))]
    harness.print_table(
        f"One call, µs, all on CPU {options.cpu}"
        f" ({options.rounds} rounds of {options.calls} calls)",
        header,
        list(rows(operations, names)),
    )
    print(f"target: / v8 <= {TARGET}")


if __name__ == "__main__":
    main()
