"""In scenarios of proposals the search finds each outcome of random schedules."""

from __future__ import annotations

import pytest

from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case, Limits, explore
from inaccfs.semantics import V8, InPlaceNext, InPlaceV8, LiveUpdate, Semantics
from tests.explore_checking import check
from tests.hard.budget import some
from tests.unit.test_explore_in_place import KINDS, Race, name_of


class NoMmap(InPlaceV8):
    """Shared pages are in the memory that the VMM gave."""

    mmap = "refused"


@pytest.mark.parametrize(
    ("name", "rules", "kvm"),
    some(
        [
            ("convert-in-place", InPlaceV8(), "kvm"),
            ("convert-in-place", Race(), "kvm"),
            ("convert-in-place", InPlaceNext(), "no-retry"),
            ("convert-two-vms", NoMmap(), "no-retry"),
            ("convert-two-vms", InPlaceNext(), "kvm"),
            ("dma", InPlaceV8(), "kvm"),
            ("dma-punch", V8(), "kvm"),
            ("split", InPlaceV8(), "kvm"),
            ("freeze", LiveUpdate(), "kvm"),
        ],
        1,
    ),
)
def test_what_chance_finds_the_search_has_found(
    name: str, rules: Semantics, kvm: str
) -> None:
    found = check(Case(SCENARIOS[name], rules, kvm), 300)
    found.assert_sound()


@pytest.mark.parametrize(("rules", "kinds"), some(KINDS[1:], 1), ids=name_of)
def test_conversions_of_two_vms_race_as_those_of_one_do(
    rules: Semantics, kinds: list[str]
) -> None:
    case = Case(SCENARIOS["convert-two-vms"], rules)
    found = explore(case, Limits(seconds=None))
    assert (found.complete, sorted(found.kinds)) == (True, kinds)
