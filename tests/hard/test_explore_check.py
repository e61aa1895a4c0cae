"""The search of all states finds each outcome that random schedules find."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from inaccfs.explore.choosers import Bounded
from inaccfs.explore.load import versions
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case
from inaccfs.explore.states import States
from inaccfs.semantics import (
    V7,
    V8,
    V10,
    GuestMemfd,
    InPlaceNext,
    InPlaceV8,
    LiveUpdate,
)
from tests import explore_page, explore_programs
from tests.explore_checking import check
from tests.explore_commuting import Checker
from tests.hard.budget import some
from tests.unit.test_explore_shared import NoMemory, OtherPage, TwoPunches
from tests.unit.test_explore_states import check_deduced, outcomes, programs

if TYPE_CHECKING:
    from inaccfs.explore import Scenario
    from inaccfs.semantics import Semantics


LARGE = ["two-vcpus", "late-slot", "delete-slot-vcpu", "peer-silent"]


@pytest.mark.parametrize(
    ("scenario", "version", "kvm"),
    some(list(product(SCENARIOS, explore_page.distinct(), explore_page.KVMS)), 2),
)
def test_what_chance_finds_the_search_has_found(
    scenario: str, version: str, kvm: str
) -> None:
    found = check(Case(SCENARIOS[scenario], versions()[version], kvm), 300)
    found.assert_sound()


# Those of many states would take minutes.
SMALL = [
    *product(
        [name for name in SCENARIOS if name not in LARGE],
        [V7(), V8(), V10(), GuestMemfd()],
        explore_page.KVMS,
    ),
    *product(
        ["convert-in-place", "convert-two-vms", "split", "dma", "freeze"],
        [InPlaceV8(), InPlaceNext(), LiveUpdate()],
        ["kvm"],
    ),
]


@pytest.mark.parametrize(("scenario", "rules", "kvm"), some(SMALL, 2))
def test_steps_that_are_not_taken_come_to_what_is_deduced(
    scenario: str, rules: Semantics, kvm: str
) -> None:
    check_deduced(Case(SCENARIOS[scenario], rules, kvm))


@pytest.mark.parametrize(
    ("scenario", "rules"),
    some([(OtherPage, V7()), (TwoPunches, InPlaceNext()), (NoMemory, V8())], 1),
)
def test_so_do_those_of_scenarios_of_ones_own(
    scenario: type[Scenario], rules: Semantics
) -> None:
    check_deduced(Case(scenario, rules, "no-retry"))


@pytest.mark.parametrize("number", some(range(26, 1300), 25))
def test_steps_of_random_scenarios_that_do_not_conflict_commute(number: int) -> None:
    kvm = explore_page.KVMS[number % 2]
    rules = explore_programs.RULES[number % len(explore_programs.RULES)]
    checker = Checker(Case(explore_programs.program(number), rules, kvm))
    for seed in range(6):
        assert checker.sample(seed) is None


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
