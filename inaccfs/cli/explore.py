"""inaccfs explore: all schedules of a scenario."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs.cli import output
from inaccfs.cli.exploretable import Table
from inaccfs.cli.interrupts import interruptible
from inaccfs.cli.progress import progress
from inaccfs.cli.statuses import INTERRUPTED
from inaccfs.errors import OptionError
from inaccfs.streams import printable_lines
from inaccfs.words import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
        description="Try all orders of events in a scenario, with the real shim and "
        "the real simulated KVM in one process. Without a scenario, list "
        "the scenarios. Status 0: no schedule has an error; 1: a schedule "
        "has one; 3: no error was found, but not all schedules were "
        "tried; 4: the scenario itself is wrong. docs/exploring.md "
        "explains the command.",
    )
    parser.add_argument(
        "scenario", metavar="NAME|FILE.py:CLASS", nargs="?", help="the scenario to try"
    )
    parser.add_argument(
        "--semantics",
        action="append",
        default=[],
        metavar="NAME|FILE.py:CLASS",
        help="the rules; may be repeated (default: all versions)",
    )
    parser.add_argument(
        "--kvm",
        default="kvm",
        metavar="NAME",
        help="use a KVM with a known error, such as no-retry",
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
        "--trace",
        metavar="FILE.json",
        help="write the schedule as a trace for Chrome or Perfetto",
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
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of preemptions: give 0 to 9999"
        )
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Search, or replay."""
    from inaccfs.explore.search import ScenarioError

    if args.scenario is None:
        return _list(args)
    try:
        return _run(args)
    except ScenarioError as exc:
        output.complain(str(exc))
        return WRONG


