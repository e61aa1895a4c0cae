"""Records what the current step touches, and what its actor learns."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from inaccfs.explore.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.explore.actor import Actor
    from inaccfs.explore.state import Key, Step


class Kept(Protocol):
    """A lock that has been taken in a step."""

    @property
    def key(self) -> Key:
        """The key that all actors touch which want the lock."""

    @property
    def kept(self) -> bool:
        """Whether the current actor took it in this step, and still holds it."""


class Tracking:
    """The part of a schedule to which shared objects report each access."""

    def __init__(self, *, compares: bool) -> None:
        """Whether states are to be compared."""
        self.state: Final = State(compares=compares)
        # The actor that runs; None during the setup, and at the end.
        self.current: Actor | None = None
        # The number of the current step.
        self.step = -1
        # Whether accesses are recorded: actors run, and this step is not a repetition.
        self.tracks = False
        # Whether the predicate of a condition is being evaluated.
        self.asks = False
        self._touched: dict[Key, bool] = {}
        # The touched keys whose values the actor now knows; and the keys that it
        # counted.
        self._seen: dict[Key, bool] = {}
        self._counted: set[Key] = set()
        self._opened: list[Kept] = []
        self._numbers: Final[dict[str, int]] = {}

    def number(self, kind: str) -> tuple[str, int, int]:
        """A key for a new object of a kind, which is the same in every schedule."""
        maker = -1
        if self.current is not None:
            maker = self.current.index
            self.current.made += 1
        of_maker = f"{kind} {maker}"
        found = self._numbers[of_maker] = self._numbers.get(of_maker, 0) + 1
        return kind, maker, found

    def touch(self, key: Key, write: bool = True) -> None:
        """This step reads what *key* stands for, or is about to change it."""
        if not self.tracks:
            return
        touched = self._touched
        if key not in touched:
            self.state.meet(key)
            touched[key] = write
        elif write:
            touched[key] = True
        if write:
            self._seen[key] = True
        elif key not in self._seen:
            self._seen[key] = False

    def count(self, key: Key) -> None:
        """This step is about to count *key* up or down, without reading it.

        So the order of two counting steps does not matter.
        """
        if self.tracks:
            self.state.meet(key)
            self._touched.setdefault(key, False)
            self._counted.add(key)

    def forget(self, before: int | None = None, result: object = None) -> None:
        """Replace all that the actor has seen since it knew *before* by *result*.

        Without *before*, replace all that it has ever seen.
        """
        if (me := self.current) is not None:
            before = me.index if before is None else before
            me.known = hash((before, me.made, result))
            self._seen = {}

    def restart(self) -> None:
        """Forget what the actor has seen in this access: the access begins again."""
        if (me := self.current) is not None and me.base is not None:
            me.known = me.base
            self._seen = {}

    @contextmanager
    def access(self) -> Iterator[None]:
        """A vCPU's access, in a with block, after which it knows only the outcome."""
        me = self.current
        if me is None:
            yield
            return
        before = me.base = me.known
        try:
            yield
        except Exception as exc:
            self.forget(before, repr(exc))
            raise
        finally:
            me.base = None
        self.forget(before, "accessed")

    @property
    def runs(self) -> bool:
        """Whether an actor runs. The setup touches nothing."""
        return self.current is not None

    def opened(self, lock: Kept) -> None:
        """*lock* has been taken in this step."""
        self._opened.append(lock)

    # --- for the schedule -------------------------------------------------------------

    def _anew(self) -> None:
        """Begin a step."""
        self._touched, self._opened = {}, []
        self._seen, self._counted = {}, set()

    def _taken(self, me: Actor) -> Step:
        """End the step, and return it."""
        for lock in self._opened:
            # The actor keeps the lock past a point, so other actors that want it
            # conflict with this step.
            if lock.kept:
                self._touched[lock.key] = True
        return self.state.step(me, self._seen, self._touched, self._counted)
