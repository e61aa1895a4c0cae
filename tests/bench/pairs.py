"""Two checkouts' figures of one benchmark, measured in turn.

    .venv/bin/python -m tests.bench.pairs ../before requests control --rounds 9

Each round runs the benchmark in both checkouts, each with the Python of its own .venv,
and the order changes from round to round. A row shows the median of the pairwise ratios
(this checkout's figure / the other's) and an interval that holds the true median with
95 % (order statistics, which assume no distribution). Figures that only one checkout
has are left out. Give a benchmark's options after its name, in quotes:
"requests --rounds 2 --calls 400".
"""

from __future__ import annotations

import math
import re
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import harness

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A ratio of a table is a comparison already, and a target is not a measurement.
_NOT_MEASURED = re.compile(r"ratio|target|/|load")

_CELL = re.compile(r"\S+(?: \S+)*")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")

_Key = tuple[str, str, str]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("other", type=Path, help="a checkout with a .venv of its own")
    parser.add_argument("benchmarks", nargs="+", metavar="BENCHMARK")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    here = Path(__file__).resolve().parents[2]
    harness.begin()
    for benchmark in args.benchmarks:
        pairs: dict[_Key, list[float]] = defaultdict(list)
        for number in range(args.rounds):
            turn = (here, args.other.resolve())
            ran = {tree: _run(tree, benchmark) for tree in turn[:: (-1) ** number]}
            ours, theirs = (ran[tree] for tree in turn)
            for key, figure in ours.items():
                if theirs.get(key):
                    pairs[key].append(figure / theirs[key])
        _print(benchmark, pairs)


def _run(tree: Path, benchmark: str) -> dict[_Key, float]:
    name, *options = shlex.split(benchmark)
    command = [f"{tree}/.venv/bin/python", "-m", f"tests.bench.{name}", *options]
    done = subprocess.run(
        command, cwd=tree, stdout=subprocess.PIPE, text=True, check=False
    )
    found = dict(_figures(done.stdout))
    if not found:
        sys.exit(f"{tree}: {benchmark} printed no table (status {done.returncode})")
    return found


def _figures(text: str) -> Iterator[tuple[_Key, float]]:
    """The figures of each table that `harness.print_table` printed."""
    for block in text.split("\n\n")[1:]:
        title, *lines = block.splitlines()
        if len(lines) < 2:
            continue
        header, *rows = lines
        # All columns but the first are aligned to the right: their ends name them.
        columns = {cell.end(): cell.group() for cell in _CELL.finditer(header)}
        for row in rows:
            label, *cells = _CELL.finditer(row)
            for cell in cells:
                column = columns.get(cell.end(), "/")
                number = _NUMBER.match(cell.group())
                if number and not _NOT_MEASURED.search(column):
                    key = (title.split(" (")[0], label.group(), column)
                    yield key, float(number.group().replace(",", ""))


def _print(benchmark: str, pairs: dict[_Key, list[float]]) -> None:
    rows = [
        (
            f"{label}, {column}",
            f"{statistics.median(ratios):.3f}",
            "{:.3f} to {:.3f}".format(*interval(ratios)),
            str(len(ratios)),
        )
        for (_, label, column), ratios in pairs.items()
    ]
    harness.print_table(benchmark, ("", "this / other", "95 %", "pairs"), rows)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median with 95 %.

    With fewer than six ratios there is no such pair: it is the least and the greatest.
    """
    ordered = sorted(ratios)
    count = len(ordered)
    outside = 0.0
    skip = 0
    while 2 * (outside + math.comb(count, skip) / 2**count) <= 0.05:
        outside += math.comb(count, skip) / 2**count
        skip += 1
    skip = max(0, skip - 1)
    return ordered[skip], ordered[-1 - skip]


if __name__ == "__main__":
    main()
