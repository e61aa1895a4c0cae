"""inaccfs kvm stress: random accesses and punches, and a check of all invariants."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs.cli import kvmmount, output, units
from inaccfs.cli.interrupts import interruptible
from inaccfs.cli.progress import progress
from inaccfs.cli.statuses import INTERRUPTED

if TYPE_CHECKING:
    import argparse
    from collections import Counter

    from inaccfs.cli.progress import Progress
    from inaccfs.kvm.stress import Report

# The most threads of each kind: more would only wait for each other.
_MOST_THREADS: Final = 256


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand of `inaccfs kvm`."""
    parser = commands.add_parser(
        "stress",
        help="run random faults, punches and conversions, and check every invariant",
        description="vCPUs write and read stamps at random. Meanwhile other threads "
        "punch, convert, allocate and freeze memory, and create and "
        "delete memslots, and a device with an IOMMU accesses the memory. "
        "The command checks the stamps that were read, the mapped pages, "
        "references, notifiers and counts. Status 1 if anything is wrong.",
    )
    for name, metavar, kind, default, text in (
        ("--seconds", "N", units.seconds_of, 10.0, "how long; default 10"),
        ("--vcpus", "M", units.whole_number(1, _MOST_THREADS), 4, "default 4"),
        (
            "--punchers",
            "K",
            units.whole_number(0, _MOST_THREADS),
            2,
            "threads that take memory away; default 2",
        ),
        (
            "--seed",
            "S",
            units.whole_number(0),
            None,
            "what each thread does; default: any",
        ),
    ):
        parser.add_argument(
            name, metavar=metavar, type=kind, default=default, help=text
        )
    kvmmount.add_options(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Put a VM under stress; status 1 if an invariant was violated."""
    from inaccfs.iommu.stress import Devices
    from inaccfs.kvm import stress, world

    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    plan = stress.Plan(args.seconds, args.vcpus, args.punchers, seed)
    try:
        # Do this first, so that even an early Ctrl-C gives a report.
        with (
            interruptible() as interrupted,
            kvmmount.roomy_mount_of(args, world.FILE_PAGES + world.DMA_PAGES) as shim,
            progress("stress", plan.seconds) as shown,
        ):
            show = partial(_show, shown)
            report = stress.run(shim, plan, show, interrupted.is_set, Devices)
    except KeyboardInterrupt:
        output.complain(f"interrupted again: seed {seed}, and nothing was checked")
        raise
    if args.json:
        output.say_json(_as_json(report))
    else:
        output.say(_summary(report))
    if report.violations:
        return 1
    return INTERRUPTED if report.interrupted else 0


def _show(shown: Progress, now: float, counts: Counter[str]) -> None:
    shown.update(now, f"{counts['accesses']:,} accesses, {counts['punches']:,} punches")


def _deeds(counts: Counter[str]) -> str:
    words = {
        "punches": "punches",
        "conversions": "conversions",
        "allocations": "allocations",
        "prefaults": "pre-faults",
        "slots": "slots made or deleted",
        "freezes": "freezes",
    }
    return ", ".join(
        f"{counts[name]:,} {what}"
        for name, what in words.items()
        if counts[name] or name != "freezes"
    )


def _as_json(report: Report) -> bytes:
    """One object: the report's members, and `stale_uses`."""
    return msgspec.json.encode(
        msgspec.to_builtins(report) | {"stale_uses": report.stale_uses}
    )


def _summary(report: Report) -> str:
    plan, counts, stats = report.plan, report.counts, report.stats
    work = f"{plan.vcpus} vCPUs, {plan.punchers} punchers, seed {plan.seed}"
    stopped = ", interrupted" if report.interrupted else ""
    lines = [
        f"{report.seconds:.1f} s in {report.rounds} rounds{stopped}: {work}",
        f"guests     {counts['accesses']:,} accesses, {counts['exits']:,} exits",
        f"host       {_deeds(counts)}",
    ]
    lines.append(f"device     {counts['dma']:,} accesses")
    if stats is not None:
        lines.append(
            f"KVM        {stats.faults:,} faults, {stats.retries:,} retries, "
            f"{stats.spurious:,} spurious, {stats.invalidations:,} invalidations; "
            f"mapped {stats.installed.pages_4k:,} x 4 KiB, "
            f"{stats.installed.pages_2m:,} x 2 MiB"
        )
    race = "the semantics' own race" if report.order == "after" else "not expected"
    lines += [
        f"semantics  {report.semantics}: invalidates {report.order} removal",
        f"stale uses in the window: {report.stale_uses:,} seen ({race})",
        f"violations: {len(report.violations) or 'none'}",
        *(f"  {violation}" for violation in report.violations),
    ]
    return "\n".join(lines)
