"""How many schedules `inaccfs explore` tries, and how soon it finds what is wrong.

    python -m tests.bench.explore [--seconds N] [--spike FILE --spike-tree DIR]
                                  [complete|rate|first|shortest ...]

complete   the scenarios that are promised to be complete, each with all versions that
           differ and two KVMs; and two-vcpus. At most N seconds of CPU each (60).
rate       seconds of CPU to the end of punch of v10, and schedules a second; side by
           side with the spike, a search by partial orders that is not in this
           repository: FILE with the Python of DIR/.venv. And the same calls of the KVM
           and the shim without an explorer: no schedule takes less.
first      how long the first counterexample takes, beside `inaccfs kvm stress`, for
           each race and each bug that stress finds. Both in this process, on the wall
           clock, without the start of a command; for stress a mount of its own.
shortest   how many lines the shortest schedules of late-slot have.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

import inaccfs
from inaccfs.explore import timeline
from inaccfs.explore.choosers import Chance
from inaccfs.explore.load import versions
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case, Limits, Outcome, execute, explore
from inaccfs.explore.states import States
from inaccfs.inprocess import Mount
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, stress
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import V8, V9, V10, Bind, GuestMemfd
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.syscalls import PUNCH
from tests.bench import harness
from tests.unit import kvm_bugs

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from inaccfs.semantics import Semantics

_COMPLETE: Final = ("mapped", "punch", "late-slot", "convert", "delete-slot")

_ROUNDS: Final = 5

# How long stress may look for one bug.
_PATIENCE: Final = 60.0


class Before(V8):
    """Sends events before the removal only."""

    order = "before"


# --- complete -------------------------------------------------------------------------


def _show(case: Case, name: str, seconds: float) -> float:
    outcome = explore(case, Limits(seconds))
    count = outcome.schedules + outcome.pruned
    first = min((one.seconds for one in outcome.found.values()), default=None)
    print(
        f"{name:<12}  {case.semantics.name:<15}  {case.kvm:<8}  {count:>7}  "
        f"{'all' if outcome.complete else 'NOT ALL':<7}  {outcome.seconds:>6.2f} s  "
        f"{count / outcome.seconds:>5.0f} a CPU second  "
        + ("clean" if first is None else f"first after {first:.3f} s"),
        flush=True,
    )
    return outcome.seconds


def complete(args: argparse.Namespace) -> None:
    """The scenarios that are promised to be complete, and two vCPUs."""
    rules = dict.fromkeys(versions().values())
    total = sum(
        _show(Case(SCENARIOS[name], one, kvm), name, args.seconds)
        for name, one, kvm in itertools.product(_COMPLETE, rules, ("kvm", "no-retry"))
    )
    print(f"together {total:.1f} s of CPU (to reach: 180)")
    for one in (V10(), Bind(), GuestMemfd()):
        _show(Case(SCENARIOS["two-vcpus"], one), "two-vcpus", args.seconds)


# --- rate -----------------------------------------------------------------------------


class Rate(NamedTuple):
    """A search's rate, in CPU time."""

    a_second: float
    # The seconds of the whole search.
    seconds: float


def _rate(seconds: float) -> Rate:
    case = Case(SCENARIOS["punch"], V10())
    found: list[Outcome] = []
    while sum(one.seconds for one in found) < seconds:
        found.append(explore(case, Limits(None)))
    count = sum(one.schedules + one.pruned for one in found)
    total = sum(one.seconds for one in found)
    return Rate(count / total, total / len(found))


