"""The lock that the explorer puts in place of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.explore.actor import Actor

if TYPE_CHECKING:
    from collections.abc import Hashable

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.state import Key


class Mutex:
    """A lock. Taking it is a point; releasing it is not."""

    __slots__ = ("_always", "_label", "_schedule", "key", "name", "owner", "since")

    def __init__(self, schedule: Schedule, name: str, *, always: bool = False) -> None:
        """With *always* any two critical sections conflict, whatever they touch."""
        self.key: Final[Key] = schedule.number(name)
        self.name: Final = name
        self._label: Final = f"takes {name}"
        # The actor that holds it; during the setup the schedule itself.
        self.owner: Actor | Schedule | None = None
        # The step in which it was taken.
        self.since = -1
        self._schedule: Final = schedule
        self._always: Final = always
        if not self._always:
            schedule.state.of_key[self.key] = self._value

    def _value(self) -> Hashable:
        return self.owner.index if isinstance(self.owner, Actor) else "free"

    @property
    def kept(self) -> bool:
        """See `Kept`."""
        schedule = self._schedule
        return self.owner is schedule.current and self.since == schedule.step

    def is_free(self) -> bool:
        """Whether no actor holds it."""
        return self.owner is None

    def acquire(self) -> None:
        """Wait until it is free, and take it."""
        if self._schedule.current is not None or self.owner is not None:
            self._schedule.point(self._label, self.is_free, wants=self.key)
        self.take()

    def take(self) -> None:
        """Take it. It must be free."""
        schedule = self._schedule
        if schedule.tracks:
            schedule.touch(self.key, self._always)
            schedule.opened(self)
        self.owner, self.since = schedule.current or schedule, schedule.step

    def release(self) -> None:
        """Release it."""
        schedule = self._schedule
        if schedule.tracks and self.since != schedule.step:
            schedule.touch(self.key)
        self.owner = None
