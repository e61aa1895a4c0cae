"""How soon inaccfs is ready, and how much memory it takes.

usage: python -m tests.bench.startup [--runs N] [--files N]

    start    from the start of the daemon's interpreter until it says it is ready
             ("inaccfs mount --foreground --ready-fd"), less what a bare "python -c
             pass" takes from start to end, each run next to the other; the medians
    empty    VmRSS of the daemon once it is ready, the median of the runs
    a file   how much VmRSS grows while files are created, closed and each one's
             attributes are read (so that the kernel knows every one of them),
             divided by their number

VmRSS is the daemon's own memory: the tmpfs's pages and inodes are the kernel's.
"""

from __future__ import annotations

import compileall
import os
import select
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import inaccfs
from tests.bench import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TARGET = 0.3
EMPTY_TARGET = 40 * harness.MIB
FILE_TARGET = 1024
# How long VmRSS has to stay the same to count as settled.
QUIET = 0.5


@dataclass(frozen=True, slots=True)
class Started:
    """A daemon that said it is ready."""

    path: str
    pid: int
    seconds: float


@contextmanager
def daemon() -> Iterator[Started]:
    """Start a daemon and wait until it is ready; at the end unmount it."""
    path = harness.new_directory()
    ready, to_daemon = os.pipe()
    command = [sys.executable, "-m", "inaccfs", "mount", "--foreground"]
    command += ["--ready-fd", str(to_daemon), path]
    start = time.perf_counter()
    process = subprocess.Popen(command, pass_fds=(to_daemon,))
    try:
        os.close(to_daemon)
        # If the daemon dies, the end of the pipe wakes this as well.
        readable, _, _ = select.select([ready], [], [], harness.START_TIMEOUT)
        seconds = time.perf_counter() - start
        if not readable or os.read(ready, 64) != b"ready\n":
            raise RuntimeError("the daemon did not get ready")
        yield Started(path, process.pid, seconds)
    finally:
        os.close(ready)
        harness.unmount(path)
        harness.stop(process)
        os.rmdir(path)


def bare_interpreter() -> float:
    """The seconds that an interpreter takes that does nothing."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - start


def settled_memory(pid: int) -> int:
    """VmRSS of `pid`, once it has stayed the same for a while."""
    last = -1
    while last != (last := harness.resident(pid)):
        time.sleep(QUIET)
    return last


def growth(count: int) -> float:
    """The bytes that a new daemon takes for each file."""
    with daemon() as started:
        before = settled_memory(started.pid)
        for number in range(count):
            path = f"{started.path}/{number}"
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        for number in range(count):
            os.stat(f"{started.path}/{number}")
        return (settled_memory(started.pid) - before) / count


def main() -> None:
    """Measure, print the table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--files", type=int, default=20_000)
    options = parser.parse_args()
    harness.begin()
    # pip does so when it installs. Python may be forbidden to do it later, by
    # PYTHONDONTWRITEBYTECODE or by the permissions of the directory.
    compileall.compile_dir(Path(inaccfs.__file__).parent, quiet=1)

    bare, until_ready, empty = [], [], []
    for _ in range(options.runs):
        bare.append(bare_interpreter())
        with daemon() as started:
            until_ready.append(started.seconds)
            empty.append(settled_memory(started.pid))
    net = [ready - idle for ready, idle in zip(until_ready, bare, strict=True)]

    def milliseconds(times: list[float]) -> list[str]:
        figures = (statistics.median(times), max(times))
        return [f"{figure * 1e3:.0f} ms" for figure in figures]

    def mebibytes(size: float) -> str:
        return f"{size / harness.MIB:.1f} MiB"

    harness.print_table(
        f"Start and memory ({options.runs} runs)",
        ["", "median", "worst", "target"],
        [
            ["python -c pass", *milliseconds(bare), ""],
            ["until ready", *milliseconds(until_ready), ""],
            ["the difference", *milliseconds(net), f"<= {START_TARGET * 1e3:.0f} ms"],
            [
                "VmRSS, empty",
                mebibytes(statistics.median(empty)),
                mebibytes(max(empty)),
                f"<= {mebibytes(EMPTY_TARGET)}",
            ],
            [
                f"VmRSS a file, {options.files} files",
                f"{growth(options.files):.0f} B",
                "",
                f"<= {FILE_TARGET} B",
            ],
        ],
    )


if __name__ == "__main__":
    main()