def _spike_rate(spike: str, tree: str, seconds: float) -> Rate:
    done = subprocess.run(
        [f"{tree}/.venv/bin/python", spike, "one", "S1", "v10", "-s", str(seconds)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tree,
    )
    found = re.search(
        r"(\d+) schedules \+ (\d+) pruned, complete=True.* (\d+) a CPU second",
        done.stdout,
    )
    assert found is not None, done.stdout
    one, other, a_second = map(int, found.groups())
    return Rate(a_second, (one + other) / a_second)


def _calls_rate(seconds: float) -> float:
    """How often a CPU second has all calls of a schedule, one after the other."""
    begin, number = time.process_time(), 0
    while (spent := time.process_time() - begin) < seconds:
        number += 1
        memory = SimulatedMemory(size=4 << 20, order=0)
        with Mount(V10(), memory=memory) as mount, VM(mount.connect()) as vm:
            fd = mount.memfd_create("bench", PAGE_SIZE)
            vm.set_user_memory_region(
                0, 0, PAGE_SIZE, private_fd=fd, flags=KVM_MEM_PRIVATE
            )
            vm.set_memory_attributes(0, PAGE_SIZE, private=True)
            vcpu = vm.create_vcpu()
            vcpu.write(0, b"old")
            for private in (False, True):
                vm.set_memory_attributes(0, PAGE_SIZE, private=private)
            vcpu.write(0, b"new")
            vcpu.read(0, 8)
            mount.fallocate(fd, PUNCH, 0, PAGE_SIZE)
            os.close(fd)
    return number / spent


def rate(args: argparse.Namespace) -> None:
    """Run all in turn, so that the machine is the same for all."""
    ours, theirs, calls = [], [], []
    for _ in range(_ROUNDS):
        ours.append(_rate(3.0))
        calls.append(_calls_rate(1.0))
        if args.spike:
            theirs.append(_spike_rate(args.spike, args.spike_tree, 3.0))
    print(f"punch, v10, by medians of {_ROUNDS}")
    mine = _show_rate("explore", ours)
    print(f"the calls  {statistics.median(calls):.0f} times a CPU second")
    if theirs:
        other = _show_rate("the spike", theirs)
        print(
            f"to the end {other.seconds / mine.seconds:.1f} times as fast; "
            f"{mine.a_second / other.a_second:.1f} times as many schedules a second "
            "(to reach: 3)"
        )


def _show_rate(name: str, found: list[Rate]) -> Rate:
    made = Rate(*(statistics.median(each) for each in zip(*found, strict=True)))
    print(
        f"{name:<10} to the end {made.seconds:.3f} s of CPU, "
        f"{made.a_second:.0f} schedules a CPU second"
    )
    return made


# --- first ----------------------------------------------------------------------------


class Race(NamedTuple):
    """An error that explore and stress look for."""

    text: str
    scenario: str
    rules: Semantics
    kind: str
    # The argument of --semantics.
    mount: str
    bug: str | None = None


_STALE: Final = "stale-mapping"
_BUGS: Final = {
    "zap": ("mapped", _STALE),
    "retry": ("put-late", _STALE),
    "range": ("mapped", _STALE),
    "arithmetic": ("two-slots", "unexplained-read"),
    "discard": ("convert-back", "unexplained-read"),
    "references": ("mapped", "leaked-reference"),
    "puts": ("mapped", "refused-put"),
    "callback": ("mapped", "raises"),
    "unregister": ("mapped", "leaked-notifier"),
    "counts": ("mapped", "miscounted"),
}
_RACES: Final = [
    Race("v9: an end without its start", "late-slot", V9(), "unpaired", "v9"),
    Race("v10: an end without its start", "late-slot", V10(), "unpaired", "v10"),
    Race("event before: stale", "punch", Before(), _STALE, f"{__file__}:Before"),
    Race("v8: use in the window", "mapped", V8(), "use-after-free", "v8"),
    *(
        Race(f"v8, bug: {bug}", scenario, V8(), kind, "v8", bug)
        for bug, (scenario, kind) in _BUGS.items()
    ),
]


def _first(race: Race) -> tuple[float, int]:
    """Seconds to the first counterexample, in the order of the command; schedules."""
    case = Case(SCENARIOS[race.scenario], race.rules)
    begin = time.perf_counter()
    number = 0
    chooser: Chance | States = Chance()
    while True:
        number += 1
        found = execute(case, chooser).violations
        if any(one.kind == race.kind for one in found):
            return time.perf_counter() - begin, number
        if not chooser.advance():
            raise AssertionError(f"{race.text}: not found")
        if number == 30:
            chooser = States()


def _stressed(race: Race) -> float | None:
    """Seconds until stress has found an error; None if it finds none."""
    with (
        inaccfs.mounted(semantics=race.mount) as mount,
        inaccfs.connect(mount.control) as shim,
    ):
        begin = time.perf_counter()
        # It ends with the first violation; uses in the window are not violations, but
        # counted.
        window = race.rules.order == "after" and race.bug is None
        plan = stress.Plan(seconds=5.0 if window else _PATIENCE, seed=1)
        report = stress.run(shim, plan, lambda *_: None)
        seconds = time.perf_counter() - begin
    if window:
        return seconds / report.stale_uses if report.stale_uses else None
    return seconds if report.violations else None


def first(_: argparse.Namespace) -> None:
    """Measure each race with both."""
    logging.disable(logging.CRITICAL)
    print(f"{'':<32}  {'stress':>9}  {'explore':>9}  schedules  times")
    for race in _RACES:
        with pytest.MonkeyPatch.context() as patch:
            if race.bug is not None:
                kvm_bugs.BUGS[race.bug](patch)
            mine, number = _first(race)
            other = _stressed(race)
        shown = f"> {_PATIENCE:.0f} s" if other is None else f"{other:.2f} s"
        times = (_PATIENCE if other is None else other) / mine
        print(
            f"{race.text:<32}  {shown:>9}  {mine:>7.3f} s  {number:>9}  {times:>5.0f}",
            flush=True,
        )
    print("to reach: 20 times")


# --- shortest -------------------------------------------------------------------------


def shortest(args: argparse.Namespace) -> None:
    """Count the lines of the schedules of late-slot."""
    case = Case(SCENARIOS["late-slot"], V10())
    outcome = explore(case, Limits(args.seconds))
    for kind, one in sorted(outcome.found.items()):
        lines = timeline.replayed(case, one.choices, kind).lines
        print(f"late-slot, v10, {kind}: {len(lines)} lines")
    print("to reach: unpaired 15")


_PARTS: Final[dict[str, Callable[[argparse.Namespace], None]]] = {
    "complete": complete,
    "rate": rate,
    "first": first,
    "shortest": shortest,
}


def main() -> None:
    """Run the parts that are named, or all."""
    parser = harness.parser(__doc__)
    parser.add_argument("parts", nargs="*", choices=[*_PARTS, []], metavar="PART")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--spike", type=Path)
    parser.add_argument("--spike-tree", type=Path)
    args = parser.parse_args()
    if bool(args.spike) != bool(args.spike_tree):
        parser.error("give both --spike and --spike-tree, or neither")
    harness.begin()
    for name in args.parts or _PARTS:
        _PARTS[name](args)


if __name__ == "__main__":
    main()
