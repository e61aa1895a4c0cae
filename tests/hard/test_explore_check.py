"""The search of all states finds each outcome that random schedules find."""

from __future__ import annotations

from itertools import product

import pytest

from inaccfs.explore.choosers import Bounded
from inaccfs.explore.load import versions
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case
from inaccfs.explore.states import States
from tests import explore_page
from tests.explore_checking import check
from tests.hard.budget import some
from tests.unit.test_explore_states import outcomes, programs


@pytest.mark.parametrize(
    ("scenario", "version", "kvm"),
    some(list(product(SCENARIOS, explore_page.distinct(), explore_page.KVMS)), 6),
)
def test_what_chance_finds_the_search_has_found(
    scenario: str, version: str, kvm: str
) -> None:
    found = check(Case(SCENARIOS[scenario], versions()[version], kvm), 300)
    assert (found.missed, found.unlike) == ([], [])
    assert found.kinds_by_chance <= found.kinds


@pytest.mark.parametrize(
    ("counts", "number"),
    some(
        [((3, 3), 30), ((4, 2), 20), ((2, 2, 1), 12), ((1, 1, 2), 30), ((2, 2, 2), 3)],
        1,
    ),
    ids=str,
)
def test_tiny_programs_come_to_what_all_their_schedules_come_to(
    counts: tuple[int, ...], number: int
) -> None:
    """More programs like those of tests/unit."""
    for program in programs(counts, number):
        every, _ = outcomes(program, Bounded(99))
        found, _ = outcomes(program, States())
        assert found == every, program
