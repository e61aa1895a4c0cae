"""A peer's notifier: sends the peer an event for each notice of the shim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from inaccfs.control import messages, qmp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inaccfs.control.caller import Caller
    from inaccfs.control.mountfiles import OpenFile
    from inaccfs.control.outlet import Outbound
    from inaccfs.shim.attributes import Attributes
    from inaccfs.shim.frames import Extent
    from inaccfs.shim.notifiers import Notice

_ANSWERED: Final = {
    name: event
    for name, event in messages.EVENTS.items()
    if issubclass(event, messages.Answered)
}


class Registration:
    """A notifier of a peer; see shim.notifiers.Notifier."""

    def __init__(
        self,
        caller: Caller,
        number: int,
        opened: OpenFile,
        outlet: Outbound,
        ack_seconds: float,
        pages: tuple[int, int] | None,
    ) -> None:
        """*opened* stays open while the notifier is registered.

        *ack_seconds* is how long the peer may take to answer, for the log. *pages* is
        the range to bind it to; None for the whole file.
        """
        self.caller: Final = caller
        self.number: Final = number
        self.opened: Final = opened
        self.pages: Final = pages
        self._outlet: Final = outlet
        self._ack_seconds: Final = ack_seconds
        self.events_sent = 0

    @property
    def who(self) -> int:
        """The number of the peer."""
        return self.caller.number

    def tell(self, notice: Notice, sequence: int | None) -> None:
        """Send the event."""
        self.events_sent += 1
        event, start, end, frames, kinds, zaps = notice
        message: messages.Event
        if sequence is None:
            assert event == messages.MemoryError.name
            message = messages.MemoryError(notifier=self.number, start=start, end=end)
        else:
            message = _ANSWERED[event](
                notifier=self.number,
                start=start,
                end=end,
                sequence=sequence,
                frames=UNSET if frames is None else as_messages(frames),
                kinds=UNSET if kinds is None else kinds,
                zaps=UNSET if zaps is None else messages.Zaps(*zaps),
            )
        self._outlet.send(qmp.encode_event(message))

    def evict(self) -> None:
        """Disconnect the peer, which has not answered in time."""
        self._outlet.evict(
            "it does not answer events",
            f"no answer to an event of notifier {self.number} within "
            f"{self._ack_seconds:g} s",
        )


def as_messages(
    extents: Iterable[Extent], attributes: Attributes | None = None
) -> list[messages.Extent]:
    """Extents for a message; with *attributes*, each has that of its pages."""
    if attributes is None:
        return [messages.Extent(*extent) for extent in extents]
    return [
        messages.Extent(*extent, attributes.is_private(extent.offset))
        for extent in extents
    ]
