"""inaccfs explore: all schedules of a scenario."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs import userfiles
from inaccfs.cli import exploreshow, output, units
from inaccfs.cli.exploretable import Table
from inaccfs.cli.interrupts import interruptible
from inaccfs.cli.progress import progress
from inaccfs.cli.statuses import INTERRUPTED, TROUBLE
from inaccfs.errors import OptionError
from inaccfs.words import quoted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from inaccfs.explore.search import Case, Limits, Outcome, RefusedError

NOT_COMPLETE: Final = 3
"""Nothing was found, and not all schedules were tried."""

WRONG: Final = 4
"""The scenario itself is wrong, or the rules refuse its setup."""

_MOST_PREEMPTIONS: Final = 9999


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "explore",
        help="try all schedules of a scenario, and show what goes wrong",
        description="Try all orders of events in a scenario, with the real shim and "
        "the real simulated KVM in one process. Without a scenario, list "
        "the scenarios. Status 0: no schedule has an error; 1: a schedule "
        "has one; 3: no error was found, but not all schedules were "
        "tried; 4: the scenario itself is wrong, or the rules refuse its "
        "setup. docs/exploring.md explains the command.",
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
        type=units.seconds_of,
        metavar="N",
        help="end the search of each row after N seconds of CPU (60)",
    )
    parser.add_argument(
        "--preemptions",
        type=units.whole_number(0, _MOST_PREEMPTIONS),
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
    parser.set_defaults(run=run, failed=TROUBLE)


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
    from inaccfs.explore.buggy import KVMS
    from inaccfs.explore.scenarios import SCENARIOS

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
    _try(args)
    found = scenarios.scenario(args.scenario)
    label = userfiles.label(args.scenario)
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


def _try(args: argparse.Namespace) -> None:
    """Raise `ScenarioError` if the user's code does not end."""
    from inaccfs.explore import load as scenarios
    from inaccfs.explore.choosers import Chance
    from inaccfs.explore.search import MOST_SECONDS, Case, ScenarioError, execute
    from inaccfs.explore.trial import ends_in_time
    from inaccfs.semantics import V10, load

    def once() -> None:
        rules = [load.load(name) for name in args.semantics] or [V10()]
        execute(Case(scenarios.scenario(args.scenario), rules[0], args.kvm), Chance())

    words = dict.fromkeys([args.scenario, *args.semantics])
    # A file without a class is run, too, for the names of its classes.
    files = [each for each in words if each.endswith(".py") or userfiles.split(each)]
    if files and not ends_in_time(once, MOST_SECONDS):
        raise ScenarioError(
            f"{', '.join(files)}: one schedule takes more than {MOST_SECONDS} seconds: "
            "it spins, or waits for something outside"
        )


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
    refused = False
    table = Table(label, args.kvm, [name for name, _ in cases])
    if not args.json:
        output.say(table.head)
    try:
        for name, outcome in _outcomes(cases, limits):
            if isinstance(outcome, Exception):
                refused = True
                _show_refused(name, outcome, None if args.json else table)
                continue
            rows.append((name, outcome))
            if not args.json:
                output.say(table.row(name, outcome))
    finally:
        if args.json:
            exploreshow.say_rows(
                [exploreshow.as_row(name, outcome, label) for name, outcome in rows]
            )
    _show_always_refused(rows, args)
    if len(cases) == 1:
        exploreshow.show_found(rows[0][1], args)
    elif not (args.json or limits.stop()) and any(one.found for _, one in rows):
        output.say("\nwith one --semantics you see the shortest schedule")
    return WRONG if refused else _status([outcome for _, outcome in rows])


def _show_refused(name: str, why: RefusedError, table: Table | None) -> None:
    """A version whose rules do not let the scenario run."""
    if table is None:
        output.complain(f"{name}: {why}")
    else:
        output.say(table.refused(name, why.reason))


def _show_always_refused(
    rows: Sequence[tuple[str, Outcome]], args: argparse.Namespace
) -> None:
    """Calls that are refused in all schedules: nothing after them was tried."""
    found: dict[str, list[str]] = {}
    for name, outcome in rows:
        for call, why in outcome.calls.always_refused.items():
            found.setdefault(f"always refused: {call}: {why}", []).append(name)
    for text, names in found.items():
        line = text if len(rows) == 1 else f"{text} ({', '.join(names)})"
        if args.json:
            output.complain(line)
        else:
            output.say(f"\n{line}")


def _outcomes(
    cases: Sequence[tuple[str, Case]], limits: Limits
) -> Iterator[tuple[str, Outcome | RefusedError]]:
    """The outcome for each name, until the search is stopped.

    Raises:
        ScenarioError: the scenario is wrong, or it is the only row that is refused.
    """
    from inaccfs.explore.search import RefusedError, explore

    done: dict[Case, Outcome | RefusedError] = {}
    for number, (name, case) in enumerate(cases):
        if case not in done:
            words = f"exploring {name}"
            with progress(words, len(cases), ticks=True) as shown:
                shown.update(number)
                try:
                    done[case] = explore(case, limits)
                except RefusedError as exc:
                    if len(cases) == 1:
                        raise
                    done[case] = exc
        yield name, done[case]
        if limits.stop():
            return


def _status(outcomes: list[Outcome]) -> int:
    if any(outcome.found for outcome in outcomes):
        return 1
    return 0 if all(outcome.complete for outcome in outcomes) else NOT_COMPLETE


# --- one schedule ---------------------------------------------------------------------


def _replay(args: argparse.Namespace, case: Case, label: str) -> int:
    from inaccfs.explore import replay, timeline
    from inaccfs.explore.search import Limits, Outcome

    found = timeline.replayed(case, replay.choices(case, args.replay))
    if args.json:
        alone = Outcome(case, Limits())
        alone.schedules = 1
        kinds = sorted({each.kind for each in found.violations})
        row = exploreshow.row(
            label, case.semantics.name, alone, kinds, args.replay, found.lines
        )
        exploreshow.say_rows([row])
    else:
        for each in found.violations:
            output.say(f"{each.kind}: {each.text}")
        if not found.violations:
            output.say("clean: this schedule shows nothing")
        exploreshow.show(found)
    if args.trace is not None:
        exploreshow.write_trace(args.trace, found)
    return 1 if found.violations else NOT_COMPLETE
