"""docs/exploring.md has the scenarios and the results of `inaccfs explore`."""

from __future__ import annotations

import pytest

from inaccfs.explore.buggy import KVMS
from inaccfs.explore.load import versions
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.schedule import KINDS
from inaccfs.explore.search import Case, Limits, explore
from inaccfs.semantics import VERSIONS
from tests import explore_page
from tests.explore_page import Place

# tests/hard has the others.
QUICK = ("mapped", "grow")


def test_the_table_has_all_scenarios_and_versions() -> None:
    cells = explore_page.parse(explore_page.PAGE.read_text())
    assert {cell.version for cell in cells} == set(versions())
    assert {cell.scenario for cell in cells} == set(explore_page.TABLED)
    assert {cell.kvm for cell in cells} == set(explore_page.KVMS)


@pytest.mark.parametrize("kvm", explore_page.KVMS)
@pytest.mark.parametrize("scenario", QUICK)
def test_the_table_says_what_is_found(scenario: str, kvm: str) -> None:
    cells = explore_page.parse(explore_page.PAGE.read_text())
    for version in explore_page.distinct():
        found = explore_page.cell(scenario, kvm, version, Limits(seconds=None))
        assert found == cells[Place(scenario, kvm, version)], version


def test_versions_that_share_a_search_do_not_differ() -> None:
    """They would differ if a rule mattered that the explorer ignores."""
    made = {version.name: version for version in VERSIONS}
    for same in explore_page.distinct().values():
        if len(same) == 1:
            continue
        cases = [Case(SCENARIOS["mapped"], made[each]()) for each in same]
        found = [explore(case, Limits(seconds=None)) for case in cases]
        counts = {(one.schedules, one.pruned, *one.kinds) for one in found}
        assert len(counts) == 1, same


@pytest.mark.parametrize("word", [*KINDS, *KVMS, *SCENARIOS])
def test_the_page_has_each_word(word: str) -> None:
    assert f"`{word}`" in explore_page.PAGE.read_text()
