"""The speed of the simulated KVM on the control socket: faults, pre-faults, zaps.

usage: python -m tests.bench.kvm [--rounds N] [--faults N] [--large-rounds N]

1. Private faults on pages of 4 KiB that are allocated and not mapped, by 1 vCPU and by
   4 at once, and, in turn with them in each round, bare round trips by so many threads
   on one client: of get-pfn alone, and of get-pfn and put-pfn, each waited for (a fault
   does not wait for its put). The ratios are taken within a round; the figures are
   medians over the rounds. The daemon has the last CPU, the others have the rest.
2. 1 GiB that is pre-faulted and zapped, on mounts with huge=always and huge=never. What
   fallocate(2) has given is cleared by the kernel when it is used first; so "only
   allocated" is that more than anything else, and has no target. "Touched" has been
   cleared, and not been fetched yet. A zap is that of an invalidation of all the file.
   By 4 KiB the time depends on how many of the frames are contiguous, which with real
   frames differs at each run: these rows have simulated ones, half of them in use.

Needs root for real frames and 3 GiB of memory, all given back.
"""

from __future__ import annotations

import gc
import mmap
import os
import statistics
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import inaccfs
from inaccfs.kvm import KVM_MEM_PRIVATE, VM
from tests.bench import harness
from tests.bench.harness import GIB, MIB, PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.client import Client

VCPUS = (1, 4)
RATIO_TARGET: Final = 0.7
PREFAULT_TARGET, ZAP_TARGET = 100.0, 50.0
SIMULATED: Final = (
    "pfn-source=simulated",
    "simulated-order=0",
    "simulated-fragmentation=50",
)
MEMORY_NEEDED = 3 * GIB
# See madvise(2); Python does not name it yet.
MADV_POPULATE_WRITE: Final = 23


