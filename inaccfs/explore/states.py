"""All states: from each the search goes on once."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs.explore.choosers import difference
from inaccfs.explore.choosing import UnstableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.state import Step

_FAR: Final = 300
"""So many states are looked at for one where there is something to do."""

_LOOKED_AT: Final = 10
"""In one of so many schedules, also what is repeated has to touch and see the same."""


def conflict(one: Step, other: Step) -> bool:
    """Whether the order of two steps matters."""
    if len(one.touched) > len(other.touched):
        one, other = other, one
    theirs = other.touched
    for key, write in one.touched.items():
        found = theirs.get(key)
        if found is not None and (write or found):
            return True
    # That of counting does not; but what comes of both is not the sum of what comes of
    # each.
    return not one.counted.isdisjoint(other.counted)


class Visited:
    """A state that a schedule has come to."""

    __slots__ = ("after", "before", "closed", "taken", "todo")

    def __init__(self, before: tuple[int, int] | None, todo: list[int]) -> None:
        # From which state it was come to first, and by whose step.
        self.before: Final = before
        # Who can take a step here, and has not.
        self.todo: Final = todo
        # Who has taken one, and what state it leads to.
        self.taken: Final[dict[int, Step]] = {}
        self.after: Final[dict[int, int]] = {}
        # From here on there is nothing to do.
        self.closed = False


class States:
    """Every state that a schedule can come to: from each every actor takes a step.

    Where two steps do not conflict, they come to the same in either order, and each
    changes the number of the state by the same. So of four such steps the fourth is
    not taken if the state is known to which it leads.
    """

    compares: ClassVar[bool] = True

    def __init__(self, *, looked_at: int = _LOOKED_AT) -> None:
        """In one of *looked_at* schedules also what is repeated is looked at."""
        self.visited: Final[dict[int, Visited]] = {}
        self.steps: list[Step] = []
        # States where there may be something to do; the last one is next.
        self._open: Final[list[int]] = []
        self._schedule: Schedule | None = None
        # Who is to be chosen next, and in which state, all of it known; and whether
        # these steps need not be looked at.
        self._plan: deque[tuple[int, int]] = deque()
        self._looked_at: Final = looked_at
        self._trusts = False
        self._schedules = 0
        # The state of the last choice, and the actor.
        self._at: int | None = None
        self._chosen = -1

    def begin(self, schedule: Schedule) -> None:
        """A schedule begins."""
        self._schedule = schedule
        self.steps = []
        self._at = None
        self._plan = self._path(self._open[-1]) if self._open else deque()
        self._schedules += 1
        # Early, as many searches are short.
        self._trusts = self._schedules % self._looked_at != 2 % self._looked_at

    def ahead(self) -> Sequence[Step]:
        """See `Chooser`."""
        if not self._trusts or not self._plan:
            return ()
        found = [self.visited[number].taken[actor] for number, actor in self._plan]
        self._at, self._chosen = self._plan[-1]
        self._plan.clear()
        self.steps += found
        return found

    def advance(self) -> bool:
        """Prepare the next schedule; False if there is none."""
        while self._open:
            number = self._open[-1]
            self._settle(number)
            if self.visited[number].todo:
                return True
            self._open.pop()
        return False

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """See `Chooser`. Raises `UnstableError`."""
        number = self._arrive(enabled)
        here = self.visited[number]
        if not self._plan:
            self._settle(number)
            if not here.todo:
                self._plan = self._way(number)
        if self._plan:
            _, chosen = self._plan.popleft()
        elif here.todo:
            chosen = current if current in here.todo else here.todo[0]
            here.todo.remove(chosen)
        else:
            return None
        if chosen not in enabled:
            raise UnstableError(
                f"step {depth + 1} cannot be taken as it was the time before"
            )
        self._at, self._chosen = number, chosen
        return chosen

    def record(self, step: Step) -> None:
        """See `Chooser`. Raises `UnstableError`."""
        assert self._at is not None
        self.steps.append(step)
        before = self.visited[self._at].taken.setdefault(step.actor, step)
        if before is not step and (
            (before.known, before.after) != (step.known, step.after)
        ):
            assert self._schedule is not None
            name = self._schedule.actors[step.actor].name
            raise UnstableError(
                f"step {len(self.steps)}, of {name}, {difference(before, step)}"
            )

    def end(self) -> None:
        """See `Chooser`."""
        self._arrive([])

    def _arrive(self, enabled: list[int]) -> int:
        """The last step has led to a state: which?"""
        assert self._schedule is not None
        before = None
        if self._at is not None:
            before = self._at, self._chosen
            known = self.visited[self._at].after.get(self._chosen)
            if known is not None:
                return known
        number = self._schedule.state_number()
        if self._at is not None:
            self.visited[self._at].after[self._chosen] = number
        if number not in self.visited:
            self.visited[number] = Visited(before, list(enabled))
            if enabled:
                self._open.append(number)
        return number

    def _settle(self, number: int) -> None:
        """Note what comes of steps of a state without taking them."""
        here = self.visited[number]
        for actor in list(here.todo):
            for other, after in here.after.items():
                there = self.visited[after]
                step = there.taken.get(actor)
                last = there.after.get(actor)
                if (
                    step is None
                    or last is None
                    or other == actor
                    or (found := number ^ after ^ last) not in self.visited
                    or conflict(here.taken[other], step)
                ):
                    continue
                here.todo.remove(actor)
                here.taken[actor], here.after[actor] = step, found
                break

    def _path(self, number: int) -> deque[tuple[int, int]]:
        """From the beginning to a state."""
        found: deque[tuple[int, int]] = deque()
        before = self.visited[number].before
        while before is not None:
            found.appendleft(before)
            before = self.visited[before[0]].before
        return found

    def _way(self, number: int) -> deque[tuple[int, int]]:
        """From a state to the next where there is something to do."""
        came: dict[int, tuple[int, int] | None] = {number: None}
        line = deque([number])
        while line and len(came) < _FAR:
            at = line.popleft()
            here = self.visited[at]
            if here.todo:
                self._settle(at)
            if here.todo:
                found: deque[tuple[int, int]] = deque()
                while (before := came[at]) is not None:
                    found.appendleft(before)
                    at = before[0]
                return found
            if not here.closed:
                for actor, after in here.after.items():
                    if after not in came:
                        came[after] = at, actor
                        line.append(after)
        if not line:
            for each in came:
                self.visited[each].closed = True
        return deque()