def _list(args: argparse.Namespace) -> int:
    from inaccfs.explore.scenarios import SCENARIOS
    from inaccfs.explore.weaker import KVMS

    given = [args.semantics, args.seconds, args.all, args.replay, args.trace]
    if any(given) or args.preemptions is not None or args.kvm != "kvm":
        raise OptionError("give a scenario, too: inaccfs explore lists them")
    asked = {
        name: (one.__doc__ or "").partition("\n")[0] for name, one in SCENARIOS.items()
    }
    if args.json:
        found = {
            "scenarios": [{"name": name, "asks": text} for name, text in asked.items()],
            "kvms": [{"name": name, "text": one.text} for name, one in KVMS.items()],
        }
        output.say_json(msgspec.json.encode(found))
        return 0
    width = max(map(len, asked))
    for name, question in asked.items():
        output.say(f"{name:<{width}}  {question}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from inaccfs.explore import load as scenarios
    from inaccfs.explore.search import Case
    from inaccfs.semantics import load

    scenarios.known_kvm(args.kvm)
    _check_options(args)
    found = scenarios.scenario(args.scenario)
    label = scenarios.label(args.scenario)
    rules = [load.load(name) for name in args.semantics]
    if args.replay is not None:
        return _replay(args, Case(found, rules[0], args.kvm), label)
    if rules:
        rows = [(one.name, Case(found, one, args.kvm)) for one in rules]
    else:
        # Semantics whose differences do not affect the search share one search.
        rows = [
            (name, Case(found, one, args.kvm))
            for name, one in scenarios.versions().items()
        ]
    with interruptible() as interrupted:
        limits = _limits(args)._replace(stop=interrupted.is_set)
        status = _search(args, rows, label, limits)
        return INTERRUPTED if interrupted.is_set() else status


def _limits(args: argparse.Namespace) -> Limits:
    from inaccfs.explore.search import Limits

    return Limits(None if args.all else args.seconds or 60.0, args.preemptions)


def _check_options(args: argparse.Namespace) -> None:
    if args.all and args.seconds is not None:
        raise OptionError("give --all or --seconds, not both")
    replays = args.replay is not None
    if (replays or args.trace is not None) and len(args.semantics) != 1:
        raise OptionError("--replay and --trace need one --semantics")
    if replays and (args.all or args.seconds or args.preemptions is not None):
        raise OptionError("--replay runs one schedule: give it no limit")
    if args.trace is not None:
        directory = os.path.dirname(args.trace) or "."
        if not args.trace or os.path.isdir(args.trace):
            raise OptionError(f"cannot write {quoted(args.trace)}: name a file")
        there = args.trace if os.path.exists(args.trace) else directory
        if not os.access(there, os.W_OK):
            reason = "no permission" if os.path.exists(there) else "no such directory"
            raise OptionError(f"cannot write {quoted(args.trace)}: {reason}")


# --- a search -------------------------------------------------------------------------


def _search(
    args: argparse.Namespace,
    cases: Sequence[tuple[str, Case]],
    label: str,
    limits: Limits,
) -> int:
    rows: list[tuple[str, Outcome]] = []
    table = Table(label, args.kvm, [name for name, _ in cases])
    if not args.json:
        output.say(table.head)
    try:
        for name, outcome in _outcomes(cases, limits):
            rows.append((name, outcome))
            if not args.json:
                output.say(table.row(name, outcome))
    finally:
        if args.json:
            found = [_as_row(name, outcome, label) for name, outcome in rows]
            output.say_json(msgspec.json.encode({"rows": found}))
    if len(cases) == 1:
        _show_found(rows[0][1], args)
    elif not (args.json or limits.stop()) and any(one.found for _, one in rows):
        output.say("\nwith one --semantics you see the shortest schedule")
    return _status([outcome for _, outcome in rows])


def _outcomes(
    cases: Sequence[tuple[str, Case]], limits: Limits
) -> Iterator[tuple[str, Outcome]]:
    """The outcome for each name, until the search is stopped."""
    from inaccfs.explore.search import explore

    done: dict[Case, Outcome] = {}
    for number, (name, case) in enumerate(cases):
        if case not in done:
            words = f"exploring {name}"
            with progress(words, len(cases), ticks=True) as shown:
                shown.update(number)
                done[case] = explore(case, limits)
        yield name, done[case]
        if limits.stop():
            return


def _status(outcomes: list[Outcome]) -> int:
    if any(outcome.found for outcome in outcomes):
        return 1
    return 0 if all(outcome.complete for outcome in outcomes) else NOT_COMPLETE


def _as_row(name: str, outcome: Outcome, label: str) -> dict[str, Any]:
    from inaccfs.explore import replay

    case, shortest = outcome.case, outcome.shortest
    steps = [] if shortest is None else _timeline(case, shortest).lines
    return {
        "scenario": label,
        "semantics": name,
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


def _show_found(outcome: Outcome, args: argparse.Namespace) -> None:
    """Show the shortest schedule, and how to see those of other kinds."""
    from inaccfs.explore import replay

    case, shortest = outcome.case, outcome.shortest
    if shortest is None:
        if args.trace is not None:
            output.complain(f"nothing was found: {args.trace} is not written")
        return
    found = _timeline(case, shortest)
    if not args.json:
        output.say(f"\n{shortest.kind}: {shortest.text}")
        _show(found)
        output.say(f"replay {replay.name(case, shortest.choices)}")
        for kind, other in sorted(outcome.found.items()):
            if other is not shortest:
                name = replay.name(case, other.choices)
                output.say(f"\n{kind}: {other.text}\nreplay {name}")
    if args.trace is not None:
        _write_trace(args.trace, found)


_GUILTY: Final = re.compile(r"^\*.*$", re.MULTILINE)


def _show(found: Timeline) -> None:
    from inaccfs.explore import timeline

    if not found.lines:
        output.say("no actor takes a step: it is what setup() has done")
        return
    if not sys.stdout.isatty():
        output.say(timeline.as_list(found))
        return
    text = printable_lines(
        timeline.as_columns(found, shutil.get_terminal_size().columns)
    )
    if os.environ.get("NO_COLOR"):
        output.say(text)
    else:
        output.say_coloured(_GUILTY.sub("\x1b[1;31m\\g<0>\x1b[0m", text))


# --- one schedule ---------------------------------------------------------------------


def _replay(args: argparse.Namespace, case: Case, label: str) -> int:
    from inaccfs.explore import replay, timeline

    found = timeline.replayed(case, replay.choices(case, args.replay))
    if args.json:
        steps = [{"actor": line.actor, "text": line.text} for line in found.lines]
        kinds = sorted({each.kind for each in found.violations})
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
        for each in found.violations:
            output.say(f"{each.kind}: {each.text}")
        if not found.violations:
            output.say("clean: this schedule shows nothing")
        _show(found)
    if args.trace is not None:
        _write_trace(args.trace, found)
    return 1 if found.violations else NOT_COMPLETE


def _write_trace(path: str, found: Timeline) -> None:
    from inaccfs.explore import timeline

    try:
        with open(path, "wb") as file:
            file.write(timeline.as_trace(found))
    except OSError as exc:
        raise OptionError(f"cannot write {quoted(path)}: {exc.strerror}") from exc
