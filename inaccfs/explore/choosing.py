"""Who decides whose step is next."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from inaccfs.explore.state import Step


class UnstableError(Exception):
    """The same choices have led somewhere else."""


class Chooser(Protocol):
    """Decides which actor takes the next step."""

    compares: ClassVar[bool]
    """Whether it looks at states, and at what actors know."""

    def ahead(self) -> Step | None:
        """The next step, if that is known, for it has been taken before."""

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        """One of *enabled* for step *depth*; None ends the schedule.

        *current* has taken the last step; it is -1 at the beginning.
        """

    def record(self, step: Step) -> None:
        """A step has been taken."""

    def end(self) -> None:
        """The schedule has come to its end, and was not ended by `choose`."""
