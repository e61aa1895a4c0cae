"""What scenarios share is tracked, or refused; and calls in vain are told."""

from __future__ import annotations

import pytest

from inaccfs.explore import Scenario, assert_clean
from inaccfs.explore.choosers import Chance
from inaccfs.explore.search import Case, Limits, execute, explore
from inaccfs.semantics import V8, V10, Bind, GuestMemfd, InPlaceNext, Plan, Semantics
from tests.explore_checking import check
from tests.unit.test_explore_states import check_deduced


class OnePage(Scenario):
    """A VM, a slot of a page, and a vCPU."""

    pages = 1

    def setup(self) -> None:
        self.fd = self.file(pages=self.pages)
        self.one = self.vm()
        self.slot(self.one, self.fd, pages=self.pages)
        self.cpu = self.one.create_vcpu()
        self.write(self.cpu, 0, "old")


class OtherPage(OnePage):
    """A gfn gets another page of its file, while a vCPU reads it and a punch runs."""

    def setup(self) -> None:
        self.fd = self.file(pages=2)
        self.one = self.vm()
        self.slot(self.one, self.fd, page=0)
        self.cpu = self.one.create_vcpu()
        self.write(self.cpu, 0, "old")

    def actor_vmm(self) -> None:
        self.delete_slot(self.one)
        self.slot(self.one, self.fd, page=1)

    def actor_vcpu(self) -> None:
        self.read(self.cpu, 0)


class NewVcpu(OnePage):
    """A vCPU is made and reads, while the page is punched."""

    def actor_vcpu(self) -> None:
        self.read(self.one.create_vcpu(), 0)

    def actor_punch(self) -> None:
        self.punch(self.fd, 0, 1)


class NoMemory(OnePage):
    """A gfn has no slot at first, and two vCPUs look."""

    def setup(self) -> None:
        self.fd = self.file(pages=1)
        self.one = self.vm()
        self.cpus = [self.one.create_vcpu() for _ in range(2)]

    def actor_first(self) -> None:
        self.read(self.cpus[0], 0)

    def actor_second(self) -> None:
        self.read(self.cpus[1], 0)

    def actor_vmm(self) -> None:
        self.slot(self.one, self.fd)


