"""What steps touch is tracked: steps that do not conflict commute, and more."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from inaccfs.explore import Scenario, search
from inaccfs.explore.choosers import Bounded, Chance
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.schedule import Schedule, Violation
from inaccfs.explore.search import Case, Limits, Outcome, execute, explore
from inaccfs.explore.state import Step
from inaccfs.explore.tracked_file import File, List
from inaccfs.semantics import V8, V10, GuestMemfd, InPlaceV8, LiveUpdate, Semantics
from tests.explore_commuting import Checker
from tests.explore_programs import RULES, Free, FreeInPlace, NoFill, Silent, program

ALL = Limits(seconds=None)


# --- steps that do not conflict commute -----------------------------------------------


class OnePage(Scenario):
    """A VM with a page of a file that has no notifier but the VM's."""

    pages = 1

    def setup(self) -> None:
        self.fd = self.file(pages=self.pages)
        self.one = self.vm()
        self.slot(self.one, self.fd, pages=self.pages)
        self.cpu = self.one.create_vcpu()


class Untouched(OnePage):
    """A page is allocated, and nobody touches it before it is punched."""

    def actor_allocate(self) -> None:
        self.allocate(self.fd, 0, 1)

    def actor_punch(self) -> None:
        self.punch(self.fd, 0, 1)


class Plain(Untouched):
    """No notifier: each call is made at once."""

    def setup(self) -> None:
        self.fd = self.file(pages=1)
        self.vm()


class Grown(Scenario):
    """A page past those that the file had at first is converted and read."""

    def setup(self) -> None:
        self.fd = self.file(pages=0)
        self.truncate(self.fd, 8)
        self.one = self.vm()
        self.slot(self.one, self.fd, page=5)
        self.cpu = self.one.create_vcpu()

    def actor_convert(self) -> None:
        self.convert_file(self.one, self.fd, 5, 6, private=False)

    def actor_vcpu(self) -> None:
        self.read(self.cpu, 0)


class BackAndForth(OnePage):
    """A page is shared for a while, and a vCPU maps it meanwhile."""

    def actor_convert(self) -> None:
        self.convert_file(self.one, self.fd, 0, 1, private=False)
        self.convert_file(self.one, self.fd, 0, 1, private=True)

    def actor_vcpu(self) -> None:
        self.read(self.cpu, 0)


class Sized(OnePage):
    """A page is allocated that its file gets meanwhile; and another file is used."""

    def setup(self) -> None:
        super().setup()
        self.other = self.file(pages=1)

    def actor_other(self) -> None:
        self.punch(self.other, 0, 1)

    def actor_allocate(self) -> None:
        self.allocate(self.fd, 1, 2)

    def actor_truncate(self) -> None:
        self.truncate(self.fd, 2)


class NewNotifier(OnePage):
    """A VM makes its slot while pages are converted one by one."""

    pages = 2

    def setup(self) -> None:
        super().setup()
        self.other = self.vm("other")
        self.delete_slot(self.one)

    def actor_convert(self) -> None:
        self.convert_file(self.one, self.fd, 0, 2, private=False)

    def actor_slot(self) -> None:
        self.slot(self.other, self.fd, page=1)


class Present(Scenario):
    """A page that has memory is not converted."""

    def setup(self) -> None:
        self.fd = self.file(pages=1)
        self.one = self.vm()

    def actor_convert(self) -> None:
        self.convert_file(self.one, self.fd, 0, 1, private=False)

    def actor_allocate(self) -> None:
        self.allocate(self.fd, 0, 1)


class NoWait(InPlaceV8):
    """get-pfn does not wait for conversions."""

    get_waits = False


COMMUTING: list[tuple[type[Scenario], Semantics, str]] = [
    (Untouched, NoFill(), "kvm"),
    (Grown, NoWait(), "kvm"),
    (BackAndForth, InPlaceV8(), "no-retry"),
    (Sized, Free(), "kvm"),
    (Sized, Silent(), "kvm"),
    (NewNotifier, FreeInPlace(), "kvm"),
    (Present, FreeInPlace(), "kvm"),
]


