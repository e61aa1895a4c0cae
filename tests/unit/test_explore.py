"""`inaccfs explore` finds the known errors of each version, and misses none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inaccfs.explore import carriers
from inaccfs.explore.mutex import Mutex
from inaccfs.explore.scenarios import SCENARIOS, Mapped
from inaccfs.explore.search import Case, Limits, Outcome, ScenarioError, explore
from inaccfs.semantics import V7, V8, V10, Bind, GuestMemfd, Semantics
from tests.explore_checking import check

if TYPE_CHECKING:
    from inaccfs.explore.schedule import Schedule

UAF, STALE, UNPAIRED = "use-after-free", "stale-mapping", "unpaired"
READ = "unexplained-read"


class Before(V8):
    """Sends events before the removal only."""

    order = "before"


def explored(name: str, rules: Semantics, kvm: str = "kvm") -> Outcome:
    outcome = explore(Case(SCENARIOS[name], rules, kvm), Limits(seconds=None))
    assert outcome.complete
    return outcome


# --- known errors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rules", "kinds"),
    [
        ("punch", V7(), []),
        ("punch", V8(), [UAF]),
        ("punch", Before(), [STALE, READ, UAF]),
        ("punch", V10(), []),
        ("mapped", V8(), [UAF]),
        ("mapped", Before(), [STALE, READ, UAF]),
        ("mapped", GuestMemfd(), []),
        ("convert", V8(), []),
        ("convert", V10(), []),
        ("delete-slot", V8(), []),
        ("delete-slot", Bind(), []),
    ],
)
def test_what_is_known_comes_out(name: str, rules: Semantics, kinds: list[str]) -> None:
    assert explored(name, rules).kinds == sorted(kinds)


@pytest.mark.parametrize("rules", [V10(), Bind()], ids=lambda rules: rules.name)
def test_a_bracket_is_no_use_to_a_kvm_that_does_not_retry(rules: Semantics) -> None:
    assert explored("mapped", rules, "no-retry").kinds == [STALE, READ, UAF]


def test_the_late_slot_of_v10_is_in_danger_in_the_first_punch() -> None:
    found = explore(Case(SCENARIOS["late-slot"], V10()), Limits(None, schedules=200))
    assert found.kinds == [STALE, UNPAIRED, UAF]
    assert found.found[UNPAIRED].size[0] <= 15


# --- against random schedules ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rules", "kvm"),
    [
        ("mapped", V10(), "no-retry"),
        ("punch", V7(), "kvm"),
        ("convert", Before(), "no-retry"),
        ("delete-slot", Bind(), "kvm"),
        ("two-vms", V8(), "kvm"),
    ],
)
def test_what_chance_finds_the_search_has_found(
    name: str, rules: Semantics, kvm: str
) -> None:
    """Here are a few cases; tests/hard has all scenarios and versions."""
    found = check(Case(SCENARIOS[name], rules, kvm), 100)
    assert (found.missed, found.unlike) == ([], [])
    assert found.hit > 10
    assert found.kinds_by_chance <= found.kinds


@pytest.mark.parametrize("rules", [V8(), V10()], ids=lambda rules: rules.name)
def test_conflicts_of_locks_find_the_same_as_conflicts_of_data(
    rules: Semantics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conflicts of locks do not depend on the tracking of what their holders touch."""
    case = Case(SCENARIOS["mapped"], rules, "no-retry")
    by_data = check(case, 100)
    made = Mutex.__init__

    def always(
        mutex: Mutex, schedule: Schedule, name: str, *, always: bool = True
    ) -> None:
        made(mutex, schedule, name, always=True)

    monkeypatch.setattr(Mutex, "__init__", always)
    by_lock = check(case, 100)
    by_lock.assert_sound()
    assert by_data.kinds == by_lock.kinds
    assert by_data.states <= by_lock.states


# --- threads and greenlets ------------------------------------------------------------


def test_threads_do_what_greenlets_do(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(SCENARIOS["mapped"], V8())
    with_greenlets = check(case, 20)
    monkeypatch.setattr(carriers, "greenlet", None)
    assert check(case, 20) == with_greenlets


def test_shared_state_that_is_not_tracked_raises() -> None:
    class Forgetful(Mapped):
        def actor_other(self) -> None:
            setattr(self.one._mmu, "newcomer", 1)  # noqa: B010

    with pytest.raises(ScenarioError, match=r"Mmu\.newcomer is shared"):
        explore(Case(Forgetful, V8()))
