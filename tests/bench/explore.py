"""How many schedules `inaccfs explore` tries, and how soon it finds what is wrong.

    python -m tests.bench.explore [SECONDS]

Of each row at most so many seconds of CPU (60).
"""

from __future__ import annotations

import sys

from inaccfs.explore.load import versions
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case, Limits, explore
from inaccfs.semantics import V10, Bind, GuestMemfd

_COMPLETE = ("mapped", "punch", "late-slot", "convert", "delete-slot")


def show(case: Case, name: str, seconds: float) -> float:
    """A row; returns its seconds of CPU."""
    outcome = explore(case, Limits(seconds))
    count = outcome.schedules + outcome.pruned
    first = min((one.seconds for one in outcome.found.values()), default=None)
    print(
        f"{name:<16}  {case.semantics.name:<15}  {case.kvm:<8}  {count:>7}  "
        f"{'all' if outcome.complete else 'not all':<7}  {outcome.seconds:>6.2f} s  "
        f"{count / outcome.seconds:>5.0f} a CPU second  "
        + ("clean" if first is None else f"first after {first:.3f} s"),
        flush=True,
    )
    return outcome.seconds


def main(seconds: float) -> None:
    """All that is promised to be complete, and two vCPUs."""
    total = sum(
        show(Case(SCENARIOS[name], rules, kvm), name, seconds)
        for name in _COMPLETE
        for rules in dict.fromkeys(versions().values())
        for kvm in ("kvm", "no-retry")
    )
    print(f"together {total:.1f} s of CPU")
    for rules in (V10(), Bind(), GuestMemfd()):
        show(Case(SCENARIOS["two-vcpus"], rules), "two-vcpus", seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
