"""`inaccfs explore` finds each bug that a test injects into the KVM or the shim.

For each bug there is a scenario, rules, and the kind of violation that shows it; the
same scenario does not have this violation without the bug. If no schedule can show a
bug, the reason is given.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from inaccfs.explore.buggy import KVMS
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case, Limits, ScenarioError, explore
from inaccfs.kvm.vmm import Vmm
from inaccfs.semantics import V7, V8, V10, Bind, GuestMemfd, Plan, Semantics
from inaccfs.semantics.rules import INVALIDATE_END, INVALIDATE_START
from tests.unit import kvm_bugs, shim_bugs

if TYPE_CHECKING:
    from collections.abc import Callable

    Break = Callable[[pytest.MonkeyPatch], None]


class Shown(NamedTuple):
    """The search that shows a bug."""

    scenario: str
    rules: type[Semantics]
    kind: str


class Before(V8):
    """Sends events before the removal only."""

    order = "before"


class NeverEnds(V10):
    """Sends a start, and no end."""

    def plan(self, *, punches: bool) -> Plan:
        return Plan(before=INVALIDATE_START)


class NeverStarts(V10):
    """Sends an end, and no start."""

    def plan(self, *, punches: bool) -> Plan:
        return Plan(after=INVALIDATE_END)


class EachWalk(V10):
    """Binds ranges, and lets the list change between start and end."""

    scope = "range"


UAF, STALE, READ = "use-after-free", "stale-mapping", "unexplained-read"
EVER, UNPAIRED = "waits-for-ever", "unpaired"

# The bugs that the tests of `inaccfs kvm stress` use, with their names for --kvm.
KVM: Final[dict[str, tuple[str, Shown]]] = {
    "zap": ("no-zap", Shown("mapped", V8, STALE)),
    "retry": ("no-retry", Shown("mapped", V10, STALE)),
    "range": ("short-zap", Shown("mapped", V10, STALE)),
    "arithmetic": ("wrong-page", Shown("two-slots", V10, READ)),
    "discard": ("no-discard", Shown("convert-back", V10, READ)),
    "references": ("no-put", Shown("mapped", V10, "leaked-reference")),
    "puts": ("put-twice", Shown("mapped", V10, "refused-put")),
    "callback": ("callback-raises", Shown("mapped", V10, "raises")),
    "unregister": ("no-unregister", Shown("mapped", V10, "leaked-notifier")),
    "counts": ("no-counts", Shown("mapped", V10, "miscounted")),
    "end": ("no-end", Shown("punch", V10, EVER)),
    "waiting": ("no-wake", Shown("punch", V10, EVER)),
}

# Why no schedule can show a bug as it is injected; what is tested instead.
EXCUSED: Final = {
    "waiting": "it waits by a lock of its own, and nobody decides when; no-wake waits "
    "by one of the explorer's, and is found",
    "guest": "it is in the guest of `kvm stress`; here that is the scenario, and one "
    "that raises is status 4",
}

# Bugs that those tests do not have.
MORE_KVMS: Final = {
    "zap-after-ack": Shown("mapped", V10, UAF),
    "no-flush": Shown("mapped", V10, UAF),
}

SHIM: Final = {
    "no event": Shown("mapped", V8, STALE),
    "forgets a notifier": Shown("two-vms", V10, STALE),
    "waits for nobody": Shown("mapped", V10, UAF),
    "loses answers": Shown("mapped", V8, EVER),
    "keeps who has gone": Shown("mapped", V10, "leaked-notifier"),
    "wrong unit": Shown("two-slots", V10, STALE),
    "short event": Shown("mapped", V10, STALE),
    "unlocked list": Shown("late-slot", Bind, UNPAIRED),
    "fails in silence": Shown("poison", V10, STALE),
    "no page locks": Shown("mapped", V7, UAF),
    "unlocks and wakes nobody": Shown("punch", V7, EVER),
    "forgets a put": Shown("mapped", V8, "leaked-reference"),
    "puts twice": Shown("mapped", V8, "refused-put"),
    "frees what is held": Shown("mapped", GuestMemfd, "freed-held"),
    "never frees": Shown("mapped", V10, "leaked-frame"),
    "keeps what the dead had": Shown("peer-silent", V8, "leaked-reference"),
}

# The order of events is a rule: each order is compared with the correct one.
ORDERS: Final = [
    (V8, V10, Shown("mapped", V8, UAF)),
    (Before, V10, Shown("mapped", Before, STALE)),
    (NeverEnds, V10, Shown("punch", NeverEnds, EVER)),
    # No KVM registers for an end alone.
    (NeverStarts, V10, Shown("mapped", NeverStarts, STALE)),
    (EachWalk, Bind, Shown("late-slot", EachWalk, UNPAIRED)),
]

# Random schedules find nearly all of them soon; the systematic search comes next.
SOON: Final = Limits(seconds=None, schedules=30)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug's callback raises in hundreds of schedules, and each is logged."""
    monkeypatch.setattr(logging.getLogger("inaccfs.inprocess"), "disabled", True)


