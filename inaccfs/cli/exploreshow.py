"""Shows the results of `inaccfs explore`: for programs, for people, and as a trace."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs.cli import output, terminal
from inaccfs.errors import OptionError
from inaccfs.streams import create, printable_lines
from inaccfs.words import quoted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from inaccfs.explore.search import Outcome
    from inaccfs.explore.timeline import Line, Timeline


def as_row(name: str, outcome: Outcome, label: str) -> dict[str, Any]:
    """The row of --json for a search."""
    from inaccfs.explore import replay

    case, shortest = outcome.case, outcome.shortest
    if shortest is None:
        return row(label, name, outcome, outcome.kinds, None, [])
    schedule = replay.name(case, shortest.choices)
    steps = _timeline(outcome).lines
    return row(label, name, outcome, outcome.kinds, schedule, steps)


def row(
    label: str,
    semantics: str,
    outcome: Outcome,
    kinds: list[str],
    schedule: str | None,
    steps: Sequence[Line],
) -> dict[str, Any]:
    """A row of --json; *schedule* is the replay ID of these *steps*."""
    return {
        "scenario": label,
        "semantics": semantics,
        "kvm": outcome.case.kvm,
        "verdict": ", ".join(kinds) or "clean",
        "kinds": kinds,
        "schedules": outcome.schedules,
        "pruned": outcome.pruned,
        "complete": outcome.complete,
        "bound": outcome.limits.preemptions,
        "seconds": round(outcome.seconds, 3),
        "replay": schedule,
        "steps": [{"actor": line.actor, "text": line.text} for line in steps],
    }


def say_rows(rows: list[dict[str, Any]]) -> None:
    """Print what --json prints."""
    output.say_json(msgspec.json.encode({"rows": rows}))


# --json and --trace need the same one.
@lru_cache(maxsize=1)
def _timeline(outcome: Outcome) -> Timeline:
    """The shortest schedule of a search that has found one, and has ended."""
    from inaccfs.explore import timeline

    found = outcome.shortest
    assert found is not None
    return timeline.replayed(outcome.case, found.choices, found.kind)


def show_found(outcome: Outcome, args: argparse.Namespace) -> None:
    """Show the shortest schedule, and how to see those of other kinds."""
    from inaccfs.explore import replay

    case, shortest = outcome.case, outcome.shortest
    if shortest is None:
        if args.trace is not None:
            output.complain(f"nothing was found: {args.trace} is not written")
        return
    found = _timeline(outcome)
    if not args.json:
        output.say(f"\n{shortest.kind}: {shortest.text}")
        show(found)
        output.say(f"replay {replay.name(case, shortest.choices)}")
        for kind, other in sorted(outcome.found.items()):
            if other is not shortest:
                name = replay.name(case, other.choices)
                output.say(f"\n{kind}: {other.text}\nreplay {name}")
    if args.trace is not None:
        write_trace(args.trace, found)


_GUILTY: Final = re.compile(r"^\*.*$", re.MULTILINE)


def show(found: Timeline) -> None:
    """Show a schedule; on a terminal in columns."""
    from inaccfs.explore import timeline

    if not found.lines:
        output.say("no actor takes a step: it is what setup() has done")
        return
    if not (width := terminal.width()):
        output.say(timeline.as_list(found))
        return
    text = printable_lines(timeline.as_columns(found, width))
    if terminal.has_colours():
        text = _GUILTY.sub("\x1b[1;31m\\g<0>\x1b[0m", text)
    output.say_coloured(text)


def write_trace(path: str, found: Timeline) -> None:
    """Write a schedule for Chrome or Perfetto. Raises `OptionError`."""
    from inaccfs.explore import timeline

    try:
        with open(create(path), "wb") as file:
            file.write(timeline.as_trace(found))
    except OSError as exc:
        raise OptionError(f"cannot write {quoted(path)}: {exc.strerror}") from exc
