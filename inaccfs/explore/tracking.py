"""What the step that runs touches, and what its actor comes to know."""

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
        """What who wants it conflicts in."""

    @property
    def kept(self) -> bool:
        """Whether the actor that runs has taken it in this step, and has it still."""


class Tracking:
    """The part of a schedule that whatever is shared tells what is done to it."""

    def __init__(self, *, compares: bool) -> None:
        """Whether states are to be compared."""
        self.state: Final = State(compares=compares)
        # Who runs now; None is the setup, or the end.
        self.current: Actor | None = None
        # Which step runs.
        self.step = -1
        # Whether it is noted what steps touch: actors run, and this step is no
        # repetition.
        self.tracks = False
        # It evaluates what somebody waits for.
        self.asks = False
        self._touched: dict[Key, bool] = {}
        # What the actor has learned from what it has touched; and what it has counted.
        self._seen: dict[Key, bool] = {}
        self._counted: set[Key] = set()
        self._opened: list[Kept] = []
        self._numbers: Final[dict[str, int]] = {}

    def number(self, kind: str) -> tuple[str, int, int]:
        """A key for something new of a kind: the same in every schedule."""
        maker = -1
        if self.current is not None:
            maker = self.current.index
            self.current.made += 1
        of_maker = f"{kind} {maker}"
        found = self._numbers[of_maker] = self._numbers.get(of_maker, 0) + 1
        return kind, maker, found

    def touch(self, key: Key, write: bool = True) -> None:
        """This step reads what *key* is for, or is about to change it."""
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
        """This step is about to count what *key* is for up or down, and looks not.

        So the order of two that count does not matter.
        """
        if self.tracks:
            self.state.meet(key)
            self._touched.setdefault(key, False)
            self._counted.add(key)

    def forget(self, before: int | None = None, result: object = None) -> None:
        """What the actor has seen since it knew *before* has come to *result* only.

        Without *before* it is as at its beginning.
        """
        if (me := self.current) is not None:
            before = me.index if before is None else before
            me.known = hash((before, me.made, result))
            self._seen = {}

    def restart(self) -> None:
        """The actor begins its access anew."""
        if (me := self.current) is not None and me.base is not None:
            me.known = me.base
            self._seen = {}

    @contextmanager
    def access(self) -> Iterator[None]:
        """A vCPU's access, in a with block: all that is left of it is how it ended."""
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
        """Whether actors run: what the setup does touches nothing."""
        return self.current is not None

    def opened(self, lock: Kept) -> None:
        """*lock* has been taken in this step."""
        self._opened.append(lock)

    # --- for the schedule -------------------------------------------------------------

    def _anew(self) -> None:
        """A step begins."""
        self._touched, self._opened = {}, []
        self._seen, self._counted = {}, set()

    def _taken(self, me: Actor) -> Step:
        """The step that ends here."""
        for lock in self._opened:
            # Kept over a point: other actors that want it conflict with this.
            if lock.kept:
                self._touched[lock.key] = True
        return self.state.step(me, self._seen, self._touched, self._counted)
