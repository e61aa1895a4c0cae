"""Choosers: at random, with few preemptions, or by a given schedule."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs.explore.choosing import UnstableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.explore.choosing import Execution
    from inaccfs.explore.state import Key, Step

_MOST_CHANGES: Final = 3

# In steps: priorities change before this step, as most schedules are this long.
_SHORT: Final = 30


class Chance:
    """Chooses at random; in every other schedule with few switches.

    Some bugs need actors that alternate all the time, and others need one that is
    delayed for long. For the latter, actors have priorities, which change up to three
    times: see Burckhardt and others, ASPLOS 2010.
    """

    compares: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self._dice: Final = random.Random(seed)
        self.steps: list[Step] = []
        self._by_step = False
        # By actor. The one with the highest priority takes the next step; at a change
        # its priority becomes the lowest.
        self._priorities: dict[int, float] = {}
        self._changes: set[int] = set()

    def begin(self, schedule: Execution) -> None:
        """See `Chooser`."""
        self.steps = []
        self._by_step = not self._by_step
        if self._by_step:
            return
        self._priorities = {}
        count = self._dice.randrange(_MOST_CHANGES + 1)
        self._changes = {self._dice.randrange(_SHORT) for _ in range(count)}

    def ahead(self) -> Sequence[Step]:
        """See `Chooser`."""
        return ()

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """See `Chooser`."""
        if self._by_step:
            return self._dice.choice(enabled)
        priorities = self._priorities
        for actor in enabled:
            if actor not in priorities:
                priorities[actor] = self._dice.random()
        if depth in self._changes and current in enabled:
            priorities[current] = -depth
        return max(enabled, key=priorities.__getitem__)

    def record(self, step: Step) -> None:
        """See `Chooser`."""
        self.steps.append(step)

    def end(self) -> None:
        """See `Chooser`."""

    def advance(self) -> bool:
        """See `Chooser`. There is always one more."""
        return True


class Replay:
    """Repeats one schedule; after it, each actor runs for as long as it can."""

    compares: ClassVar[bool] = False

    def __init__(self, wanted: Sequence[int]) -> None:
        self._wanted: Final = wanted
        self.steps: list[Step] = []

    def begin(self, schedule: Execution) -> None:
        """See `Chooser`."""
        self.steps = []

    def ahead(self) -> Sequence[Step]:
        """See `Chooser`."""
        return ()

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """See `Chooser`. Raises `UnstableError`."""
        if depth >= len(self._wanted):
            return current if current in enabled else enabled[0]
        actor = self._wanted[depth]
        if actor not in enabled:
            raise UnstableError(
                f"step {depth + 1} cannot be taken: the replay ID was changed, or the "
                "scenario does not do the same each time"
            )
        return actor

    def record(self, step: Step) -> None:
        """See `Chooser`."""
        self.steps.append(step)

    def end(self) -> None:
        """See `Chooser`."""

    def advance(self) -> bool:
        """See `Chooser`. There is one schedule."""
        return False


class _Node:
    """A step of the current schedule, and the actors still to be tried there."""

    __slots__ = ("chosen", "enabled", "left", "preemptions", "previous", "step")

    def __init__(self, enabled: list[int], chosen: int, left: list[int]) -> None:
        self.enabled: Final = enabled
        self.chosen = chosen
        self.left: Final = left
        self.step: Step | None = None
        self.preemptions = 0
        # The actor that could have gone on, or -1.
        self.previous = -1


class Bounded:
    """All schedules with at most *bound* switches from an actor that could go on.

    It tries them depth first.
    """

    compares: ClassVar[bool] = True

    def __init__(self, bound: int) -> None:
        self._bound: Final = bound
        self._stack: Final[list[_Node]] = []
        self._depth = 0
        self._schedule: Execution | None = None

    def begin(self, schedule: Execution) -> None:
        """See `Chooser`."""
        self._depth = 0
        self._schedule = schedule

    @property
    def steps(self) -> list[Step]:
        """See `Chooser`."""
        return [node.step for node in self._stack if node.step is not None]

    def ahead(self) -> Sequence[Step]:
        """See `Chooser`. Nothing: `record` gets each step."""
        return ()

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """See `Chooser`. Raises `UnstableError`."""
        if depth == len(self._stack):
            self._stack.append(self._node(enabled, current))
        node = self._stack[depth]
        if node.enabled != enabled:
            raise UnstableError(
                f"before step {depth + 1} not the same actors can go on as the "
                "time before"
            )
        return node.chosen

    def _node(self, enabled: list[int], current: int) -> _Node:
        stays = current in enabled
        node = _Node(enabled, current if stays else enabled[0], [])
        if self._stack:
            last = self._stack[-1]
            node.preemptions = last.preemptions + (
                last.previous >= 0 and last.chosen != last.previous
            )
        node.previous = current if stays else -1
        if not stays or node.preemptions < self._bound:
            node.left.extend(each for each in enabled if each != node.chosen)
        return node

    def record(self, step: Step) -> None:
        """See `Chooser`. Raises `UnstableError`."""
        node = self._stack[self._depth]
        self._depth += 1
        if node.step is None:
            node.step = step
        elif step.known != node.step.known:
            assert self._schedule is not None
            name = self._schedule.actors[step.actor].name
            raise UnstableError(
                f"step {self._depth}, of {name}, {difference(node.step, step)}"
            )

    def end(self) -> None:
        """See `Chooser`."""

    def advance(self) -> bool:
        """See `Chooser`."""
        while self._stack:
            node = self._stack[-1]
            if node.left:
                node.chosen = node.left.pop(0)
                node.step = None
                return True
            self._stack.pop()
        return False


def difference(one: Step, other: Step) -> str:
    """How two executions of a step differ, in words."""
    for key, write in one.touched.items():
        found = other.touched.get(key)
        if found is None:
            return f"{_said(key, write)} once, and not the time after"
        if found != write:
            return f"{_said(key, write)} once, and {_said(key, found)} the time after"
    for key, write in other.touched.items():
        if key not in one.touched:
            return f"{_said(key, write)}, and did not the time before"
    if one.known == other.known:
        return "changes it to something else than the time before"
    return "reads something else than the time before"


def _said(key: Key, write: bool) -> str:
    words = key if isinstance(key, tuple) else (key,)
    return f"{'changes' if write else 'reads'} {' '.join(map(str, words))}"
