"""A peer's notifier: what the shim tells it goes out as an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from inaccfs.control import messages, qmp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inaccfs.control.openfiles import OpenFile
    from inaccfs.control.session import Session
    from inaccfs.shim.frames import Extent
    from inaccfs.shim.notifiers import Notice

_ANSWERED: Final = {
    name: event
    for name, event in messages.EVENTS.items()
    if issubclass(event, messages.Answered)
}


class Registration:
    """A notifier of a peer; see shim.notifiers.Notifier."""

    def __init__(self, session: Session, number: int, opened: OpenFile) -> None:
        self.session: Final = session
        self.number: Final = number
        # Open for as long as the notifier is registered.
        self.opened: Final = opened
        # How many events it has been sent.
        self.told = 0

    @property
    def who(self) -> int:
        """The number of the peer."""
        return self.session.number

    def tell(self, notice: Notice, sequence: int | None) -> None:
        """Send the event."""
        self.told += 1
        event, start, end, frames = notice
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
            )
        self.session.peer.send(qmp.encode_event(message))

    def evict(self) -> None:
        """The peer has not answered in time: it is trusted with nothing any more."""
        self.session.peer.evict(
            "it does not answer events",
            f"no answer to an event of notifier {self.number} within "
            f"{self.session.server.policy.ack_seconds:g} s",
        )


def as_messages(extents: Iterable[Extent]) -> list[messages.Extent]:
    """Extents as they are sent."""
    return [messages.Extent(*extent) for extent in extents]