# By scenario and rules, for bugs that have these in common.
_SOUND: Final[dict[tuple[str, str], set[str]]] = {}


def sound(scenario: str, rules: type[Semantics]) -> set[str]:
    """The kinds of violations that are found without a bug."""
    key = scenario, rules.__name__
    if key not in _SOUND:
        _SOUND[key] = found(Shown(scenario, rules, ""))
    return _SOUND[key]


def found(shown: Shown, kvm: str = "kvm") -> set[str]:
    return set(explore(Case(SCENARIOS[shown.scenario], shown.rules(), kvm), SOON).found)


def check_bug(shown: Shown, break_it: Break, patch: pytest.MonkeyPatch) -> None:
    assert shown.kind not in sound(shown.scenario, shown.rules)
    break_it(patch)
    assert shown.kind in found(shown)


def test_no_bug_is_left_out() -> None:
    assert KVM.keys() | EXCUSED.keys() == kvm_bugs.BUGS.keys()
    assert SHIM.keys() == shim_bugs.BUGS.keys()
    by_name = {kvm for kvm, _ in KVM.values()}
    assert {"kvm"} | by_name | MORE_KVMS.keys() == KVMS.keys()


@pytest.mark.parametrize("bug", [name for name in KVM if name not in EXCUSED])
def test_a_bug_of_the_kvm(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, shown = KVM[bug]
    check_bug(shown, kvm_bugs.BUGS[bug], monkeypatch)


@pytest.mark.parametrize(
    ("kvm", "shown"), [*KVM.values(), *MORE_KVMS.items()], ids=lambda value: str(value)
)
def test_a_kvm_with_a_bug(kvm: str, shown: Shown) -> None:
    assert shown.kind not in sound(shown.scenario, shown.rules)
    assert shown.kind in found(shown, kvm)


@pytest.mark.parametrize("bug", SHIM)
def test_a_bug_of_the_shim(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_bug(SHIM[bug], shim_bugs.BUGS[bug], monkeypatch)


@pytest.mark.parametrize(
    ("wrong", "right", "shown"), ORDERS, ids=lambda value: getattr(value, "name", "")
)
def test_a_wrong_order(
    wrong: type[Semantics], right: type[Semantics], shown: Shown
) -> None:
    assert wrong is shown.rules
    assert shown.kind not in sound(shown.scenario, right)
    assert shown.kind in found(shown)


def test_who_waits_for_ever_is_not_shown_for_long() -> None:
    shown = explore(Case(SCENARIOS["punch"], V10(), "no-end"), SOON).found[EVER]
    lines, _ = shown.size
    assert lines < 60


def test_a_bug_of_the_guest_is_one_of_the_scenario(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Vmm, "convert", lambda *_, **__: 1 / 0)
    with pytest.raises(ScenarioError, match=r"convert: .*: ZeroDivisionError"):
        explore(Case(SCENARIOS["convert"], V10()), SOON)
