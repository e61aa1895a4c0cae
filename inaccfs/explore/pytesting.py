"""For tests of other projects: a scenario that is clean, or fails with its schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inaccfs.explore import replay, timeline
from inaccfs.explore.search import Case, Limits, explore

if TYPE_CHECKING:
    from inaccfs.explore.scenario import Scenario
    from inaccfs.semantics import Semantics


def assert_clean(
    scenario: type[Scenario],
    semantics: Semantics,
    *,
    kvm: str = "kvm",
    seconds: float | None = 60.0,
) -> None:
    """Try all schedules within so many *seconds* of CPU.

    Raises:
        AssertionError: something happens that may not, with the schedule that shows it;
            or there was not the time for all.
        ScenarioError: the scenario itself is wrong.
    """
    case = Case(scenario, semantics, kvm)
    outcome = explore(case, Limits(seconds))
    if (found := outcome.shortest) is not None:
        lines = timeline.as_list(timeline.replayed(case, found.choices, found.kind))
        name = replay.name(case, found.choices)
        raise AssertionError(f"{found.kind}: {found.text}\n{lines}\nreplay {name}")
    if not outcome.complete:
        raise AssertionError(
            f"nothing was found in {outcome.schedules} schedules, which are not all: "
            "give it more seconds"
        )
