"""The cost of notifiers for a punch, and of punches and references of large ranges.

usage: python -m tests.bench.invalidation [--cpu N] [--peers-cpu N] [--rounds N]
       [--calls N] [--large-rounds N] [--skip-large]

1. A punch of one page on a file with 0, 1, 10 and 100 notifiers, each of a connection
   of its own. All these peers are in one process, which answers each event as soon as
   it reads it. Of a hole, and of a page that was fetched before (get-pfn and put-pfn,
   outside the clock) and so has to be unpinned. Medians of a round, the median over
   the rounds, in µs. "A peer" is what a punch takes more than without notifiers,
   divided by their number, within a round; "beyond the row above" is the same against
   the number above, so without what the first notifier costs. This process and the
   daemon are on --cpu, the peers on --peers-cpu.
2. With --large-rounds, and nothing pinned: a punch of 1 TiB of a sparse file with a
   notifier; and 1,000,000 pages that are fetched by one get-pfn, got again, put, got
   once more, punched while they are referenced, and put, all with one notifier. On
   huge=always with real frames (for root), and with simulated ones, which lie side by
   side. For comparison a thousandth of it.
   Needs 4 GiB of memory, and 1 more; all is given back.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import multiprocessing
import os
import select
import statistics
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import inaccfs
from tests.bench import harness
from tests.bench.control import Raw
from tests.bench.harness import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, GIB, PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.connection import Connection

NUMBERS = (0, 1, 10, 100)
TARGET = 30.0
WARM_UP = 50
READY_TIMEOUT = 20.0
TIB = 1024 * GIB
PAGES = 1_000_000

# Spawned, not forked: the peers have none of this process's descriptors.
processes = multiprocessing.get_context("spawn")

# PyDLL keeps the GIL, and arguments that are ctypes already need no conversion.
_fallocate = ctypes.PyDLL(None).fallocate


# --- peers --------------------------------------------------------------------------


def serve_peers(control: str, files: Mapping[str, int], parent: Connection) -> None:
    """Register so many notifiers of each file, and answer until the parent ends."""
    epoll = select.epoll()
    answers: dict[int, tuple[Raw, bytes]] = {}
    for path, number in files.items():
        for _ in range(number):
            raw = Raw(control)
            notifier = raw.execute("register-notifier", file=path)["notifier"]
            arguments = b'{"notifier":%d,"sequence":' % notifier
            prefix = b'{"execute":"invalidate-done","arguments":' + arguments
            answers[raw.socket.fileno()] = raw, prefix
            epoll.register(raw.socket, select.EPOLLIN)
    epoll.register(parent, select.EPOLLIN)
    parent.send("ready")
    while True:
        for fd, _ in epoll.poll():
            if fd == parent.fileno():
                return
            raw, prefix = answers[fd]
            data = raw.socket.recv(65536)
            # The reply to the answer before may come with it, or alone.
            at = data.rfind(b'"sequence":')
            if at >= 0:
                sequence = data[at + 11 : data.index(b"}", at)]
                raw.socket.send(prefix + sequence + b"}}\n")


@contextmanager
def peers(
    control: object, files: Mapping[str, int], cpu: int | None = None
) -> Iterator[None]:
    """A process with a number of peers for each file, by its path from the root."""
    ours, theirs = processes.Pipe()
    with ours:
        process = processes.Process(
            target=serve_peers, args=(str(control), files, theirs)
        )
        process.start()
        theirs.close()
        try:
            if not ours.poll(READY_TIMEOUT):
                raise RuntimeError("the peers did not get ready")
            ours.recv()
            if cpu is not None:
                assert process.pid is not None
                harness.pin(process.pid, cpu)
            yield
            ours.send("end")
            process.join(READY_TIMEOUT)
        finally:
            process.kill()
            process.join()


# --- punches with notifiers ---------------------------------------------------------


def punch(fd: int, length: int) -> Callable[[], object]:
    """A function that punches the first *length* bytes."""
    mode = ctypes.c_int(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
    start, size = ctypes.c_int64(0), ctypes.c_int64(length)
    return partial(_fallocate, ctypes.c_int(fd), mode, start, size)


def fetch(raw: Raw, path: str) -> Callable[[], object]:
    """A function that fetches the first page and puts the reference."""

    def call() -> None:
        pfn = raw.execute("get-pfn", file=path, offset=0)["pfn"]
        raw.execute("put-pfn", file=path, pfn=pfn)

    return call


def measure(
    call: Callable[[], object], before: Callable[[], object] | None, count: int
) -> float:
    """The median of *count* calls, in µs."""
    now = time.perf_counter_ns
    samples = []
    for _ in range(count):
        if before is not None:
            before()
        start = now()
        call()
        samples.append(now() - start)
    return harness.quantile(samples, 0.5) / 1e3


def rows(title: str, rounds: list[dict[int, float]]) -> Iterator[list[str]]:
    """The rows of one kind of punch."""

    def a_peer(number: int, other: int) -> str:
        more = [(each[number] - each[other]) / (number - other) for each in rounds]
        return f"{statistics.median(more):.1f}"

    for above, number in itertools.pairwise((0, *NUMBERS)):
        taken = statistics.median(each[number] for each in rounds)
        line = [f"{title}, {number}", f"{taken:.1f}"]
        if number:
            line += [a_peer(number, 0), f"<= {TARGET:.0f}", a_peer(number, above)]
        yield line + [""] * (5 - len(line))


def with_notifiers(options: Any) -> None:
    """Measure punches of a page, print the table."""
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        harness.pin(os.getpid(), options.cpu)
        mount = stack.enter_context(inaccfs.mounted(size="64m"))
        harness.pin(mount.pid, options.cpu)
        files = {number: f"/{number}" for number in NUMBERS}
        fds = {number: new_file(stack, mount, files[number], PAGE) for number in files}
        raw = Raw(str(mount.control))
        stack.callback(raw.close)
        wanted = {files[number]: number for number in NUMBERS}
        stack.enter_context(peers(mount.control, wanted, options.peers_cpu))

        befores: dict[str, dict[int, Callable[[], object] | None]] = {
            "a hole": dict.fromkeys(NUMBERS),
            "a fetched page": {n: fetch(raw, path) for n, path in files.items()},
        }
        results: dict[str, list[dict[int, float]]] = {title: [] for title in befores}
        gc.disable()
        for number in range(options.rounds + 1):
            count = options.calls if number else WARM_UP
            for title, before in befores.items():
                taken = {
                    n: measure(punch(fd, PAGE), before[n], count)
                    for n, fd in fds.items()
                }
                if number:
                    results[title].append(taken)

    harness.print_table(
        f"One punch of a page, µs, daemon on CPU {options.cpu},"
        f" peers on CPU {options.peers_cpu}"
        f" ({options.rounds} rounds of {options.calls} calls)",
        ["notifiers", "p50", "a peer", "target", "beyond the row above"],
        [line for title, rounds in results.items() for line in rows(title, rounds)],
    )


def new_file(stack: ExitStack, mount: inaccfs.Mount, path: str, size: int) -> int:
    """A new file of *size* bytes, open until *stack* is closed."""
    fd = os.open(f"{mount.path}{path}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    stack.callback(os.close, fd)
    os.ftruncate(fd, size)
    return fd


# --- large ranges -------------------------------------------------------------------


def milliseconds(call: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def sparse(rounds: int) -> None:
    """Punch a sparse file, print the table."""
    lines = []
    with ExitStack() as stack:
        mount = stack.enter_context(inaccfs.mounted(size="64m"))
        sizes = {"4 KiB": PAGE, "1 GiB": GIB, "1 TiB": TIB}
        files = {name: f"/{size}" for name, size in sizes.items()}
        fds = {n: new_file(stack, mount, files[n], sizes[n]) for n in sizes}
        stack.enter_context(peers(mount.control, dict.fromkeys(files.values(), 1)))
        for name, fd in fds.items():
            call = punch(fd, sizes[name])
            samples = [milliseconds(call) for _ in range(rounds * 10)]
            lines.append([name, f"{statistics.median(samples):.2f}"])
    harness.print_table(
        f"One punch of a sparse file with a notifier, ms ({rounds * 10} calls)",
        ["", "p50"],
        lines,
    )


def references(pages: int, rounds: int, **mounted: Any) -> tuple[int, dict[str, float]]:
    """The number of extents of *pages* pages, and the time of each step in ms."""
    taken: dict[str, list[float]] = {}
    with ExitStack() as stack:
        mount = stack.enter_context(inaccfs.mounted(size="5g", **mounted))
        fd = new_file(stack, mount, "/large", pages * PAGE)
        stack.enter_context(peers(mount.control, {"/large": 1}))
        raw = Raw(str(mount.control))
        stack.callback(raw.close)
        extents: list[dict[str, int]] = []

        def get() -> None:
            extents[:] = raw.execute("get-pfn", file="/large", offset=0, count=pages)[
                "extents"
            ]

        def put() -> None:
            for extent in extents:
                pfn, count = extent["pfn"], extent["count"]
                raw.execute("put-pfn", file="/large", pfn=pfn, count=count)

        steps = (
            ("get-pfn, allocates", get),
            ("put-pfn", put),
            ("get-pfn, fetched before", get),
            ("punch, referenced", punch(fd, pages * PAGE)),
            ("put-pfn, punched", put),
        )
        for _ in range(rounds):
            for name, step in steps:
                taken.setdefault(name, []).append(milliseconds(step))
    return len(extents), {name: statistics.median(each) for name, each in taken.items()}


def large_references(rounds: int) -> None:
    """Fetch and punch gigabytes, print the table."""
    simulated = {"pfn_source": "simulated", "options": "simulated-memory=8g"}
    sources: dict[str, dict[str, Any]] = {
        "pagemap": {"pfn_source": "pagemap", "huge": "always"},
        "simulated": {**simulated, "huge": "always"},
    }
    if os.geteuid() != 0:
        print("real frames: for root only")
        del sources["pagemap"]
    columns = [
        (f"{source}, {pages}", *references(pages, rounds, **options))
        for source, options in sources.items()
        for pages in (PAGES // 1000, PAGES)
    ]
    names = list(columns[0][2])
    harness.print_table(
        f"Pages by one get-pfn, ms ({rounds} rounds)",
        ["", *(title for title, _, _ in columns)],
        [
            ["extents, so put-pfns", *(str(extents) for _, extents, _ in columns)],
            *(
                [name, *(f"{taken[name]:.2f}" for _, _, taken in columns)]
                for name in names
            ),
        ],
    )


def main() -> None:
    """Measure, print the tables."""
    parser = harness.parser(__doc__)
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--peers-cpu", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=200, help="per round")
    parser.add_argument("--large-rounds", type=int, default=3)
    parser.add_argument("--skip-large", action="store_true")
    options = parser.parse_args()
    harness.begin()
    with_notifiers(options)
    if not options.skip_large:
        sparse(options.large_rounds)
        large_references(options.large_rounds)


if __name__ == "__main__":
    main()
