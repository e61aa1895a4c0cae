"""The events of the control socket."""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from inaccfs.control.messages.commands import Command, InvalidateDone
from inaccfs.control.messages.fields import End, NotifierId, Sequence, Start
from inaccfs.control.messages.results import Extent
from inaccfs.control.messages.views import TraceRecord
from inaccfs.semantics import rules


class Zaps(msgspec.Struct, frozen=True, gc=False):
    """The pages that an event says to zap; none if `start` is `end`."""

    start: Start
    end: End


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the events, which the daemon sends without a command."""

    name: ClassVar[str]
    # The command that answers it.
    answer: ClassVar[type[Command] | None] = None


class Answered(Event, frozen=True, kw_only=True):
    """Base of the events that a peer has to answer: the call waits for that."""

    answer: ClassVar[type[Command] | None] = InvalidateDone

    notifier: NotifierId
    start: Start
    end: End
    sequence: Sequence
    # The fetched pages that are removed, in semantics that report them.
    frames: list[Extent] | msgspec.UnsetType = msgspec.UNSET
    # "private", "shared" or "both": which of the pages, in semantics that say so.
    kinds: str | msgspec.UnsetType = msgspec.UNSET
    # The pages to zap, if a conversion changes only some from `start` to `end`.
    zaps: Zaps | msgspec.UnsetType = msgspec.UNSET

    @property
    def fewer(self) -> tuple[int, int] | None:
        """`zaps` as a start and an end; None if they are left out."""
        return (self.zaps.start, self.zaps.end) if self.zaps else None


class Invalidate(Answered, frozen=True, kw_only=True):
    """Pages from `start` to `end` may be removed: stop using them, then answer."""

    name: ClassVar[str] = rules.INVALIDATE


class InvalidateStart(Answered, frozen=True, kw_only=True):
    """Pages are about to be removed, in semantics that bracket the removal."""

    name: ClassVar[str] = rules.INVALIDATE_START


class InvalidateEnd(Answered, frozen=True, kw_only=True):
    """The removal that INVALIDATE_START announced is over."""

    name: ClassVar[str] = rules.INVALIDATE_END


class Populate(Answered, frozen=True, kw_only=True):
    """Pages from `start` to `end` have been allocated, in semantics that report it."""

    name: ClassVar[str] = rules.POPULATE


class MemoryError(Event, frozen=True, kw_only=True):  # noqa: A001 - the contract's name
    """Pages are poisoned."""

    name: ClassVar[str] = rules.MEMORY_ERROR

    notifier: NotifierId
    start: Start
    end: End


class Trace(Event, frozen=True, kw_only=True):
    """What has happened lately, in order of completion."""

    name: ClassVar[str] = "TRACE"

    records: list[TraceRecord]
    # How many records were lost so far.
    lost: int


class Shutdown(Event, frozen=True, kw_only=True):
    """The daemon ends."""

    name: ClassVar[str] = "SHUTDOWN"

    # "quit", "unmounted", or the signal's name.
    reason: str


EVENTS: Final[dict[str, type[Event]]] = {
    event.name: event
    for event in (
        *(Invalidate, InvalidateStart, InvalidateEnd, Populate),
        *(MemoryError, Trace, Shutdown),
    )
}
