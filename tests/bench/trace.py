"""What the trace costs, without a listener and with one.

usage: python -m tests.bench.trace [--rounds N] [--calls N]

Calls `InaccessibleFile.begin` in this process, for a page that is allocated already,
with the trace off and on in turn. "the look" is the cost of each traced place without
listeners: a look at the list of listeners, timed by itself; its share is that of
the call with the trace off. In µs, the median over the rounds.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

from inaccfs.semantics import V8
from inaccfs.shim.file import InaccessibleFile
from inaccfs.shim.superblock import Superblock
from tests.bench import harness
from tests.bench.harness import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.shim.order import Done


def main() -> None:
    """Print the table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=3000, help="per round")
    args = parser.parse_args()
    harness.begin()
    fd = os.memfd_create("trace")
    os.ftruncate(fd, PAGE)
    superblock = Superblock(V8(), PAGE)
    file = InaccessibleFile(fd, superblock)
    trace = superblock.trace
    calls: int = args.calls

    def timed(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        taken = time.perf_counter() - began
        return taken / calls * 1e6

    def hold() -> Done:
        raise AssertionError("the call waits for nobody")

    def look() -> None:
        if trace.listeners:
            raise AssertionError

    def nothing() -> None:
        pass

    print(f"{'':22}{'off':>8}{'on':>8}{'the look':>10}{'share':>8}")
    rows = {
        "fallocate, mode 0": 0,
        "fallocate, KEEP_SIZE": FALLOC_FL_KEEP_SIZE,
        "punch": FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
    }
    for name, mode in rows.items():

        def call(mode: int = mode) -> None:
            file.begin(mode, 0, PAGE, hold)

        off, on, looks = [], [], []
        for _ in range(args.rounds):
            off.append(timed(call))
            with trace.listening(nothing_of):
                on.append(timed(call))
            looks.append(timed(look) - timed(nothing))
        cost = statistics.median(looks)
        without = statistics.median(off)
        print(
            f"{name:22}{without:8.2f}{statistics.median(on):8.2f}"
            f"{cost:10.3f}{cost / without:8.1%}"
        )
    os.close(fd)


def nothing_of(happened: object) -> None:
    """Hear of it."""


if __name__ == "__main__":
    main()
