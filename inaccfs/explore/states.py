"""All states: from each the search goes on once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.explore.choosers import Node, Tree

if TYPE_CHECKING:
    from inaccfs.explore.schedule import Step
    from inaccfs.explore.state import Key

    Touched = dict[Key, bool]


def conflict(one: Touched, other: Touched) -> bool:
    """Whether the order of two steps matters."""
    if len(one) > len(other):
        one, other = other, one
    for key, write in one.items():
        found = other.get(key)
        if found is not None and (write or found):
            return True
    return False


class Visited:
    """A state that a schedule has come to."""

    __slots__ = ("sleep", "taken")

    def __init__(self, sleep: set[int]) -> None:
        # The actors that were never chosen here, for their step comes to the same
        # before; and the steps of those that were.
        self.sleep: Final = sleep
        self.taken: Final[dict[int, Step]] = {}


class _Node(Node):
    """A state on the way."""

    __slots__ = ("sleep", "visited")

    def __init__(
        self,
        enabled: list[int],
        chosen: int,
        left: list[int],
        sleep: dict[int, Touched],
        visited: Visited,
    ) -> None:
        super().__init__(enabled, chosen, left)
        self.sleep: Final = sleep
        self.visited: Final = visited


class States(Tree[_Node]):
    """Every state that a schedule can come to, depth first, with sleep sets.

    After Godefroid, "Partial-Order Methods for the Verification of Concurrent Systems"
    (1996), 5.3: of steps that conflict with nothing that was chosen instead of them one
    order is taken. If a state is met again, only those actors are chosen that were
    asleep each time before, and are not now. So each state is met that there is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.visited: Final[dict[int, Visited]] = {}

    def _node(self, enabled: list[int], current: int) -> _Node | None:
        assert self._schedule is not None
        sleep = self._asleep(enabled)
        number = self._schedule.state_number()
        visited = self.visited.get(number)
        if visited is None:
            visited = self.visited[number] = Visited(set(sleep))
            left = [each for each in enabled if each not in sleep]
        else:
            left = [each for each in enabled if each in visited.sleep - sleep.keys()]
            for actor, step in visited.taken.items():
                if actor not in visited.sleep:
                    sleep.setdefault(actor, step.touched)
            visited.sleep.difference_update(left)
        if not left:
            return None
        chosen = current if current in left else left[0]
        left.remove(chosen)
        return _Node(enabled, chosen, left, sleep, visited)

    def _asleep(self, enabled: list[int]) -> dict[int, Touched]:
        """Whose steps have been taken instead of one before, and come to the same."""
        if not self.stack:
            return {}
        last = self.stack[-1]
        assert last.step is not None
        touched = last.step.touched
        return {
            actor: its
            for actor, its in last.sleep.items()
            if actor in enabled and actor != last.chosen and not conflict(its, touched)
        }

    def record(self, step: Step) -> None:
        """See `Chooser`."""
        super().record(step)
        node = self.stack[self._depth - 1]
        node.visited.taken[step.actor] = step

    def advance(self) -> bool:
        """Prepare the next schedule; False if there is none."""
        while self.stack:
            node = self.stack[-1]
            if node.step is not None:
                node.sleep[node.chosen] = node.step.touched
            if node.left:
                node.chosen = node.left.pop(0)
                node.step = None
                return True
            self.stack.pop()
        return False
