"""The cost of a name: create, list and stat, rename, unlink; µs per entry.

usage: python -m tests.bench.names [--cpu N] [--rounds N] [--files N]
                                   [--passthroughfs FILE]

Side by side, all servers and the client on one CPU:

    tmpfs          a plain one, no FUSE: what the kernel takes
    inaccfs
    passthroughfs  pyfuse3's own example, on a tmpfs; fetched with pip as part of
                   pyfuse3's source distribution, unless --passthroughfs names one
    bindfs         on a tmpfs, if it is installed

Each round runs four phases over one directory of new files on one file system,
then on the next:

    create       open(2) with O_CREAT | O_EXCL, and close
    readdir      read the whole directory, and stat each entry by its path
    rename       each file to a new name in the same directory
    unlink       each file

The time of a phase is divided by the number of files. The listing follows the
creation, so a file system that lets the kernel keep names and attributes gains by
it, as it would in use. Figures are medians over the rounds; a ratio is taken
within a round first.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import inaccfs
from tests.bench import harness

Phase = Callable[[str, int], None]


def create(directory: str, count: int) -> None:
    """Create `count` empty files."""
    for number in range(count):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        os.close(os.open(f"{directory}/{number}", flags, 0o600))


def readdir(directory: str, count: int) -> None:
    """List them, and ask for each one's attributes."""
    seen = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            os.stat(entry.path)
            seen += 1
    if seen != count:
        raise RuntimeError(f"{directory} lists {seen} files of {count}")


def rename(directory: str, count: int) -> None:
    """Give each a new name."""
    for number in range(count):
        os.rename(f"{directory}/{number}", f"{directory}/{number}.new")


def unlink(directory: str, count: int) -> None:
    """Remove each by its new name."""
    for number in range(count):
        os.unlink(f"{directory}/{number}.new")


PHASES: dict[str, Phase] = {
    "create": create,
    "readdir + stat": readdir,
    "rename": rename,
    "unlink": unlink,
}

# The file systems to compare inaccfs with, if they are installed.
COMPARED = ("passthroughfs", "bindfs")


def one_round(directory: str, count: int) -> dict[str, float]:
    """The µs per entry of each phase, in a new directory."""
    os.mkdir(directory)
    taken = {}
    for name, phase in PHASES.items():
        start = time.perf_counter_ns()
        phase(directory, count)
        taken[name] = (time.perf_counter_ns() - start) / count / 1e3
    os.rmdir(directory)
    return taken


def row(phase: str, systems: dict[str, list[dict[str, float]]]) -> list[str]:
    """One phase's line in the table."""
    times = {
        system: [a_round[phase] for a_round in rounds]
        for system, rounds in systems.items()
    }
    cells = [phase, *(f"{statistics.median(each):.1f}" for each in times.values())]
    for other in COMPARED:
        if other in times:
            pairs = zip(times[other], times["inaccfs"], strict=True)
            cells.append(f"{statistics.median(a / b for a, b in pairs):.2f}")
    return cells


def main() -> None:
    """Mount them all, measure, print the table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--cpu", type=int, default=0, help="the CPU that all share")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=2000, help="per round")
    parser.add_argument("--passthroughfs", metavar="FILE")
    options = parser.parse_args()
    harness.begin()

    with ExitStack() as stack:
        program = stack.enter_context(
            harness.fetched_passthroughfs(options.passthroughfs)
        )
        harness.pin(os.getpid(), options.cpu)

        def over_tmpfs(*command: str) -> str:
            source = stack.enter_context(harness.tmpfs(harness.GIB))
            return stack.enter_context(
                harness.serving(*command, source, cpu=options.cpu)
            )

        paths = {"tmpfs": stack.enter_context(harness.tmpfs(harness.GIB))}
        mount = stack.enter_context(inaccfs.mounted(size="1g"))
        harness.pin(mount.pid, options.cpu)
        paths["inaccfs"] = str(mount.path)
        paths["passthroughfs"] = over_tmpfs(sys.executable, program)
        if bindfs := harness.bindfs():
            paths["bindfs"] = over_tmpfs(bindfs, "-f")
        else:
            print("bindfs: not installed: apt-get install bindfs")

        systems: dict[str, list[dict[str, float]]] = {name: [] for name in paths}
        gc.disable()
        for number in range(options.rounds):
            for name, path in paths.items():
                systems[name].append(one_round(f"{path}/{number}", options.files))

    ratios = [f"{name} / inaccfs" for name in COMPARED if name in systems]
    harness.print_table(
        f"One name, µs, all on CPU {options.cpu}"
        f" ({options.rounds} rounds of {options.files} files)",
        ["", *systems, *ratios],
        [row(phase, systems) for phase in PHASES],
    )
    print("target: passthroughfs / inaccfs >= 2")


if __name__ == "__main__":
    main()
