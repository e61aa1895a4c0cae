"""The search that visits each state once."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs.explore.causes import conflict
from inaccfs.explore.choosers import difference
from inaccfs.explore.choosing import UnstableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.explore.choosing import Execution
    from inaccfs.explore.state import Step

_FAR: Final = 300
"""The limit of the search for a near state where a step is left, in states."""

_LOOKED_AT: Final = 10
"""In one of so many schedules repeated steps are checked, too."""


class Visited:
    """A state that a schedule has come to."""

    __slots__ = ("after", "before", "closed", "taken", "todo")

    def __init__(self, todo: list[int]) -> None:
        # The states from which it was reached, each with the actor that took the step.
        # The first one that was found comes first.
        self.before: Final[list[tuple[int, int]]] = []
        # Actors that can take a step here, and have not taken it yet.
        self.todo: Final = todo
        # The step that each actor has taken here, and the state that it leads to.
        self.taken: Final[dict[int, Step]] = {}
        self.after: Final[dict[int, int]] = {}
        # No state that can be reached from here has a step to be taken.
        self.closed = False


class States:
    """Visits every state that can be reached, and lets every actor take a step there.

    Two steps that do not conflict lead to one state in either order, and each changes
    the hash of the state by the same xor in both. So of the four steps of such a
    diamond the fourth is not executed if its state has been visited.

    A schedule first repeats the steps to the open state with the fewest steps before
    it, so that it repeats little, and most of the steps after that are new.
    """

    compares: ClassVar[bool] = True

    def __init__(self, *, looked_at: int = _LOOKED_AT) -> None:
        """Check repeated steps, too, in one of *looked_at* schedules."""
        self.visited: Final[dict[int, Visited]] = {}
        self.steps: list[Step] = []
        # A heap of the states that may have steps left: by depth, and at one depth in
        # the order of visits.
        self._open: Final[list[tuple[int, int, int]]] = []
        self._schedule: Execution | None = None
        # The next choices, all of steps that were taken before: each a state and an
        # actor. `_trusts` says that these steps are not checked.
        self._plan: deque[tuple[int, int]] = deque()
        self._looked_at: Final = looked_at
        self._trusts = False
        self._schedules = 0
        # These states in the order of visits; and the first state of all schedules.
        self._visits: Final[list[int]] = []
        self._first = 0
        # The state and the actor of the last choice.
        self._at: int | None = None
        self._chosen = -1

    def begin(self, schedule: Execution) -> None:
        """A schedule begins."""
        self._schedule = schedule
        self.steps = []
        self._at = None
        self._schedules += 1
        # The first check comes early, as many searches are short.
        self._trusts = self._schedules % self._looked_at != 2 % self._looked_at
        if not self._open:
            self._plan = deque()
        elif self._trusts:
            self._plan = self._path(self._open[0][-1])
        else:
            # A longer path has more steps to look at.
            self._plan = self._path(self._last())

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
            *_, number = self._open[0]
            self._settle(number)
            if self.visited[number].todo:
                return True
            heappop(self._open)
        return False

    def _last(self) -> int:
        """The last visited state that has steps left."""
        while self._visits:
            number = self._visits[-1]
            self._settle(number)
            if self.visited[number].todo:
                return number
            self._visits.pop()
        # The steps that were left have been settled meanwhile.
        return self._first

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
        """The state that the last step has led to."""
        assert self._schedule is not None
        if self._at is not None:
            known = self.visited[self._at].after.get(self._chosen)
            if known is not None:
                return known
        number = self._schedule.state_number()
        if number not in self.visited:
            count = len(self.visited)
            if not count:
                self._first = number
            self.visited[number] = Visited(list(enabled))
            if enabled:
                heappush(self._open, (len(self.steps), count, number))
                self._visits.append(number)
        if self._at is not None:
            self._lead(self._at, self._chosen, number)
        return number

    def _lead(self, number: int, actor: int, after: int) -> None:
        """A step leads from a state to another one."""
        self.visited[number].after[actor] = after
        self.visited[after].before.append((number, actor))

    def _settle(self, number: int) -> None:
        """Deduce the results of steps from a state without executing them."""
        here = self.visited[number]
        for actor in list(here.todo):
            found = self._before_another(number, actor) or self._after_another(
                number, actor
            )
            if found is not None:
                here.todo.remove(actor)
                here.taken[actor], after = found
                self._lead(number, actor, after)

    def _before_another(self, number: int, actor: int) -> tuple[Step, int] | None:
        """A step, and its state: it has been taken after another one from here."""
        here = self.visited[number]
        for other, after in here.after.items():
            there = self.visited[after]
            step, last = there.taken.get(actor), there.after.get(actor)
            if (
                step is not None
                and last is not None
                and other != actor
                and (found := number ^ after ^ last) in self.visited
                and not conflict(here.taken[other], step)
            ):
                return step, found
        return None

    def _after_another(self, number: int, actor: int) -> tuple[Step, int] | None:
        """The same, for a step that was taken instead of the one that leads here."""
        for before, other in self.visited[number].before:
            there = self.visited[before]
            step, after = there.taken.get(actor), there.after.get(actor)
            if step is None or after is None or other == actor:
                continue
            found = self.visited[after].after.get(other)
            if found is not None and not conflict(there.taken[other], step):
                return step, found
        return None

    def _path(self, number: int) -> deque[tuple[int, int]]:
        """The choices that lead from the beginning to a state."""
        found: deque[tuple[int, int]] = deque()
        while number != self._first:
            before = self.visited[number].before[0]
            found.appendleft(before)
            number, _ = before
        return found

    def _way(self, number: int) -> deque[tuple[int, int]]:
        """The choices that lead from a state to a near one where a step is left."""
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