@pytest.mark.parametrize(
    ("scenario", "rules"),
    [(OtherPage, V8()), (NewVcpu, V10()), (NoMemory, GuestMemfd())],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_chance_finds_the_search_has_found(
    scenario: type[Scenario], rules: Semantics
) -> None:
    found = check(Case(scenario, rules, "no-flush"), 150)
    found.assert_sound()


class TwoFiles(Scenario):
    """A VM has pages of two files, and both are punched."""

    def setup(self) -> None:
        self.one = self.vm()
        self.fds = [self.file(pages=1) for _ in range(2)]
        cpu = self.one.create_vcpu()
        for number, fd in enumerate(self.fds):
            self.slot(self.one, fd, number=number, gfn=number)
            self.write(cpu, number, "old")

    def actor_first(self) -> None:
        self.punch(self.fds[0], 0, 1)

    def actor_second(self) -> None:
        self.punch(self.fds[1], 0, 1)


def test_events_of_two_files_are_not_the_same() -> None:
    """They have the same pages, and differ in their notifiers only."""
    check_deduced(Case(TwoFiles, V8()))


class DeletedLate(Scenario):
    """A slot is deleted whose VM has sent a put that nobody has got."""

    def setup(self) -> None:
        self.fd = self.file(pages=1)
        self.one = self.vm(puts_late=True)
        self.slot(self.one, self.fd)
        self.cpu = self.one.create_vcpu()

    def actor_vcpu(self) -> None:
        self.write(self.cpu, 0, "new")

    def actor_vmm(self) -> None:
        self.delete_slot(self.one)


def test_a_put_comes_before_what_is_sent_after_it() -> None:
    """Where the file is closed first the put would be refused, and the page leak."""
    found = check(Case(DeletedLate, V8()), 150)
    found.assert_sound()
    assert found.kinds == set()


class ConvertedInPlace(OnePage):
    """A page is converted and punched, while a vCPU reads it."""

    def actor_convert(self) -> None:
        self.convert(self.one, 0, 1, private=False)

    def actor_vcpu(self) -> None:
        self.read(self.cpu, 0)


def test_a_page_that_is_converted_in_place_stays() -> None:
    found = explore(Case(ConvertedInPlace, InPlaceNext()), Limits(seconds=None))
    assert (found.complete, found.kinds, found.calls.always_refused) == (True, [], {})


def test_a_guest_that_gets_an_error_is_no_error_of_the_scenario() -> None:
    """EFAULT: by these rules a gfn in no slot is shared, and then its slot comes."""
    found = explore(Case(NoMemory, InPlaceNext()), Limits(seconds=None))
    assert (found.complete, found.kinds) == (True, [])


class TwoPunches(OnePage):
    """Of two pages."""

    pages = 2

    def setup(self) -> None:
        super().setup()
        self.write(self.cpu, 1, "old")

    def actor_second(self) -> None:
        self.punch(self.fd, 1, 2)

    def actor_first(self) -> None:
        self.punch(self.fd, 0, 1)


class SecondWaits(Chance):
    """The second punch stops before its page goes, until nobody else can go on."""

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        # 0 is the VM's thread, and 1 the second punch.
        if depth == 0:
            return 1
        return max(enabled, key=lambda actor: (actor != 1, actor))


def test_a_punch_is_judged_while_another_one_runs() -> None:
    schedule = execute(Case(TwoPunches, V8(), "no-zap"), SecondWaits(), notes=True)
    found = [(each.kind, each.text) for each in schedule.violations]
    assert len(found) == 2
    for gfn, (kind, text) in enumerate(found):
        assert kind == "stale-mapping"
        assert f"the punch has returned, and gfn {gfn} " in text


class Silent(V8):
    """A punch sends no event."""

    def plan(self, *, punches: bool) -> Plan:
        return Plan()


class Grown(Scenario):
    """A page past those that the file had at first has been punched."""

    def setup(self) -> None:
        self.fd = self.file(pages=0)
        self.truncate(self.fd, 8)
        self.one = self.vm()
        self.slot(self.one, self.fd, page=6)
        self.write(self.one.create_vcpu(), 0, "old")
        self.punch(self.fd, 6, 7)

    def actor_other(self) -> None:
        self.allocate(self.fd, 0, 1)


def test_a_page_of_a_file_that_has_grown_is_looked_at_in_the_end() -> None:
    schedule = execute(Case(Grown, Silent()), Chance())
    [found] = schedule.violations
    assert (found.kind, "all is over, and gfn 0 of vm" in found.text) == (
        *("stale-mapping", True),
    )


# --- calls in vain --------------------------------------------------------------------


class Nowhere(OnePage):
    """It reads where there is no slot, and punches what there is not."""

    def setup(self) -> None:
        super().setup()
        self.memory_failure(self.one, self.fd, 0)

    def actor_vcpu(self) -> None:
        self.read(self.cpu, 7)
        self.read(self.cpu, 0)

    def actor_file(self) -> None:
        self.truncate(self.fd, 1)
        self.truncate(self.fd, 2)


def test_calls_that_are_always_refused_are_known() -> None:
    vain = explore(Case(Nowhere, V8()), Limits(seconds=None)).calls.always_refused
    assert set(vain) == {
        "setup: memory-failure of page 0",
        "vcpu: read of gfn 7",
        "file: truncation to 1 pages",
        "file: truncation to 2 pages",
    }
    assert "exits" in vain["vcpu: read of gfn 7"]


class Sometimes(OnePage):
    """A read that comes before its slot, or after it."""

    def setup(self) -> None:
        self.fd = self.file(pages=1)
        self.one = self.vm()
        self.cpu = self.one.create_vcpu()

    def actor_vcpu(self) -> None:
        self.read(self.cpu, 0)

    def actor_slot(self) -> None:
        self.slot(self.one, self.fd)


def test_what_is_granted_in_one_schedule_is_not_in_vain() -> None:
    assert not explore(
        Case(Sometimes, Bind()), Limits(seconds=None)
    ).calls.always_refused


def test_assert_clean_warns_of_calls_in_vain() -> None:
    with pytest.warns(UserWarning, match="Nowhere: always refused: ") as caught:
        assert_clean(Nowhere, "v10")
    warned = "\n".join(str(each.message) for each in caught)
    assert "Nowhere: always refused: vcpu: read of gfn 7: exits: " in warned
    assert {each.filename for each in caught} == {__file__}
