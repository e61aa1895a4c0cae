"""The cost of finding page frames, pinning them, and counting references to them.

usage: python -m tests.bench.frames [--rounds N] [--size MIB]      (root)

No mount, and one process: the daemon's own code against the system calls that
every way needs. All files are on private tmpfs mounts.

1. --size MIB by one fetch, once they have been allocated and touched, with base pages
   and with huge ones. "floor" is to map them, to fill the page table
   (MADV_POPULATE_READ) and to read their entries of /proc/self/pagemap in bulk; what it
   takes to unmap them is not in it, though it is in the fetch. "known" is to ask again,
   "entries" to read pagemap alone.
2. One page: of a hole, of what was allocated before, and known already. In rising order
   and in none, in a file that has much and in one that has nothing else.
3. To punch a page out of 2 MiB that are pinned, and of 2 MiB that were not fetched.
4. References: one page among very many, and very many in one extent.

A median is of all calls, or of --rounds rounds in which both sides take turns. Needs
--size MiB of memory and a few more.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inaccfs import mmcalls, syscalls
from inaccfs.backing.options import TmpfsOptions
from inaccfs.backing.private import private_tmpfs
from inaccfs.errors import InaccfsError
from inaccfs.shim import framesource
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.shim.frames import Extent
from inaccfs.shim.references import References
from tests.bench import harness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from inaccfs.shim.frames import Frames, FrameSource

PAGE = harness.PAGE
HUGE_PAGES = 512
MIB_PAGES = harness.MIB // PAGE
SINGLES = 4096
MILLION = 1_000_000


@contextmanager
def memory_file(huge: str, size: int) -> Iterator[int]:
    """An O_RDWR fd of a sparse file on a tmpfs of its own."""
    backing = private_tmpfs(
        TmpfsOptions(size=str(size + 64 * harness.MIB), huge=huge),
        fallback_name="inaccfs-bench",
    )
    fd = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=backing.root)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)
        backing.close()


@contextmanager
def source(huge: str) -> Iterator[FrameSource]:
    """Real frames; folios are read as on a mount with that huge=."""
    made = framesource.choose(
        "pagemap", SimulatedMemory(), large_folios=huge != "never"
    )
    try:
        yield made
    finally:
        made.close()


def took(call: Callable[..., object], *arguments: object) -> int:
    """Nanoseconds of one call."""
    start = time.perf_counter_ns()
    call(*arguments)
    return time.perf_counter_ns() - start


def median(samples: Iterable[float]) -> float:
    return harness.quantile(list(samples), 0.5)


# --- much at once -----------------------------------------------------------------


class Floor:
    """The part that every way needs: the kernel's own calls."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)

    def run(self) -> tuple[int, int, int]:
        """Nanoseconds: map, populate and read; read alone; unmap."""
        start = time.perf_counter_ns()
        address = mmcalls.mmap(self._fd, 0, self._size)
        mmcalls.populate(address, self._size)
        mapped = time.perf_counter_ns()
        os.pread(self._pagemap, self._size // PAGE * 8, address // PAGE * 8)
        read = time.perf_counter_ns()
        mmcalls.munmap(address, self._size)
        unmapped = time.perf_counter_ns()
        return read - start, read - mapped, unmapped - read


def much(huge: str, size: int, rounds: int) -> list[str]:
    """A row of the first table."""
    pages = size // PAGE
    floors, entries, unmaps, fetches, knowns = [], [], [], [], []
    with memory_file(huge, size) as fd, source(huge) as made:
        os.posix_fallocate(fd, 0, size)
        floor = Floor(fd, size)
        floor.run()
        for _ in range(rounds):
            opened = made.open(fd, PAGE)
            whole, reading, unmapping = floor.run()
            floors.append(whole)
            entries.append(reading)
            unmaps.append(unmapping)
            fetches.append(took(opened.fetch, 0, pages))
            knowns.append(took(opened.known, 0, pages))
            extents = len(opened.extents())
            opened.close()
    columns = (floors, fetches, entries, knowns, unmaps)
    low, fetch, entry, known, unmap = (median(column) / 1e6 for column in columns)
    return [
        f"huge={huge}",
        f"{extents}",
        f"{low:.1f}",
        f"{fetch:.1f}",
        f"{fetch / low:.2f}",
        "<= 2",
        f"{unmap:.1f}",
        f"{entry:.1f}",
        f"{known:.2f}",
        f"{known / entry:.2f}",
        "< 1",
    ]


# --- a page at a time -------------------------------------------------------------


def row(name: str, samples: list[int]) -> list[str]:
    """A row of figures in microseconds."""
    return [
        name,
        f"{harness.quantile(samples, 0.5) / 1e3:.1f}",
        f"{harness.quantile(samples, 0.99) / 1e3:.1f}",
        f"{sum(samples) / len(samples) / 1e3:.1f}",
    ]


def singles(opened: Frames, pages: Iterable[int]) -> list[int]:
    return [took(opened.fetch, page, page + 1) for page in pages]


def one_page(huge: str) -> Iterator[list[str]]:
    size = 256 * harness.MIB
    shuffled = list(range(SINGLES))
    random.Random(1).shuffle(shuffled)
    with memory_file(huge, size) as fd, source(huge) as made:
        opened = made.open(fd, PAGE)
        yield row("hole, rising", singles(opened, range(SINGLES)))
        base = 2 * SINGLES
        yield row("hole, in no order", singles(opened, [base + n for n in shuffled]))
        knowns = [took(opened.known, page, page + 1) for page in range(SINGLES)]
        yield row("known", knowns)
        opened.close()
        yield row("there, rising", singles(opened, range(SINGLES)))
        opened.close()
        yield row("there, in no order", singles(opened, shuffled))
        opened.close()


def punches(huge: str) -> Iterator[list[str]]:
    size = 256 * harness.MIB
    with memory_file(huge, size) as fd, source(huge) as made:
        os.posix_fallocate(fd, 0, size)
        opened = made.open(fd, PAGE)
        opened.fetch(0, size // PAGE // 2)

        def punch(page: int) -> None:
            def bare() -> None:
                mode = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
                syscalls.fallocate_now(fd, mode, page * PAGE, PAGE)

            opened.punch(page, page + 1, bare)

        held = [at + 100 for at in range(0, size // PAGE // 2, HUGE_PAGES)]
        yield row("held, one of 512", [took(punch, at) for at in held])
        again = [at + 1 for at in held]
        yield row("held, another", [took(punch, at) for at in again])
        half = size // PAGE // 2
        other = [half + at for at in held]
        yield row("not fetched", [took(punch, at) for at in other])
        opened.close()


# --- references -------------------------------------------------------------------


def references() -> Iterator[list[str]]:
    table = References()
    places = list(range(0, 2 * MILLION, 2))
    random.Random(1).shuffle(places)
    lots = [[Extent(n, pfn, 1, 0)] for n, pfn in enumerate(places)]
    for name, some in (
        ("get, up to 10,000", lots[:10_000]),
        ("get, up to 1,000,000", lots),
    ):
        start = time.perf_counter_ns()
        for extents in some:
            table.get("holder", extents)
        yield [name, f"{(time.perf_counter_ns() - start) / len(some) / 1e3:.2f}"]
        start = time.perf_counter_ns()
        for extents in some:
            table.put("holder", extents[0].pfn, 1)
        taken = (time.perf_counter_ns() - start) / len(some) / 1e3
        yield [name.replace("get", "put"), f"{taken:.2f}"]
    whole = [Extent(0, MILLION, MILLION, 0)]
    calls: tuple[tuple[str, Callable[..., object], tuple[object, ...]], ...] = (
        ("get 1,000,000 in one extent", table.get, ("holder", whole)),
        ("put one in the middle", table.put, ("holder", MILLION + 5000, 1)),
        ("punch all", table.punched, (whole,)),
        ("drop all", table.drop, ("holder",)),
    )
    for name, call, arguments in calls:
        yield [name, f"{took(call, *arguments) / 1e3:.2f}"]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    options = parser.parse_args(namespace=argparse.Namespace())
    harness.begin()
    size = options.size * harness.MIB
    if harness.memory_available() < 2 * size:
        sys.exit(f"needs {2 * size // harness.MIB} MiB of memory")
    try:
        with source("never") as made:
            print(f"frames: {made.name}, held by {made.pinning}")
    except InaccfsError as exc:
        sys.exit(str(exc))
    header = ["", "extents", "floor", "fetch", "ratio", "target", "unmap"]
    header += ["entries", "known", "ratio", "target"]
    rows = [much(huge, size, options.rounds) for huge in ("never", "always")]
    harness.print_table(f"{options.size} MiB at once, ms", header, rows)
    header = ["", "p50", "p99", "mean"]
    for huge in ("never", "always"):
        harness.print_table(f"One page, huge={huge}, us", header, list(one_page(huge)))
        title = f"To punch a page, huge={huge}, us"
        harness.print_table(title, header, list(punches(huge)))
    harness.print_table("References, us a call", ["", "mean"], list(references()))


if __name__ == "__main__":
    main()
