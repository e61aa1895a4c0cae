"""inaccfs explore: all schedules of a scenario."""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs.cli import output
from inaccfs.cli.interrupts import interruptible
from inaccfs.cli.progress import progress
from inaccfs.cli.statuses import INTERRUPTED
from inaccfs.errors import InaccfsError, OptionError

if TYPE_CHECKING:
    from inaccfs.explore.search import Case, Found, Limits, Outcome
    from inaccfs.explore.timeline import Timeline

NOT_COMPLETE: Final = 3
"""Nothing was found, and not all schedules were tried."""

WRONG: Final = 4
"""The scenario itself is wrong."""


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "explore",
        help="try all schedules of a scenario, and show what goes wrong",
        description="Try all orders of events of a scenario, with the real shim and "
        "the real simulated KVM in one process. Without a scenario, list them. "
        "Status 0: nothing is wrong in any schedule; 1: something is; 3: nothing was "
        "found, and not all were tried; 4: the scenario is wrong. docs/exploring.md "
        "explains it.",
    )
    parser.add_argument(
        "scenario", metavar="NAME|FILE.py:CLASS", nargs="?", help="what is tried"
    )
    parser.add_argument(
        "--semantics",
        action="append",
        default=[],
        metavar="NAME|FILE.py:CLASS",
        help="the rules; may be repeated; all versions that differ if it is not given",
    )
    parser.add_argument(
        "--kvm", default="kvm", metavar="NAME", help="a weaker KVM: no-retry and so on"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="N",
        help="end the search of each row after N seconds of CPU (60)",
    )
    parser.add_argument(
        "--preemptions",
        type=_count,
        metavar="N",
        help="try only schedules with at most N preemptions",
    )
    parser.add_argument("--all", action="store_true", help="search without a limit")
    parser.add_argument("--replay", metavar="ID", help="run one schedule again")
    parser.add_argument(
        "--trace", metavar="FILE.json", help="write it for Chrome or Perfetto"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return number


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of preemptions")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Search, or replay."""
    from inaccfs.explore.scenarios import SCENARIOS
    from inaccfs.explore.search import ScenarioError

    if args.scenario is None:
        if args.replay or args.trace or args.semantics:
            raise OptionError("give a scenario, too: inaccfs explore lists them")
        width = max(map(len, SCENARIOS))
        for name, one in SCENARIOS.items():
            question = (one.__doc__ or "").partition("\n")[0]
            output.say(f"{name:<{width}}  {question}")
        return 0
    try:
        return _run(args)
    except ScenarioError as exc:
        output.complain(str(exc))
        return WRONG


def _run(args: argparse.Namespace) -> int:
    from inaccfs.explore import load as scenarios
    from inaccfs.explore.search import Case
    from inaccfs.explore.weaker import KVMS
    from inaccfs.semantics import load

    if args.kvm not in KVMS:
        raise OptionError(f"unknown KVM {args.kvm!r}: there are {', '.join(KVMS)}")
    found = scenarios.scenario(args.scenario)
    rules = [load.load(name) for name in args.semantics] or scenarios.versions()
    cases = [Case(found, one, args.kvm) for one in rules]
    label = scenarios.label(args.scenario)
    if (args.replay or args.trace) and len(args.semantics) != 1:
        raise OptionError("--replay and --trace need one --semantics")
    if args.trace is not None:
        _check_writable(args.trace)
    if args.replay:
        return _replay(args, cases[0], label)
    with interruptible() as interrupted:
        limits = _limits(args)._replace(stop=interrupted.is_set)
        status = _search(args, cases, label, limits)
        return INTERRUPTED if interrupted.is_set() else status


def _check_writable(path: str) -> None:
    try:
        open(path, "ab").close()
    except OSError as exc:
        raise InaccfsError(f"cannot write {path}: {exc.strerror}") from exc


def _limits(args: argparse.Namespace) -> Limits:
    from inaccfs.explore.search import Limits

    if args.all and args.seconds:
        raise OptionError("give --all or --seconds, not both")
    seconds = None if args.all else args.seconds or 60.0
    return Limits(seconds, args.preemptions)


# --- a search -------------------------------------------------------------------------


def _search(
    args: argparse.Namespace, cases: list[Case], label: str, limits: Limits
) -> int:
    from inaccfs.explore.search import explore

    rows: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    if not args.json:
        output.say(_HEAD)
    for case in cases:
        words = f"exploring {label} under {case.semantics.name}"
        with progress(words, len(cases), ticks=True) as shown:
            shown.update(len(outcomes))
            outcome = explore(case, limits)
        outcomes.append(outcome)
        if args.json:
            rows.append(_as_row(outcome, label))
        else:
            output.say(_row(outcome, label))
        if limits.stop():
            break
    if args.json:
        output.say_json(msgspec.json.encode({"rows": rows}))
    elif len(cases) == 1:
        _show_shortest(outcomes[0])
    if args.trace is not None and (shortest := outcomes[0].shortest) is not None:
        _write_trace(args.trace, _timeline(cases[0], shortest))
    return _status(outcomes)


def _status(outcomes: list[Outcome]) -> int:
    if any(outcome.found for outcome in outcomes):
        return 1
    return 0 if all(outcome.complete for outcome in outcomes) else NOT_COMPLETE


_HEAD: Final = (
    f"{'scenario':<16}  {'semantics':<15}  {'KVM':<13}  {'schedules':>9}  "
    f"{'pruned':>6}  {'all':<4}  {'seconds':>7}  verdict"
)


def _row(outcome: Outcome, label: str) -> str:
    case = outcome.case
    return (
        f"{label:<16}  {case.semantics.name:<15}  {case.kvm:<13}  "
        f"{outcome.schedules:>9}  {outcome.pruned:>6}  {_all(outcome):<4}  "
        f"{outcome.seconds:>7.2f}  {', '.join(outcome.kinds) or 'clean'}"
    )


def _all(outcome: Outcome) -> str:
    if not outcome.complete:
        return "no"
    bound = outcome.limits.preemptions
    return "yes" if bound is None else f"<={bound}"


def _as_row(outcome: Outcome, label: str) -> dict[str, Any]:
    from inaccfs.explore import replay

    case, shortest = outcome.case, outcome.shortest
    steps = [] if shortest is None else _timeline(case, shortest).lines
    return {
        "scenario": label,
        "semantics": case.semantics.name,
        "kvm": case.kvm,
        "verdict": ", ".join(outcome.kinds) or "clean",
        "kinds": outcome.kinds,
        "schedules": outcome.schedules,
        "pruned": outcome.pruned,
        "complete": outcome.complete,
        "bound": outcome.limits.preemptions,
        "seconds": round(outcome.seconds, 3),
        "replay": None if shortest is None else replay.name(case, shortest.choices),
        "steps": [{"actor": line.actor, "text": line.text} for line in steps],
    }


def _timeline(case: Case, found: Found) -> Timeline:
    from inaccfs.explore import timeline

    return timeline.replayed(case, found.choices, found.kind)


def _show_shortest(outcome: Outcome) -> None:
    from inaccfs.explore import replay

    shortest = outcome.shortest
    if shortest is None:
        return
    output.say(f"\n{shortest.kind}: {shortest.text}")
    _show(_timeline(outcome.case, shortest))
    output.say(f"replay {replay.name(outcome.case, shortest.choices)}")


def _show(found: Timeline) -> None:
    from inaccfs.explore import timeline

    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        output.say(timeline.as_columns(found, width))
    else:
        output.say(timeline.as_list(found))


# --- one schedule ---------------------------------------------------------------------


def _replay(args: argparse.Namespace, case: Case, label: str) -> int:
    from inaccfs.explore import replay, timeline

    found = timeline.replayed(case, replay.choices(case, args.replay))
    violation = found.violation
    if args.json:
        steps = [{"actor": line.actor, "text": line.text} for line in found.lines]
        kinds = [] if violation is None else [violation.kind]
        row = {
            "scenario": label,
            "semantics": case.semantics.name,
            "kvm": case.kvm,
            "verdict": ", ".join(kinds) or "clean",
            "kinds": kinds,
            "schedules": 1,
            "pruned": 0,
            "complete": False,
            "bound": None,
            "seconds": 0.0,
            "replay": args.replay,
            "steps": steps,
        }
        output.say_json(msgspec.json.encode({"rows": [row]}))
    else:
        if violation is not None:
            output.say(f"{violation.kind}: {violation.text}")
        _show(found)
    if args.trace is not None:
        _write_trace(args.trace, found)
    return NOT_COMPLETE if violation is None else 1


def _write_trace(path: str, found: Timeline) -> None:
    from inaccfs.explore import timeline

    try:
        with open(path, "wb") as file:
            file.write(timeline.as_trace(found))
    except OSError as exc:
        raise InaccfsError(f"cannot write {path}: {exc.strerror}") from exc
