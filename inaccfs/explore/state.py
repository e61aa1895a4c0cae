"""Which state a schedule is in: what is shared, and what each actor has come to know.

Two schedules that lead to one state have the same future, so a search goes on from one
of them only. A state is made of

- the value of each key that a step has touched (see `values`). A key without a value
  has a version instead: who changed it last, with all that this actor knew then;
- for each actor, a hash of what it has seen: the keys that its steps touched, each with
  its value before the step. An actor does the same if it has seen the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence, Set

    Key: TypeAlias = Hashable
    Value: TypeAlias = Hashable


class Actor(Protocol):
    """What is needed of one."""

    @property
    def index(self) -> int: ...

    did: str
    done: bool
    known: int
    label: str
    late: bool


class Step(NamedTuple):
    """What a step has done. A key is touched with True by who changes it."""

    actor: int
    touched: dict[Key, bool]
    # Those of the keys that it has counted, and has not looked at.
    counted: Set[Key]
    # What the actor knows after it: see `Actor.known`.
    known: int
    # What it is, for people; and what the actor is to do next.
    did: str
    label: str
    # Of each key that has been met: the value before the step; of each that it has
    # changed, that after it.
    before: list[tuple[Key, Value]]
    after: list[tuple[Key, Value]]


_NONE: Final[frozenset[Key]] = frozenset()


class State:
    """The shared part, and the hash of all."""

    def __init__(self, *, compares: bool = True) -> None:
        """Nobody *compares* states of a schedule that is drawn by chance."""
        self.compares: Final = compares
        # What finds the value of a key; and of all keys of a kind, by what comes next
        # in each.
        self.of_key: Final[dict[Key, Callable[[], Value]]] = {}
        self.of_kind: Final[dict[Key, Callable[..., Value]]] = {}
        # What is a part of each state, and no step touches.
        self.beside: Final[list[Callable[[], Value]]] = []
        # Of each key that was touched: its value now; and before all steps.
        self._values: Final[dict[Key, Value]] = {}
        self._first: Final[dict[Key, Value]] = {}
        # Those that are not what they were before all steps: the sum of their hashes,
        # as each step changes it by itself.
        self._changed = 0
        # What this step has met, and may touch in a later one.
        self._met: Final[list[Key]] = []

    def begin(self, actors: Sequence[Actor]) -> None:
        """The actors begin."""
        for actor in actors:
            actor.known = actor.index
        # Its first change is told when it has come.
        self.meet("frames")

    def discard(self) -> None:
        """No value is looked at any more."""
        self.of_key.clear()
        self.of_kind.clear()
        self.beside.clear()

    def meet(self, key: Key) -> None:
        """A key is about to be touched: for the first time, maybe."""
        if key not in self._values and self.compares:
            self._values[key] = self._first[key] = self._value(key)

    def meet_early(self, key: Key) -> None:
        """As `meet`, if it will be changed before it is touched, in a later step."""
        if self.compares:
            self.meet(key)
            self._met.append(key)

    def meet_as(self, key: Key, value: Value) -> None:
        """As `meet`, when it has been changed already, and was *value* before."""
        if key not in self._values:
            self._values[key] = self._first[key] = value

    def _value(self, key: Key) -> Value:
        found = self.of_key.get(key)
        if found is not None:
            return found()
        if not isinstance(key, tuple):
            key = (key,)
        of_kind = self.of_kind.get(key[0])
        return None if of_kind is None else of_kind(*key[1:])

    def step(
        self,
        actor: Actor,
        seen: dict[Key, bool],
        touched: dict[Key, bool],
        counted: Set[Key],
    ) -> Step:
        """*actor* has taken a step. It knows what it has *seen* of what it *touched*.

        Those that are *counted* have changed, too.
        """
        if not self.compares:
            return Step(
                *(actor.index, touched, counted or _NONE, 0),
                *(actor.did, actor.label, [], []),
            )
        values = self._values
        known = [(key, write, values[key]) for key, write in seen.items()]
        before = [(key, values[key]) for key in touched]
        if self._met:
            before += [(key, values[key]) for key in self._met]
            self._met.clear()
        actor.known = hash((actor.known, actor.late, tuple(known)))
        after: list[tuple[Key, Value]] = []
        for key, write in touched.items():
            if write or key in counted:
                value = self._value(key)
                if value is None:
                    value = actor.known
                after.append((key, value))
        self._change(after)
        return Step(
            *(actor.index, touched, counted or _NONE, actor.known),
            *(actor.did, actor.label, before, after),
        )

    def _change(self, after: Iterable[tuple[Key, Value]]) -> None:
        values = self._values
        for key, value in after:
            before, first = values[key], self._first[key]
            if before != first:
                self._changed ^= hash((key, before))
            if value != first:
                self._changed ^= hash((key, value))
            values[key] = value

    def repeat(self, steps: Iterable[Step]) -> None:
        """*steps* have been taken that were taken before in another schedule."""
        values, first = self._values, self._first
        now: dict[Key, Value] = {}
        for step in steps:
            for key, value in step.before:
                if key not in values:
                    values[key] = first[key] = value
            now.update(step.after)
        self._change(now.items())

    def number(self, actors: Iterable[Actor], more: Hashable) -> int:
        """The hash of the state; *more* belongs to it.

        If two states differ in one part, so do their hashes, by what depends on that
        part only.
        """
        found = self._changed ^ hash(("more", more))
        for actor in actors:
            found ^= hash((actor.index, None if actor.done else actor.known))
        for index, each in enumerate(self.beside):
            found ^= hash(("beside", index, each()))
        return found
