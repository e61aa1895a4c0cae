"""The interface of what decides which actor takes the next step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.explore.state import Step


class UnstableError(Exception):
    """The same choices have led to another state than before."""


class Named(Protocol):
    """What a chooser needs of an actor."""

    @property
    def name(self) -> str:
        """Its name."""


class Execution(Protocol):
    """What a chooser needs of a schedule that runs."""

    @property
    def actors(self) -> Sequence[Named]:
        """The actors, by index."""

    def state_number(self) -> int:
        """A hash of the state between two steps."""


class Chooser(Protocol):
    """Decides which actor takes the next step, and which schedule comes next."""

    compares: ClassVar[bool]
    """Whether it needs the hashes of states, and of what actors know."""

    @property
    def steps(self) -> list[Step]:
        """The steps of the last schedule."""

    def begin(self, schedule: Execution) -> None:
        """A schedule begins."""

    def advance(self) -> bool:
        """Prepare the next schedule; False if there is none."""

    def ahead(self) -> Sequence[Step]:
        """The next steps, if they were taken before and will only be repeated.

        `record` is not called for them.
        """

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """One of *enabled* for step *depth*; None ends the schedule.

        *current* has taken the last step; it is -1 at the beginning.
        """

    def record(self, step: Step) -> None:
        """A step has been taken."""

    def end(self) -> None:
        """The schedule has come to its end, and was not ended by `choose`."""