@pytest.mark.parametrize(
    ("scenario", "rules", "kvm"),
    COMMUTING,
    ids=lambda one: getattr(one, "__name__", type(one).__name__),
)
def test_steps_that_do_not_conflict_commute(
    scenario: type[Scenario], rules: Semantics, kvm: str
) -> None:
    checker = Checker(Case(scenario, rules, kvm))
    for seed in range(40):
        assert checker.sample(seed) is None
    assert checker.compared > 0


@pytest.mark.parametrize("number", [*range(26), 75, 293, 650, 879])
def test_those_of_random_scenarios_commute(number: int) -> None:
    """A few, and those that have found something; tests/hard has more."""
    case = Case(program(number), RULES[number % len(RULES)])
    checker = Checker(case)
    for seed in range(4):
        assert checker.sample(seed) is None


@pytest.mark.parametrize(
    ("kind", "name", "scenario", "rules"),
    [
        (List, "drop", SCENARIOS["peer-dies"], V10()),
        (File, "check_frozen", SCENARIOS["freeze"], LiveUpdate()),
        (File, "first_present", Present, FreeInPlace()),
    ],
)
def test_what_is_not_tracked_is_found(
    kind: type,
    name: str,
    scenario: type[Scenario],
    rules: Semantics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without one of the methods that track."""
    monkeypatch.setattr(kind, name, getattr(kind.__base__, name))
    checker = Checker(Case(scenario, rules))
    assert any(checker.sample(seed) for seed in range(200))


@pytest.mark.parametrize("scenario", [Untouched, Plain])
def test_states_with_and_without_a_page_have_two_hashes(
    scenario: type[Untouched],
) -> None:
    """lseek(2) reports a page as a hole that nobody has touched."""
    found: dict[int, set[int]] = {}
    last = 0

    class Mine(scenario):  # type: ignore[misc,valid-type]
        def always(self) -> None:
            nonlocal last
            last = os.fstat(self.fd).st_blocks

    chooser = Bounded(99)
    while True:
        schedule = execute(Case(Mine, NoFill()), chooser)
        found.setdefault(schedule.state_number(), set()).add(last)
        if not chooser.advance():
            break
    assert {blocks for each in found.values() for blocks in each} == {0, 8}
    assert all(len(each) == 1 for each in found.values())


# --- violations that were missed, and others that were none ---------------------------


def test_a_wrong_mapping_that_is_gone_in_the_end_is_found() -> None:
    """The page is private again when all is over."""
    found = explore(Case(BackAndForth, InPlaceV8(), "no-retry"), ALL)
    assert "wrong-kind" in found.kinds
    assert "the conversion has returned" in found.found["wrong-kind"].text


class Refused(Scenario):
    """A slot that is refused, because another has its gfn."""

    def setup(self) -> None:
        self.fds = [self.file(pages=2) for _ in range(2)]
        self.one = self.vm()
        self.slot(self.one, self.fds[0])
        self.write(self.one.create_vcpu(), 0, "old")

    def actor_slot(self) -> None:
        with suppress(OSError):
            self.slot(self.one, self.fds[1], page=1, number=1)

    def actor_punch(self) -> None:
        self.punch(self.fds[0], 1, 2)


def test_a_slot_that_is_refused_changes_no_gfn() -> None:
    found = explore(Case(Refused, V10()), ALL)
    assert (found.complete, found.kinds) == (True, [])


class PunchedTwice(OnePage):
    """Two punches of a page, of which a schedule may be pruned in the middle."""

    def setup(self) -> None:
        super().setup()
        self.write(self.cpu, 0, "old")

    def actor_first(self) -> None:
        self.punch(self.fd, 0, 1)

    def actor_second(self) -> None:
        self.punch(self.fd, 0, 1)

    def actor_vcpu(self) -> None:
        self.read(self.cpu, 0)


def test_a_stack_that_unwinds_violates_nothing() -> None:
    found = explore(Case(PunchedTwice, V8()), ALL)
    assert (found.complete, list(found.kinds)) == (True, ["use-after-free"])


class ByAnother(OnePage):
    """Pages are put and unpinned by another handle of the file than they were got."""

    def actor_client(self) -> None:
        one, other = (self.one.client.file(self.fd) for _ in range(2))
        other.put_pfn(one.get_pfn(0).pfn)
        self.convert_file(self.one, self.fd, 0, 1, private=False)
        other.unpin_pages(one.pin_pages(0, 1))


def test_a_client_puts_and_unpins_by_any_handle_of_the_file() -> None:
    found = explore(Case(ByAnother, InPlaceV8()), ALL)
    assert (found.complete, found.kinds) == (True, [])


class TwoFailures(OnePage):
    """Two pages fail at once."""

    pages = 2

    def setup(self) -> None:
        super().setup()
        self.write(self.cpu, 0, "old")
        self.write(self.cpu, 1, "old")

    def actor_first(self) -> None:
        self.memory_failure(self.one, self.fd, 0)

    def actor_second(self) -> None:
        self.memory_failure(self.one, self.fd, 1)


class Shrinks(OnePage):
    """A file shrinks and grows while a vCPU reads it."""

    def setup(self) -> None:
        super().setup()
        self.write(self.cpu, 0, "old")

    def actor_truncate(self) -> None:
        self.truncate(self.fd, 0)
        self.truncate(self.fd, 1)

    def actor_vcpu(self) -> None:
        self.read(self.cpu, 0)


class FrozenByTheDead(OnePage):
    """The VM that has frozen a file dies."""

    def actor_freeze(self) -> None:
        self.freeze(self.one, self.fd)

    def actor_death(self) -> None:
        self.kill(self.one)

    def actor_punch(self) -> None:
        self.punch(self.fd, 0, 1)


@pytest.mark.parametrize(
    ("scenario", "rules"),
    [(TwoFailures, GuestMemfd()), (Shrinks, Free()), (FrozenByTheDead, LiveUpdate())],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_is_right_is_no_violation(
    scenario: type[Scenario], rules: Semantics
) -> None:
    found = explore(Case(scenario, rules), ALL)
    assert (found.complete, found.kinds) == (True, [])


class Keeps(V10):
    """A punch of a page with references is refused."""

    pinned_punch = "refused"


class TwoPunches(OnePage):
    """Of one page, which a client gets in between, so that one may be refused."""

    def setup(self) -> None:
        super().setup()
        self.write(self.cpu, 0, "old")
        self.bare = self.vm("bare").client.file(self.fd)

    def actor_first(self) -> None:
        self.punch(self.fd, 0, 1)

    def actor_second(self) -> None:
        self.punch(self.fd, 0, 1)

    def actor_user(self) -> None:
        self.get_and_put(self.bare, 0)


def test_a_punch_that_is_refused_judges_what_another_has_left_to_it() -> None:
    chance = Chance()
    texts: set[str] = set()
    for _ in range(1000):
        found = execute(Case(TwoPunches, Keeps(), "no-zap"), chance)
        texts |= {each.text for each in found.violations}
        if any("the punch has been refused, and gfn 0" in each for each in texts):
            return
    raise AssertionError(texts)


# --- counts ---------------------------------------------------------------------------


def test_a_shorter_schedule_is_sought_for_a_time_that_counts_pruned_ones() -> None:
    """Also if the first was found after many that were pruned."""
    outcome = Outcome(Case(OnePage, V10()), ALL)
    steps = [_step(0), _step(1)]
    outcome.pruned = 10_000
    for count in (2, 1):
        schedule = Schedule(Chance())
        schedule.violations.append(Violation("always", "", count - 1))
        search._note(outcome, schedule, steps, 0.0)
    assert outcome.found["always"].size == (1, 0)
    outcome.pruned += 2000
    outcome.found["always"] = outcome.found["always"]._replace(size=(9, 9))
    schedule = Schedule(Chance())
    schedule.violations.append(Violation("always", "", 0))
    search._note(outcome, schedule, steps, 0.0)
    assert outcome.found["always"].size == (9, 9)


def _step(actor: int) -> Step:
    return Step(actor, {"key": True}, frozenset(), 0, "", "", [], [])
