"""The state of a schedule: shared values, and what each actor knows.

Two schedules that lead to one state have the same future, so a search continues only
one of them. A state consists of

- the value of each key that a step has touched (see `values`). A key without a value
  has a version instead: a hash of the actor that changed it last, and of all that this
  actor knew then;
- for each actor, a hash of what it has seen: the keys that its steps touched, each with
  its value before the step. An actor that has seen the same does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence, Set

    Key: TypeAlias = Hashable
    Value: TypeAlias = Hashable


class Actor(Protocol):
    """What this module needs of an actor."""

    @property
    def index(self) -> int: ...

    did: str
    done: bool
    known: int
    label: str
    late: bool


class Step(NamedTuple):
    """What a step has done. In `touched`, True means that it changed the key."""

    actor: int
    touched: dict[Key, bool]
    # The keys that it counted up or down without reading them.
    counted: Set[Key]
    # What the actor knows after the step: see `Actor.known`.
    known: int
    # Texts for people: what the step did, and what the actor will do next.
    did: str
    label: str
    # The value before the step of each key that it touched, and the value after it of
    # each key that it changed.
    before: list[tuple[Key, Value]]
    after: list[tuple[Key, Value]]


_NONE: Final[frozenset[Key]] = frozenset()


class State:
    """The shared part of a state, and the hash of the whole state."""

    def __init__(self, *, compares: bool = True) -> None:
        """*compares* is False for random schedules, whose states need no hash."""
        self.compares: Final = compares
        # Functions that return the value of one key; and of each key of a kind, which
        # is the first item of the key, from the other items.
        self.of_key: Final[dict[Key, Callable[[], Value]]] = {}
        self.of_kind: Final[dict[Key, Callable[..., Value]]] = {}
        # Functions that return further parts of the state, which no step touches.
        self.untracked: Final[list[Callable[[], Value]]] = []
        # The value of each touched key: now, and before the first step.
        self._values: Final[dict[Key, Value]] = {}
        self._first: Final[dict[Key, Value]] = {}
        # The xor of the hashes of all keys whose value has changed since the beginning;
        # each step updates it.
        self._changed = 0
        # Keys of `meet_early` in this step.
        self._met: Final[list[Key]] = []

    def begin(self, actors: Sequence[Actor]) -> None:
        """Call this before the actors take their first steps."""
        for actor in actors:
            actor.known = actor.index
        # The first change of this key is reported only after it was made.
        self.meet("frames")

    def discard(self) -> None:
        """Free the functions: no value is needed any more."""
        self.of_key.clear()
        self.of_kind.clear()
        self.untracked.clear()

    def meet(self, key: Key) -> None:
        """Record the value of a key, if this is the first step that touches it."""
        if key not in self._values and self.compares:
            self._values[key] = self._first[key] = self._value(key)

    def meet_early(self, key: Key) -> None:
        """As `meet`, for a key that a later step changes before it touches it."""
        if self.compares:
            self.meet(key)
            self._met.append(key)

    def meet_as(self, key: Key, value: Value) -> None:
        """As `meet`, for a key that has changed already, and had *value* before."""
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
        """Record a step of *actor*, which knows what it has *seen*.

        Keys that are *counted* have changed, too.
        """
        if not self.compares:
            return Step(
                actor.index,
                touched,
                counted or _NONE,
                0,
                actor.did,
                actor.label,
                [],
                [],
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
            actor.index,
            touched,
            counted or _NONE,
            actor.known,
            actor.did,
            actor.label,
            before,
            after,
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
        """Take over the values of *steps*, which repeat those of another schedule."""
        values, first = self._values, self._first
        now: dict[Key, Value] = {}
        for step in steps:
            for key, value in step.before:
                if key not in values:
                    values[key] = first[key] = value
            now.update(step.after)
        self._change(now.items())

    def number(self, actors: Iterable[Actor], more: Hashable) -> int:
        """The hash of the state, which includes *more*.

        It is an xor of the hashes of the parts: if two states differ in one part, the
        xor of their hashes depends on that part only.
        """
        found = self._changed ^ hash(("more", more))
        for actor in actors:
            found ^= hash((actor.index, None if actor.done else actor.known))
        for index, each in enumerate(self.untracked):
            found ^= hash(("untracked", index, each()))
        return found
