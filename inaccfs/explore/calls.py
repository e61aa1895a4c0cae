"""Which calls of a scenario succeed: a call that is always refused tests nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from inaccfs.explore.actor import Actor


class Call(NamedTuple):
    """A call, by any actor and any number of times."""

    # The name of the actor.
    who: str
    # The call, in words, with its numbers.
    what: str
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.who}: {self.what.format(*self.numbers)}"


class Calls:
    """The calls of one schedule, or of many."""

    def __init__(self) -> None:
        self._granted: Final[set[Call]] = set()
        # With the last reason.
        self._refused: Final[dict[Call, str]] = {}

    def grant(self, actor: Actor | None, what: str, *numbers: int) -> None:
        """A call has succeeded. Without an *actor* it is one of the setup."""
        self._granted.add(_call(actor, what, numbers))

    def refuse(self, why: str, actor: Actor | None, what: str, *numbers: int) -> None:
        """A call has not."""
        self._refused[_call(actor, what, numbers)] = why

    def update(self, other: Calls) -> None:
        """Add the calls of another schedule."""
        self._granted.update(other._granted)
        self._refused.update(other._refused)

    @property
    def always_refused(self) -> dict[str, str]:
        """The calls that were made and never granted, each with a reason."""
        return {
            str(call): why
            for call, why in self._refused.items()
            if call not in self._granted
        }


def _call(actor: Actor | None, what: str, numbers: tuple[int, ...]) -> Call:
    return Call("setup" if actor is None else actor.name, what, numbers)
