"""Which state a schedule is in: what is shared, and what each actor has come to know.

Two schedules that lead to one state have the same future, so a search goes on from one
of them only. A state is made of

- the value of each key that a step has touched (see `values`). A key without a value
  has a version instead: who changed it last, with all that this actor knew then;
- for each actor, a hash of what it has seen: the keys that its steps touched, each with
  its value before the step. An actor does the same if it has seen the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    Key: TypeAlias = Hashable
    Value: TypeAlias = Hashable


class Actor(Protocol):
    """What is needed of one."""

    @property
    def index(self) -> int: ...

    done: bool
    known: int
    late: bool


class State:
    """The shared part, and the hash of all."""

    def __init__(self) -> None:
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

    def begin(self, actors: Sequence[Actor]) -> None:
        """The actors begin."""
        for actor in actors:
            actor.known = actor.index
        # Its first change is told when it has come.
        self.meet("frames")

    def meet(self, key: Key) -> None:
        """A key is about to be touched: for the first time, maybe."""
        if key not in self._values:
            self._values[key] = self._first[key] = self._value(key)

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
        counted: Iterable[Key],
    ) -> None:
        """*actor* has taken a step. It knows what it has *seen* of what it *touched*.

        Those that are *counted* have changed, too.
        """
        values = self._values
        known = [(key, write, values[key]) for key, write in seen.items()]
        actor.known = hash((actor.known, actor.late, tuple(known)))
        for key, write in touched.items():
            if write:
                self._changes(actor, key)
        for key in counted:
            self._changes(actor, key)

    def _changes(self, actor: Actor, key: Key) -> None:
        value = self._value(key)
        if value is None:
            value = actor.known
        before, first = self._values[key], self._first[key]
        if before != first:
            self._changed ^= hash((key, before))
        if value != first:
            self._changed ^= hash((key, value))
        self._values[key] = value

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
