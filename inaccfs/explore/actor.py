"""Somebody who takes steps: a method of a scenario, or a thread of a VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.explore.carriers import Thread
    from inaccfs.explore.state import Key


def _nothing() -> None:
    """What an actor does that is over."""


class Actor:
    """Somebody who takes steps."""

    __slots__ = (
        *(
            "act",
            "base",
            "daemon",
            "did",
            "done",
            "index",
            "known",
            "label",
            "late",
            "lates",
            "made",
        ),
        *("name", "ready", "thread", "wants"),
    )

    def __init__(
        self, index: int, name: str, act: Callable[[], object], *, daemon: bool
    ) -> None:
        self.index: Final = index
        self.name: Final = name
        self.act = act
        # It need not come to an end.
        self.daemon: Final = daemon
        self.done = False
        # What it does next, for people, and what its last step was; and whether it
        # can, if that depends.
        self.label = ""
        self.did = ""
        self.ready: Callable[[], bool] | None = None
        # Which lock it wants.
        self.wants: Key = None
        # How its wait may end before it is ready: "" never, "last" if nobody can go on
        # else, "any" at any time.
        self.lates = ""
        # Its last wait has ended so.
        self.late = False
        self.thread: Thread | None = None
        # A hash of what it has seen: see `inaccfs.explore.state`. And how many things
        # it has made, which have numbers.
        self.known = index
        self.made = 0
        # What it knew when it began an access, which it begins anew after a fault.
        self.base: int | None = None

    def discard(self) -> None:
        """It is over: keep its name only."""
        self.act, self.ready, self.thread = _nothing, None, None
