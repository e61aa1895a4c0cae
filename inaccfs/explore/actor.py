"""An actor takes steps: it is a method of a scenario, or a thread of a VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.explore.carriers import Thread
    from inaccfs.explore.state import Key


def _nothing() -> None:
    """The code of an actor that has ended."""


class Actor:
    """Runs code step by step, as the schedule says."""

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
            "timeout",
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
        # A schedule may end before this actor does.
        self.daemon: Final = daemon
        self.done = False
        # Texts for people: what it does next, and what its last step did. `ready` says
        # whether the next step is possible; None if it always is.
        self.label = ""
        self.did = ""
        self.ready: Callable[[], bool] | None = None
        # The key of the lock that it waits for.
        self.wants: Key = None
        # When its wait may time out: "" never, "last" if no other actor can take a
        # step, "any" at any time.
        self.timeout = ""
        # Its last wait has timed out.
        self.late = False
        self.thread: Thread | None = None
        # A hash of what it has seen: see `inaccfs.explore.state`. And how many numbered
        # objects it has made.
        self.known = index
        self.made = 0
        # `known` at the start of an access. A vCPU repeats the access after a fault.
        self.base: int | None = None

    def discard(self) -> None:
        """Free what an actor that has ended needs no longer; keep its name."""
        self.act, self.ready, self.thread = _nothing, None, None