@dataclass(frozen=True)
class Machine:
    """A VM whose only slot has a whole file."""

    shim: Client
    vm: VM
    fd: int
    size: int

    def zap(self) -> None:
        """Unmap all of it, as an invalidation of the whole file does."""
        self.vm._mmu.zap(0, self.size // PAGE)

    def pre_fault(self) -> None:
        """Map all of it."""
        self.vm.pre_fault_memory(0, self.size)

    def settle(self) -> None:
        """Wait until the daemon has put the references: a pre-fault does not wait."""
        self.shim.query_version()

    def touch(self) -> None:
        """Have the kernel clear all of it, as a guest's first access does."""
        with self.shim.file(self.fd) as file:
            fd = file.get_memory()
        with mmap.mmap(fd, self.size) as memory:
            os.close(fd)
            memory.madvise(MADV_POPULATE_WRITE)


@contextmanager
def machine(
    size: int, huge: str, cpus: set[int] | None = None, options: tuple[str, ...] = ()
) -> Iterator[Machine]:
    """A VM with *size* bytes of memory, allocated; its daemon may be on one of *cpus*.

    *options* are more of the mount's.
    """
    with ExitStack() as stack:
        mount = stack.enter_context(
            inaccfs.mounted(size=size + 64 * MIB, huge=huge, options=options)
        )
        if cpus:
            harness.pin(mount.pid, max(cpus))
        shim = stack.enter_context(inaccfs.connect(mount.control))
        fd = shim.memfd_create("bench", size=size)
        stack.callback(os.close, fd)
        os.posix_fallocate(fd, 0, size)
        vm = stack.enter_context(VM(shim))
        vm.set_user_memory_region(0, 0, size, private_fd=fd, flags=KVM_MEM_PRIVATE)
        yield Machine(shim, vm, fd, size)


# --- faults ---------------------------------------------------------------------------


def rate(workers: list[Callable[[], None]], operations: int) -> float:
    """The operations per second of all workers, which begin at the same time."""
    start = threading.Barrier(len(workers) + 1)

    def run(work: Callable[[], None]) -> None:
        start.wait()
        work()

    threads = [threading.Thread(target=run, args=(work,)) for work in workers]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    return operations / (time.perf_counter() - begin)


def faults(machine: Machine, vcpus: int, count: int) -> float:
    """Faults per second; each vCPU makes *count*, on its own pages."""

    def work(number: int) -> None:
        read = machine.vm.create_vcpu().read
        for page in range(number * count, (number + 1) * count):
            read(page * PAGE, 1)

    before = machine.vm.stats.faults
    found = rate([partial(work, number) for number in range(vcpus)], vcpus * count)
    assert machine.vm.stats.faults - before == vcpus * count
    machine.zap()
    return found


def gets(machine: Machine, threads: int, count: int) -> float:
    """get-pfns per second, of the same pages by as many threads."""

    def work(number: int) -> None:
        with machine.shim.file(machine.fd) as file:
            for page in range(number * count, (number + 1) * count):
                file.get_pfn(page)

    found = rate([partial(work, number) for number in range(threads)], threads * count)
    with machine.shim.file(machine.fd) as file:
        for each in machine.shim.query_pins().extents:
            file.put_pfn(each.pfn, each.count)
    assert not machine.shim.query_stats().references
    return found


def round_trips(machine: Machine, threads: int, count: int) -> float:
    """As `gets`, but pairs of get-pfn and put-pfn, and a wait for each reply."""

    def work(number: int) -> None:
        with machine.shim.file(machine.fd) as file:
            for page in range(number * count, (number + 1) * count):
                file.put_pfn(file.get_pfn(page).pfn)

    return rate([partial(work, number) for number in range(threads)], threads * count)


def bench_faults(rounds: int, count: int) -> None:
    """Faults beside the round trips that they consist of."""
    rows = []
    cpus = os.sched_getaffinity(0)
    size = max(VCPUS) * count * PAGE
    with machine(size, "never", cpus) as made:
        if len(cpus) > 1:
            os.sched_setaffinity(0, cpus - {max(cpus)})
        for vcpus in VCPUS:
            # This also fetches the pages for the first time, which takes longer.
            round_trips(made, vcpus, count)
            found = []
            for _ in range(rounds):
                gc.collect()
                calls = (faults, gets, round_trips)
                found.append([call(made, vcpus, count) for call in calls])
            fault, get, pair = map(statistics.median, zip(*found, strict=True))
            rows.append(
                [
                    f"{vcpus} vCPU{'s' if vcpus > 1 else ''}",
                    f"{fault:,.0f}",
                    f"{get:,.0f}",
                    f"{statistics.median(one / two for one, two, _ in found):.2f}",
                    f">= {RATIO_TARGET}",
                    f"{pair:,.0f}",
                    f"{statistics.median(one / two for one, _, two in found):.2f}",
                ]
            )
        os.sched_setaffinity(0, cpus)
    harness.print_table(
        f"Faults on 4 KiB pages, a second ({rounds} rounds of {count} a vCPU)",
        ["", "faults", "get-pfn", "ratio", "target", "get-pfn + put-pfn", "ratio"],
        rows,
    )


# --- a GiB ----------------------------------------------------------------------------


def milliseconds(call: Callable[[], object]) -> float:
    """The time of a call."""
    gc.collect()
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def bench_large(rounds: int) -> None:
    """Pre-faults and zaps of 1 GiB."""
    untouched, touched, fetched, huge_zap, small, small_zap = ([] for _ in range(6))
    levels = set()
    for _ in range(rounds):
        with machine(GIB, "always") as made:
            untouched.append(milliseconds(made.pre_fault))
        with machine(GIB, "always") as made:
            made.touch()
            touched.append(milliseconds(made.pre_fault))
            levels.add(str(tuple(made.vm.stats.mapped)))
            made.settle()
            huge_zap.append(milliseconds(made.zap))
            fetched.append(milliseconds(made.pre_fault))
        with machine(GIB, "never", options=SIMULATED) as made:
            small.append(milliseconds(made.pre_fault))
            assert made.vm.stats.mapped.pages_4k == GIB // PAGE
            made.settle()
            small_zap.append(milliseconds(made.zap))
            assert not any(made.vm.stats.mapped)
    rows = [
        [name, f"{statistics.median(found):.1f}", f"{max(found):.1f}", target]
        for name, found, target in (
            ("pre-fault, 2 MiB, only allocated", untouched, ""),
            ("pre-fault, 2 MiB, touched", touched, f"<= {PREFAULT_TARGET:.0f}"),
            ("pre-fault, 2 MiB, fetched before", fetched, f"<= {PREFAULT_TARGET:.0f}"),
            ("zap, 2 MiB", huge_zap, ""),
            ("pre-fault, 4 KiB, simulated", small, ""),
            ("zap, 4 KiB, simulated", small_zap, f"<= {ZAP_TARGET:.0f}"),
        )
    ]
    harness.print_table(
        f"1 GiB, ms ({rounds} rounds)", ["", "median", "worst", "target"], rows
    )
    print(f"mapped with huge=always, by 4 KiB, 2 MiB, 1 GiB: {', '.join(levels)}")


def main() -> None:
    """Run all of it."""
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--large-rounds", type=int, default=3)
    args = parser.parse_args()
    harness.begin()
    bench_faults(args.rounds, args.faults)
    if harness.memory_available() < MEMORY_NEEDED:
        print(f"left out, as they need {MEMORY_NEEDED // GIB} GiB: the large ones")
    else:
        bench_large(args.large_rounds)


if __name__ == "__main__":
    main()
