"""The search against plain enumeration: it finds the outcomes of all schedules."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from inaccfs.explore import carriers
from inaccfs.explore.choosers import Bounded
from inaccfs.explore.choosing import UnstableError
from inaccfs.explore.scenario import Scenario
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import Case, execute
from inaccfs.explore.states import States
from inaccfs.explore.sync import Condition, Lock
from inaccfs.semantics import V7, V8, V10, InPlaceV8, Semantics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.explore.schedule import Schedule

    Program = list[list[tuple[str, int]]]

VARIABLES, LOCKS = 3, 2


class Shared:
    """The state that toys share. It is tracked by hand, as parts of inaccfs are."""

    __module__ = "inaccfs"

    def __init__(self, actors: int) -> None:
        self.variables = [0] * VARIABLES
        # What each actor has read.
        self.registers: list[list[int]] = [[] for _ in range(actors)]


class Toy(Scenario):
    """Actors that read, write and count variables, take locks, and wait."""

    program: Program

    def setup(self) -> None:
        self.schedule: Schedule = self._world.schedule
        self.shared = Shared(len(self.program))
        self.locks = [Lock(self.schedule, "toy") for _ in range(LOCKS)]
        self.condition = Condition(self.schedule, self.locks[0])
        for index in range(VARIABLES):
            self.schedule.state.of_key["toy", index] = self.value(index)

    def value(self, index: int) -> Callable[[], int]:
        return lambda: self.shared.variables[index]

    def actors(self) -> Iterator[tuple[str, Callable[[], None]]]:
        for index, operations in enumerate(self.program):
            yield f"a{index}", self.act(index, operations)

    def act(self, actor: int, operations: list[tuple[str, int]]) -> Callable[[], None]:
        def run() -> None:
            for name, argument in operations:
                getattr(self, name)(actor, argument)

        return run

    def look(self, actor: int, index: int) -> None:
        self.schedule.point("reads")
        self.schedule.touch(("toy", index), False)
        self.shared.registers[actor].append(self.shared.variables[index])

    def set(self, actor: int, index: int) -> None:
        self.schedule.point("writes")
        self.schedule.touch(("toy", index))
        self.shared.variables[index] = 10 * actor + len(self.shared.registers[actor])

    def add(self, actor: int, index: int) -> None:
        self.schedule.point("adds")
        self.schedule.count(("toy", index))
        self.shared.variables[index] += 1

    def move(self, actor: int, index: int) -> None:
        """A step inside a lock, with a scheduling point."""
        with self.locks[index % LOCKS]:
            self.look(actor, index)
            self.schedule.point("goes on")
            other = (index + 1) % VARIABLES
            self.schedule.touch(("toy", other))
            self.shared.variables[other] += self.shared.registers[actor][-1] + 1

    def wait(self, actor: int, index: int) -> None:
        """Wait until another actor has changed the variable, or for ever."""

        def changed() -> int:
            self.schedule.touch(("toy", index), False)
            return self.shared.variables[index]

        with self.locks[0]:
            self.shared.registers[actor].append(self.condition.wait_for(changed))

    def wake(self, actor: int, index: int) -> None:
        with self.locks[0]:
            self.schedule.touch(("toy", index))
            self.shared.variables[index] += actor + 1
            self.condition.notify_all()


def programs(counts: tuple[int, ...], number: int) -> list[Program]:
    """Random programs, with the given number of operations for each actor."""
    dice = random.Random(repr(counts))
    words = ["look", "set", "add", "move", "wait", "wake"]
    return [
        [
            [(dice.choice(words), dice.randrange(VARIABLES)) for _ in range(count)]
            for count in counts
        ]
        for _ in range(number)
    ]


def outcomes(program: Program, chooser: Bounded | States) -> tuple[set[object], int]:
    """The outcomes of a chooser's schedules, and the number of schedules.

    An outcome is the variables at the end, and what each actor has read.
    """
    found: set[object] = set()
    number = 0

    last: tuple[int, ...] = ()

    class Mine(Toy):
        def always(self) -> None:
            nonlocal last
            last = tuple(self.shared.variables)
            found.update(map(tuple, enumerate(map(tuple, self.shared.registers))))

    Mine.program = program
    while True:
        schedule = execute(Case(Mine, V8()), chooser)
        number += 1
        if schedule.ended != "pruned":
            found.add((last, frozenset(each.kind for each in schedule.violations)))
        if not chooser.advance():
            return found, number


@pytest.mark.parametrize(
    ("counts", "number"),
    [((3, 3), 20), ((4, 2), 12), ((2, 2, 1), 3), ((1, 1, 2), 12)],
    ids=str,
)
def test_tiny_programs_come_to_what_all_their_schedules_come_to(
    counts: tuple[int, ...], number: int
) -> None:
    fewer = 0
    for program in programs(counts, number):
        every, many = outcomes(program, Bounded(99))
        found, few = outcomes(program, States())
        assert found == every, program
        fewer += many - few
    assert fewer > 0


def test_what_is_repeated_need_not_be_looked_at() -> None:
    """With and without a look at such steps the search finds the same states."""
    case = Case(SCENARIOS["delete-slot"], V10(), "no-end")
    never, always = States(looked_at=10**9), States(looked_at=1)
    assert ends(case, never) == ends(case, always)
    assert never.visited.keys() == always.visited.keys()


class TakesAll(States):
    """Deduces nothing: it takes each step."""

    def _settle(self, number: int) -> None:
        pass


def check_deduced(case: Case) -> None:
    """What a search deduces is what comes of the steps if they are taken."""
    taken, deduced = TakesAll(), States()
    ends(case, taken)
    ends(case, deduced)
    assert taken.visited.keys() == deduced.visited.keys()
    for number, visited in taken.visited.items():
        other = deduced.visited[number]
        assert visited.after == other.after
        for actor, step in visited.taken.items():
            assert step.touched == other.taken[actor].touched
            assert step.known == other.taken[actor].known


@pytest.mark.parametrize(
    ("name", "rules", "kvm"),
    [
        ("mapped", V10(), "no-retry"),
        ("convert", V8(), "no-retry"),
        ("put-late", V7(), "kvm"),
        ("delete-slot", V10(), "kvm"),
        ("split", InPlaceV8(), "kvm"),
    ],
)
def test_steps_that_are_not_taken_come_to_what_is_deduced(
    name: str, rules: Semantics, kvm: str
) -> None:
    """A few; tests/hard has all scenarios."""
    check_deduced(Case(SCENARIOS[name], rules, kvm))


class Fickle(Scenario):
    """In one execution an actor does not do what it does in all others."""

    at = -1
    # The page that it punches, and what it writes.
    pages, texts = (0, 0), ("a", "a")
    count = 0

    def setup(self) -> None:
        Fickle.count += 1
        self.odd = Fickle.count == self.at
        self.fd, vm = self.file(pages=2), self.vm()
        self.slot(vm, self.fd, pages=2)
        self.cpu = vm.create_vcpu()

    def actor_writes(self) -> None:
        self.write(self.cpu, 0, self.texts[self.odd])
        self.write(self.cpu, 1, "more")

    def actor_punches(self) -> None:
        page = self.pages[self.odd]
        self.punch(self.fd, page, page + 1)


@pytest.mark.parametrize(
    ("different", "at", "message"),
    [
        # The report says where, even if the steps are not recorded.
        ({"pages": (0, 1)}, 4, "of punches, is 'fallocate punches"),
        # In an execution whose steps are recorded.
        ({"texts": ("a", "b")}, 2, "changes it to something else"),
    ],
)
def test_what_differs_in_a_step_that_is_repeated_is_told(
    different: dict[str, tuple[object, object]], at: int, message: str
) -> None:
    mine = type("Mine", (Fickle,), {"at": at, **different})
    Fickle.count = 0
    with pytest.raises(UnstableError, match=message):
        ends(Case(mine, V10()), States())


def test_no_thread_is_left_when_the_first_step_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mine(Fickle):
        at = 4

        def actor_writes(self) -> None:
            if self.odd:
                self.punch(self.fd, 1, 2)
            self.write(self.cpu, 0, "a")

    monkeypatch.setattr(carriers, "greenlet", None)
    threads = threading.active_count()
    Fickle.count = 0
    with pytest.raises(UnstableError, match="step 1, of writes, is 'fallocate"):
        ends(Case(Mine, V10()), States())
    assert threading.active_count() == threads


@pytest.mark.parametrize("rules", [V7(), V8(), V10()], ids=lambda rules: rules.name)
def test_a_scenario_comes_to_what_all_its_schedules_come_to(rules: Semantics) -> None:
    case = Case(SCENARIOS["grow"], rules)
    assert ends(case, Bounded(99)) == ends(case, States())


def ends(case: Case, chooser: Bounded | States) -> set[object]:
    """The states in which schedules end, each with what has gone wrong."""
    found: set[object] = set()
    while True:
        schedule = execute(case, chooser)
        if schedule.ended != "pruned":
            kinds = frozenset(each.kind for each in schedule.violations)
            found.add((schedule.state_number(), kinds))
        if not chooser.advance():
            return found
