"""What chance comes to in any scenario, the search of all states has come to."""

from __future__ import annotations

import pytest

from inaccfs.explore.checking import check
from inaccfs.explore.load import versions
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case
from tests import explore_page


@pytest.mark.parametrize("kvm", explore_page.KVMS)
@pytest.mark.parametrize("version", explore_page.distinct())
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_chance_finds_the_search_has_found(
    scenario: str, version: str, kvm: str
) -> None:
    found = check(Case(SCENARIOS[scenario], versions()[version], kvm), 300)
    assert (found.missed, found.unlike) == ([], [])
    assert found.kinds_by_chance <= found.kinds
