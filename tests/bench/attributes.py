"""The cost of a conversion: by the file's ranges, by its length, by fetched pages.

usage: python -m tests.bench.attributes [--cpu N] [--rounds N]

One mount under in-place-v8, one client of its control socket, and a file of 1 TiB.
Before each measured call the file gets a number of ranges, private and shared in turn;
then one set-memory-attributes makes all of it shared, or private.

1. By ranges, with no page present. The target is for 1,000 of them.
2. By length, with 1,000 ranges: from 1 GiB to 1 TiB it should be the same.
3. By fetched pages, each a separate extent, to private: the daemon looks for their
   references. All references have been put.

Medians of --rounds rounds, in ms; "a range" is in µs.
"""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING, Final

import inaccfs
from tests.bench import harness

if TYPE_CHECKING:
    from inaccfs.client import File

PAGE: Final = harness.PAGE
GIB_PAGES: Final = (1 << 30) // PAGE
TIB_PAGES: Final = (1 << 40) // PAGE
RANGES: Final = 1000
TARGET_MS: Final = 2.0


def divide(file: File, pages: int, ranges: int) -> None:
    """Divide the first *pages* into *ranges* ranges: every second one is private."""
    file.set_memory_attributes(0, pages, True)
    step = pages // ranges
    for number in range(0, ranges, 2):
        file.set_memory_attributes(number * step, step, False)


def measure(
    file: File, pages: int, ranges: int, rounds: int, *, private: bool
) -> float:
    """The median of a conversion of *pages* pages with *ranges* ranges, in ms."""
    samples: list[float] = []
    for _ in range(rounds):
        divide(file, pages, ranges)
        begun = time.perf_counter()
        file.set_memory_attributes(0, pages, private)
        samples.append((time.perf_counter() - begun) * 1e3)
    return harness.quantile(samples, 0.5)


def by_ranges(file: File, rounds: int) -> None:
    # The first calls warm up.
    measure(file, TIB_PAGES, 2, rounds, private=False)
    floor = measure(file, TIB_PAGES, 2, rounds, private=False)
    rows = []
    for ranges in (2, 10, 100, RANGES, 10 * RANGES):
        taken = measure(file, TIB_PAGES, ranges, rounds, private=False)
        each = (taken - floor) * 1e3 / ranges
        target = f"<= {TARGET_MS:g}" if ranges == RANGES else ""
        rows.append([f"{ranges:,}", f"{taken:.3f}", f"{each:.3f}", target])
    header = ["ranges", "ms", "a range, µs", "target"]
    harness.print_table("1 TiB, no page present", header, rows)


def by_length(file: File, rounds: int) -> None:
    rows = []
    for pages in (GIB_PAGES, 32 * GIB_PAGES, TIB_PAGES):
        taken = measure(file, pages, RANGES, rounds, private=False)
        rows.append([f"{pages // GIB_PAGES:,} GiB", f"{taken:.3f}"])
    harness.print_table(f"{RANGES:,} ranges", ["length", "ms"], rows)


def by_extents(file: File, rounds: int) -> None:
    rows = []
    done = 0
    with file.bind(0, TIB_PAGES, lambda start, end: None):
        for extents in (0, 100, 1000):
            for number in range(done, extents):
                frame = file.get_pfn(number * TIB_PAGES // 1000)
                file.put_pfn(frame.pfn, wait=False)
            done = extents
            taken = measure(file, TIB_PAGES, RANGES, rounds, private=True)
            rows.append([f"{extents:,}", f"{taken:.3f}"])
    title = f"1 TiB, {RANGES:,} ranges, one notifier, to private"
    harness.print_table(title, ["fetched extents", "ms"], rows)


def main() -> None:
    """Mount, measure, print the tables."""
    parser = harness.parser(__doc__)
    parser.add_argument("--cpu", type=int, default=0, help="of the daemon and us")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    harness.begin()
    harness.pin(os.getpid(), options.cpu)
    with (
        inaccfs.mounted(size="64m", semantics="in-place-v8") as mount,
        inaccfs.connect(mount.control) as client,
    ):
        harness.pin(mount.pid, options.cpu)
        fd = client.memfd_create("bench", size=TIB_PAGES * PAGE)
        file = client.file(fd)
        gc.disable()
        by_ranges(file, options.rounds)
        by_length(file, options.rounds)
        by_extents(file, options.rounds)
        os.close(fd)


if __name__ == "__main__":
    main()
