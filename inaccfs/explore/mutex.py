"""The locks of the explorer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.explore.actor import Actor

if TYPE_CHECKING:
    from collections.abc import Hashable

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.state import Key


class Mutex:
    """A lock of the explorer's. Taking it is a point; releasing it is none."""

    __slots__ = ("_always", "_label", "_schedule", "key", "name", "owner", "since")

    def __init__(self, schedule: Schedule, name: str, *, always: bool = False) -> None:
        """With *always* any two sections conflict: what is in them is not tracked."""
        self.key: Final[Key] = schedule.number(name)
        self.name: Final = name
        self._label: Final = f"takes {name}"
        # The actor that has it; the schedule itself in the setup.
        self.owner: Actor | Schedule | None = None
        # In which step it has been taken.
        self.since = -1
        self._schedule: Final = schedule
        self._always: Final = always or schedule.by_lock
        if not self._always:
            schedule.state.of_key[self.key] = self._value

    def _value(self) -> Hashable:
        return self.owner.index if isinstance(self.owner, Actor) else "free"

    @property
    def kept(self) -> bool:
        """See `Kept`."""
        schedule = self._schedule
        return self.owner is schedule.current and self.since == schedule.step

    def _is_free(self) -> bool:
        return self.owner is None

    @property
    def free(self) -> bool:
        """Whether nobody has it."""
        return self.owner is None

    def acquire(self) -> None:
        """Wait until it is free, and take it."""
        if self._schedule.current is not None or self.owner is not None:
            self._schedule.point(self._label, self._is_free, wants=self.key)
        self.take()

    def take(self) -> None:
        """It is free."""
        schedule = self._schedule
        if schedule.tracks:
            schedule.touch(self.key, self._always)
            schedule.opened(self)
        self.owner, self.since = schedule.current or schedule, schedule.step

    def release(self) -> None:
        """Somebody else may take it."""
        schedule = self._schedule
        if schedule.tracks and self.since != schedule.step:
            schedule.touch(self.key)
        self.owner = None
