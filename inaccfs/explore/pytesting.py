"""`assert_clean`, for tests of other projects."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from inaccfs.explore import replay, timeline
from inaccfs.explore.load import check, known_kvm
from inaccfs.explore.search import Case, Limits, explore
from inaccfs.semantics.load import load

if TYPE_CHECKING:
    from inaccfs.explore.scenario import Scenario
    from inaccfs.explore.search import Outcome
    from inaccfs.semantics import Semantics


def assert_clean(
    scenario: type[Scenario],
    semantics: Semantics | type[Semantics] | str,
    *,
    kvm: str = "kvm",
    seconds: float | None = 60.0,
    preemptions: int | None = None,
) -> None:
    """Assert that no schedule of a scenario violates anything.

    The search takes at most so many *seconds* of CPU; None is no limit. *semantics* is
    an object or class of rules, or a word of `--semantics`; *kvm* is a word of `--kvm`.
    With *preemptions* only schedules with at most so many are tried.

    Warns of calls that the rules refuse in all schedules: what would come after them
    has not been seen.

    Raises:
        AssertionError: there is a violation, and the text has the schedule that shows
            it; or the time did not suffice for all schedules.
        ScenarioError: the scenario itself is wrong.
        OptionError: *semantics* or *kvm* is unknown.
    """
    __tracebackhide__ = True
    check(scenario)
    case = Case(scenario, _rules(semantics), known_kvm(kvm))
    outcome = explore(case, Limits(seconds, preemptions))
    if outcome.found:
        raise AssertionError(_report(outcome))
    if not outcome.complete:
        raise AssertionError(
            f"nothing was found in {outcome.schedules} schedules, which are not all: "
            "give it more seconds"
        )
    for call, why in outcome.calls.always_refused.items():
        warnings.warn(
            f"{scenario.__name__}: always refused: {call}: {why}", stacklevel=2
        )


def _rules(semantics: Semantics | type[Semantics] | str) -> Semantics:
    if isinstance(semantics, str):
        return load(semantics)
    return semantics() if isinstance(semantics, type) else semantics


def _report(outcome: Outcome) -> str:
    case, found = outcome.case, outcome.shortest
    assert found is not None
    lines = timeline.as_list(timeline.replayed(case, found.choices, found.kind))
    others = [
        f"{one.kind}: {one.text}"
        for one in outcome.found.values()
        if one.kind != found.kind
    ]
    return "\n".join(
        [
            f"{found.kind}: {found.text}",
            f"{case.scenario.__name__}, {case.semantics.name}, {case.kvm}:",
            lines,
            f"replay {replay.name(case, found.choices)}",
            *others,
        ]
    )
