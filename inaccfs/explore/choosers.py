"""Which schedule comes next: by chance, all, those with few switches, or one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.explore.schedule import Key, Step

    Clock = dict[int, int]


class UnstableError(Exception):
    """The same choices have led somewhere else."""


_MOST_CHANGES: Final = 3

# In steps: changes come before the end of most schedules.
_SHORT: Final = 30


class Chance:
    """At random: each step, and in every other schedule few switches.

    Some bugs show where actors alternate all the time, and others where one is held up
    for long. For the latter actors have priorities, which change up to three times: see
    Burckhardt and others, ASPLOS 2010.
    """

    def __init__(self, seed: int = 0) -> None:
        self._dice: Final = random.Random(seed)
        self.steps: list[Step] = []
        self._by_step = False
        # By actor; the highest one goes on, but at a change it becomes the lowest.
        self._priorities: dict[int, float] = {}
        self._changes: set[int] = set()

    def begin(self) -> None:
        """A schedule begins."""
        self.steps = []
        self._by_step = not self._by_step
        if self._by_step:
            return
        self._priorities = {}
        count = self._dice.randrange(_MOST_CHANGES + 1)
        self._changes = {self._dice.randrange(_SHORT) for _ in range(count)}

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

    def end(self, pending: list[tuple[int, Key]]) -> None:
        """See `Chooser`."""

    def advance(self) -> bool:
        """Prepare the next schedule; False if there is none."""
        return True


class Replay(Chance):
    """One schedule; after its end each actor goes on as long as it can."""

    def __init__(self, wanted: Sequence[int]) -> None:
        super().__init__()
        self._wanted: Final = wanted

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """See `Chooser`. Raises `UnstableError`."""
        if depth >= len(self._wanted):
            return current if current in enabled else enabled[0]
        actor = self._wanted[depth]
        if actor not in enabled:
            raise UnstableError(
                f"step {depth + 1} cannot be taken: the scenario does not do the same "
                "each time"
            )
        return actor


class Node:
    """A step of the schedule under way, and what else may be chosen there."""

    __slots__ = (
        *("backtrack", "chosen", "clock", "done", "enabled", "holds", "left"),
        *("preemptions", "previous", "sleep", "step"),
    )

    def __init__(self, enabled: list[int], chosen: int) -> None:
        self.enabled: Final = enabled
        self.chosen = chosen
        self.step: Step | None = None
        # Of `All`. Those to be chosen here, and those that have been.
        self.backtrack = {chosen}
        self.done: set[int] = set()
        # What has been explored from here, each with what it touched: nothing else
        # comes of it before something that conflicts.
        self.sleep: dict[int, dict[Key, bool]] = {}
        # The last step of each actor that happens before this one or is it.
        self.clock: Clock = {}
        # The locks that the actor has.
        self.holds: frozenset[Key] = frozenset()
        # Of `Bounded`.
        self.left: list[int] = []
        self.preemptions = 0
        self.previous = -1


class _Tree:
    """Schedules, depth first."""

    def __init__(self) -> None:
        self.stack: Final[list[Node]] = []
        self._depth = 0

    def begin(self) -> None:
        """A schedule begins."""
        self._depth = 0

    @property
    def steps(self) -> list[Step]:
        """Those of the last schedule."""
        return [node.step for node in self.stack if node.step is not None]

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """See `Chooser`. Raises `UnstableError`."""
        if depth < len(self.stack):
            node = self.stack[depth]
            if node.enabled != enabled:
                raise UnstableError(
                    f"before step {depth + 1} not the same actors can go on as the "
                    "time before"
                )
            return node.chosen
        made = self._node(enabled, current)
        if made is None:
            return None
        self.stack.append(made)
        return made.chosen

    def _node(self, enabled: list[int], current: int) -> Node | None:
        raise NotImplementedError

    def record(self, step: Step) -> None:
        """See `Chooser`."""
        self.stack[self._depth].step = step
        self._depth += 1

    def end(self, pending: list[tuple[int, Key]]) -> None:
        """See `Chooser`."""


class Bounded(_Tree):
    """All with at most so many preemptions: switches from an actor that could go on."""

    def __init__(self, bound: int) -> None:
        super().__init__()
        self._bound: Final = bound

    def _node(self, enabled: list[int], current: int) -> Node:
        stays = current in enabled
        node = Node(enabled, current if stays else enabled[0])
        if self.stack:
            last = self.stack[-1]
            node.preemptions = last.preemptions + (
                last.previous >= 0 and last.chosen != last.previous
            )
        node.previous = current if stays else -1
        if not stays or node.preemptions < self._bound:
            node.left = [each for each in enabled if each != node.chosen]
        return node

    def advance(self) -> bool:
        """Prepare the next schedule; False if there is none."""
        while self.stack:
            node = self.stack[-1]
            if node.left:
                node.chosen = node.left.pop(0)
                return True
            self.stack.pop()
        return False


def conflict(one: dict[Key, bool], other: dict[Key, bool]) -> bool:
    """Whether the order of two steps matters."""
    if len(one) > len(other):
        one, other = other, one
    for key, write in one.items():
        found = other.get(key)
        if found is not None and (write or found):
            return True
    return False


class All(_Tree):
    """One of each class of schedules that differ only in what does not matter.

    Dynamic partial order reduction, after Flanagan and Godefroid (POPL 2005), with
    sleep sets (Godefroid 1996). Conflicts are those that were seen.
    """

    def __init__(self, twins: Sequence[frozenset[int]] = ()) -> None:
        """*twins* are sets of actors of which one is like the other."""
        super().__init__()
        self._twins: Final = {one: group for group in twins for one in group}
        # From which depth on steps are new.
        self._fresh = 0
        self._pending: list[tuple[int, Key]] = []

    def _node(self, enabled: list[int], current: int) -> Node | None:
        sleep: dict[int, dict[Key, bool]] = {}
        if self.stack:
            parent = self.stack[-1]
            assert parent.step is not None
            touched = parent.step.touched
            sleep = {
                actor: its
                for actor, its in parent.sleep.items()
                if actor != parent.chosen and not conflict(its, touched)
            }
        awake = [each for each in enabled if each not in sleep]
        if not awake:
            return None
        node = Node(enabled, current if current in awake else awake[0])
        node.sleep = sleep
        return node

    def end(self, pending: list[tuple[int, Key]]) -> None:
        """See `Chooser`."""
        self._pending = pending

    def advance(self) -> bool:
        """Prepare the next schedule; False if there is none."""
        stack = self.stack
        while stack and stack[-1].step is None:
            # It was chosen, and did not come to its end.
            stack.pop()
        self._races()
        while stack:
            node = stack[-1]
            node.done.add(node.chosen)
            if node.step is not None:
                node.sleep[node.chosen] = node.step.touched
            left = [
                each
                for each in node.backtrack
                if each not in node.done
                and each not in node.sleep
                and not self._is_mirrored(len(stack) - 1, each)
            ]
            if left:
                node.chosen = min(left)
                node.step = None
                self._fresh = len(stack) - 1
                return True
            stack.pop()
        return False

    def _is_mirrored(self, depth: int, actor: int) -> bool:
        """Whether a twin has been chosen there, and neither had taken a step."""
        group = self._twins.get(actor)
        if group is None:
            return False
        node = self.stack[depth]
        others = group & (node.done | node.sleep.keys())
        if not others:
            return False
        begun = {each.chosen for each in self.stack[:depth]}
        return actor not in begun and bool(others - begun)

    def _races(self) -> None:
        by_key: dict[Key, list[tuple[int, bool]]] = {}
        clocks: dict[int, Clock] = {}
        holding: dict[int, set[Key]] = {}
        for index, node in enumerate(self.stack):
            step = node.step
            assert step is not None
            actor = node.chosen
            mine = holding.setdefault(actor, set())
            node.holds = frozenset(mine)
            if step.taken:
                mine.update(step.taken)
            if step.released:
                mine.difference_update(step.released)
            if index >= self._fresh:
                before = clocks.get(actor, {})
                node.clock = self._race(index, actor, step.touched, before, by_key)
                node.clock[actor] = index
            clocks[actor] = node.clock
            for key, write in step.touched.items():
                by_key.setdefault(key, []).append((index, write))
        for actor, wanted in self._pending:
            # What it would have done next conflicts, too.
            before = clocks.get(actor, {})
            self._race(len(self.stack), actor, {wanted: True}, before, by_key)
        self._fresh = len(self.stack)

    def _race(
        self,
        here: int,
        actor: int,
        touched: dict[Key, bool],
        before: Clock,
        by_key: dict[Key, list[tuple[int, bool]]],
    ) -> Clock:
        """Find with which earlier steps step *here* could change places.

        *before* is the clock of the actor's last step. Returns that of this one.
        """
        stack = self.stack
        clock = dict(before)
        seen = {
            index
            for key, write in touched.items()
            for index, wrote in by_key.get(key, ())
            if write or wrote
        }
        for index in seen:
            for other, last in stack[index].clock.items():
                if clock.get(other, -1) < last:
                    clock[other] = last
        # What happens before this step by way of another one that it conflicts with:
        # to change places with that comes first.
        covered = dict(before)
        for index in sorted(seen, reverse=True):
            node = stack[index]
            if node.chosen == actor or covered.get(node.chosen, -1) >= index:
                continue
            if node.holds and not node.holds.isdisjoint(touched):
                # It has a lock that this one wants: they are never enabled together.
                continue
            for other, last in node.clock.items():
                if covered.get(other, -1) < last:
                    covered[other] = last
            self._reverse(index, here, actor, clock)
        return clock

    def _reverse(self, index: int, here: int, actor: int, clock: Clock) -> None:
        """Step *here* of *actor*, whose *clock* it is, is to come before step *index*.

        What has to come before that step comes first, so one of those is chosen there
        that can be the first. (Not *actor* in any case: with sleep sets that would miss
        some. They are the source sets of Abdulla and others, POPL 2014.)
        """
        stack = self.stack
        node = stack[index]
        passed = node.chosen
        # The first step of each actor after *index* that does not depend on it.
        first: dict[int, int] = {}
        ways: set[int] = set()
        for at in range(index + 1, here):
            one = stack[at]
            if one.clock.get(passed, -1) >= index or one.chosen in first:
                continue
            if self._may_be_first(one.clock, one.chosen, first):
                ways.add(one.chosen)
            first[one.chosen] = at
        if actor not in first and self._may_be_first(clock, actor, first):
            ways.add(actor)
        ways &= set(node.enabled)
        if not ways:
            node.backtrack.update(node.enabled)
        elif not ways & node.backtrack:
            node.backtrack.add(actor if actor in ways else min(ways))

    @staticmethod
    def _may_be_first(clock: Clock, actor: int, first: dict[int, int]) -> bool:
        return all(
            clock.get(other, -1) < at for other, at in first.items() if other != actor
        )
