"""The scenarios of the proposals: what the search finds, and that it is sound."""

from __future__ import annotations

from typing import Final

import pytest

from inaccfs.explore.proposals import Dma, DmaPunch, Freeze
from inaccfs.explore.scenario import Scenario
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case, Limits, explore
from inaccfs.iommu import WAYS
from inaccfs.semantics import (
    V8,
    HugetlbRfc,
    InPlaceNext,
    InPlaceV8,
    LiveUpdate,
    Semantics,
)

ALL = Limits(seconds=None)


class AsksFirst(InPlaceV8):
    kvm_attribute_read = "before get-pfn"


class EndsFirst(InPlaceV8):
    stored = "after the end"


class Race(EndsFirst):
    """The race of hugetlb-rfc, in pages of 4 KiB."""

    kvm_attribute_read = "before get-pfn"


KINDS: Final[list[tuple[Semantics, list[str]]]] = [
    (InPlaceV8(), []),
    (InPlaceNext(), []),
    (AsksFirst(), []),
    (EndsFirst(), []),
    (Race(), ["wrong-kind"]),
    (HugetlbRfc(), ["wrong-kind"]),
]


def name_of(one: object) -> str | None:
    """Of rules, which may be a test's own."""
    return type(one).__name__ if isinstance(one, Semantics) else None


@pytest.mark.parametrize(
    ("scenario", "rules", "kinds"),
    [
        *(("convert-in-place", *each) for each in KINDS),
        # tests/hard has the others.
        *(("convert-two-vms", *KINDS[at]) for at in (0, 4)),
    ],
    ids=name_of,
)
def test_only_an_end_before_the_store_and_a_look_before_get_pfn_race(
    scenario: str, rules: Semantics, kinds: list[str]
) -> None:
    """A fault between the two finds the old attribute, and no event comes after it."""
    found = explore(Case(SCENARIOS[scenario], rules), ALL)
    assert found.complete
    assert sorted(found.kinds) == kinds


@pytest.mark.parametrize("rules", [InPlaceV8(), InPlaceNext()])
def test_a_kvm_that_does_not_retry_maps_the_wrong_kind(rules: Semantics) -> None:
    found = explore(Case(SCENARIOS["convert-in-place"], rules, "no-retry"), ALL)
    assert "wrong-kind" in found.kinds


@pytest.mark.parametrize("scenario", ["split", "freeze"])
def test_the_others_are_clean(scenario: str) -> None:
    rules = {"split": InPlaceNext(), "freeze": LiveUpdate()}[scenario]
    found = explore(Case(SCENARIOS[scenario], rules), ALL)
    assert (found.complete, sorted(found.kinds)) == (True, [])


def test_a_split_has_the_race_of_its_conversions() -> None:
    found = explore(Case(SCENARIOS["split"], HugetlbRfc()), Limits(seconds=20))
    assert "wrong-kind" in found.kinds


class FrozenPunch(Scenario):
    """The smallest version of `freeze`."""

    setup = Freeze.setup
    actor_freeze = Freeze.actor_freeze
    actor_punch = Freeze.actor_punch


def test_pages_that_come_while_a_file_is_frozen_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inaccfs.shim.filestate.FileState.check_frozen", lambda _: None)
    monkeypatch.setattr("inaccfs.shim.freezing._refuse", lambda *_: None)
    found = explore(Case(FrozenPunch, LiveUpdate()), ALL)
    assert "changed-frozen" in found.kinds


def dma(learns: str, scenario: type[Scenario]) -> type[Scenario]:
    return type(scenario.__name__, (scenario,), {"learns": learns})


@pytest.mark.parametrize("learns", WAYS)
@pytest.mark.parametrize(
    ("rules", "scenario", "dirty"),
    [
        (V8(), DmaPunch, set(WAYS)),
        (InPlaceV8(), DmaPunch, {"nothing", "pins"}),
        (InPlaceV8(), Dma, {"nothing"}),
        (InPlaceNext(), Dma, {"nothing"}),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_which_ways_to_learn_of_changes_are_clean(
    learns: str, rules: Semantics, scenario: type[Scenario], dirty: set[str]
) -> None:
    """As in the table of docs/experiments/dma.md, which tests/hard compares."""
    found = explore(Case(dma(learns, scenario), rules), ALL)
    assert found.complete
    assert ("use-after-change" in found.kinds) is (learns in dirty), found.kinds
