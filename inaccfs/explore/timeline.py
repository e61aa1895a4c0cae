"""Prints a schedule for people: the steps that led to a violation, and no others."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

from inaccfs.chrometrace import Writer
from inaccfs.explore.causes import cone
from inaccfs.explore.choosers import Replay
from inaccfs.explore.choosing import UnstableError
from inaccfs.explore.search import ScenarioError, execute, watched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.explore.schedule import Violation
    from inaccfs.explore.search import Case


class Line(NamedTuple):
    """A step, or the beginning of an actor's next one."""

    actor: str
    text: str
    # Whether the violation happens in it.
    guilty: bool


class Timeline(NamedTuple):
    """The steps of a schedule that lead to a violation, or all if there is none."""

    lines: list[Line]
    # The violations of the guilty step.
    violations: list[Violation]


def replayed(case: Case, choices: Sequence[int], kind: str | None = None) -> Timeline:
    """Run a schedule again. *kind* is the violation that is shown.

    Raises:
        ScenarioError: the scenario did something else than before.
    """
    replay = Replay(choices)
    try:
        with watched():
            schedule = execute(case, replay, notes=True)
    except UnstableError as exc:
        raise ScenarioError(f"{case.scenario.__name__}: {exc}") from exc
    found = [each for each in schedule.violations if kind in (None, each.kind)]
    # The violation that the replay ID stands for is in the last step.
    found.sort(key=lambda each: each.step != len(choices) - 1)
    if kind is not None and not found:
        raise ScenarioError(
            f"{case.scenario.__name__}: {kind} does not come again by the same "
            "schedule: the scenario does not do the same each time"
        )
    steps = replay.steps
    last = min(found[0].step, len(steps) - 1) if found else len(steps) - 1
    wanted = cone(steps, last) if found and steps else set(range(last + 1))
    names = [actor.name for actor in schedule.actors]
    lines = [
        Line(names[actor], "; ".join(texts), bool(found) and index == last)
        for index, (actor, texts) in enumerate(schedule.log)
        if index in wanted
    ]
    return Timeline(lines, [each for each in found if each.step == found[0].step])


def as_list(timeline: Timeline, columns: int = 0) -> str:
    """One line per step; the actor's name is printed where the actor changes.

    Lines are wrapped at *columns*, unless that is 0.
    """
    width = max((len(line.actor) for line in timeline.lines), default=0)
    room = max(columns - width - 8, 20) if columns else 0
    last = ""
    made = []
    for number, line in enumerate(timeline.lines, 1):
        actor = line.actor if line.actor != last else ""
        mark = "*" if line.guilty else " "
        first, *more = _wrapped(line.text, room) if room else [line.text]
        made.append(f"{mark}{number:3}  {actor:<{width}}  {first}")
        made += [f"{mark}{'':{width + 7}}{part}" for part in more]
        last = line.actor
    return "\n".join(made)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [text]


def as_columns(timeline: Timeline, width: int) -> str:
    """One column per actor; a list if *width* is too small for that."""
    actors = list(dict.fromkeys(line.actor for line in timeline.lines))
    column = (width - 5) // max(len(actors), 1) - 2
    if column < 18:
        return as_list(timeline, width)
    heads = [f"{each[:column]:<{column}}" for each in actors]
    made = ["     " + "  ".join(heads).rstrip()]
    for number, line in enumerate(timeline.lines, 1):
        at = 5 + actors.index(line.actor) * (column + 2)
        mark = "*" if line.guilty else " "
        head = f"{mark}{number:3} "
        for part in _wrapped(line.text, column):
            made.append(f"{head:<{at}}{part}")
            head = mark
    return "\n".join(made)


def as_trace(timeline: Timeline) -> bytes:
    """A file for ui.perfetto.dev and chrome://tracing: a step is a microsecond."""
    parts: list[bytes] = []
    writer = Writer(parts.append, ["schedule"])
    actors = dict.fromkeys(line.actor for line in timeline.lines)
    tracks = {actor: writer.track("schedule", actor) for actor in actors}
    for index, line in enumerate(timeline.lines):
        category = "violation" if line.guilty else "step"
        start, end = index * 1000, (index + 1) * 1000
        writer.slice(tracks[line.actor], line.text, start, end, category)
    writer.close()
    return b"".join(parts)
