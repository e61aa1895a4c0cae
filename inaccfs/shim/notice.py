"""The content of events, and the notifiers that get them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from inaccfs.semantics.rules import INVALIDATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.semantics.attributes import Kinds
    from inaccfs.shim.call import PageRange
    from inaccfs.shim.frames import Extent


class Notice(NamedTuple):
    """The content of an event, in pages of the file."""

    event: str
    start: int
    end: int
    # The frames that are removed, if the rules have events carry them.
    frames: Sequence[Extent] | None = None
    # Which kinds of pages are concerned, if the rules have events carry that.
    kinds: Kinds | None = None
    # The pages to zap, if these are fewer than the event's.
    zaps: PageRange | None = None

    @property
    def invalidates(self) -> bool:
        """Whether it is of an invalidation, and not of populated or poisoned pages."""
        return self.event in INVALIDATIONS


class Notifier(Protocol):
    """struct inaccessible_notifier. Neither method may block or raise."""

    @property
    def who(self) -> int:
        """The number of the peer, for traces."""

    @property
    def number(self) -> int:
        """The number of the notifier, for traces."""

    def tell(self, notice: Notice, sequence: int | None) -> None:
        """Send it an event. With a *sequence* it must answer: `Notifiers.answer`."""

    def evict(self) -> None:
        """Tell it that it was removed from the list, as it has not answered in time."""
