"""A client of a scenario: its calls are points, and an actor calls its callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.explore import keys
from inaccfs.explore.file import ExploredFile
from inaccfs.explore.peer import Peer
from inaccfs.explore.sync import LOT
from inaccfs.explore.tracked_vm import UntrackedError
from inaccfs.inprocess import Client

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Hashable

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.sync import Loop
    from inaccfs.inprocess import Due, Mount
    from inaccfs.kvm.shim import ShimPins, ShimSemantics


class _Client(Client):
    """A client that tracks whether it is disconnected, by either side."""

    explored: Peer

    def disconnect(self, why: str) -> None:
        """See `Client.disconnect`."""
        explored = self.explored
        explored.connected(write=True)
        schedule = explored.schedule
        for pfn, count in explored.held.items():
            if count:
                schedule.touch(keys.references(pfn))
        if self.mount.semantics.locks_pages:
            # It wakes who waits for page locks, unless nothing has been fetched.
            schedule.touch(LOT)
        schedule.note(f"{explored.name} is disconnected")
        explored.held.clear()
        super().disconnect(why)


class ExploredClient(Peer):
    """See `inaccfs.kvm.shim.Shim`."""

    def __init__(
        self,
        schedule: Schedule,
        mount: Mount,
        loop: Loop,
        name: str,
        numbers: dict[int, int],
        who: int,
        held: Counter[int],
        *,
        puts_late: bool = False,
    ) -> None:
        """*who* is the client's number; the rest is as for `Peer`."""
        super().__init__(schedule, loop, name, numbers, held, puts_late=puts_late)
        self.client: Final = _Client(mount, self._deliver, who)
        self.client.explored = self
        # Events whose callbacks have not been called.
        self._events: Final[list[Due]] = []
        schedule.state.of_key["puts", name] = self._sent
        self.listen: Callable[[ExploredClient, Due], None] | None = None
        # A thread of each VM calls its callbacks.
        schedule.spawn(f"{name}.notifier", self._listen, daemon=True)
        if puts_late:
            schedule.spawn(f"{name}.puts", self._put, daemon=True)

    def _deliver(self, due: Due) -> None:
        event, start, end = due.notice[:3]
        self.schedule.note(f"sends {self.name} {event} [{start}, {end})")
        if not self.schedule.runs:
            due.call()
            due.answer()
            return
        self.schedule.touch(("events", self.name))
        self._events.append(due)

    def _listen(self) -> None:
        schedule = self.schedule
        while True:
            schedule.forget()
            schedule.point("is called", lambda: bool(self._events))
            schedule.touch(("events", self.name))
            due = self._events.pop(0)
            event, start, end = due.notice[:3]
            schedule.note(f"{event} [{start}, {end})")
            if self.listen is None:
                self.call(due)
                self.answer(due)
            else:
                self.listen(self, due)

    def call(self, due: Due) -> None:
        """Call the callback."""
        self.connected()
        self.running(write=True)
        due.call()
        self.running(write=True)

    def answer(self, due: Due) -> None:
        """Answer the event."""
        self.schedule.point("answers")
        self.connected()
        due.answer()

    def die(self) -> None:
        """The process of the VM is killed."""
        self.schedule.point("is killed")
        self.schedule.touch(("events", self.name))
        self._events.clear()
        self.client.disconnect("killed")

    def _put(self) -> None:
        while True:
            self.schedule.point("sends its puts", lambda: bool(self.puts))
            self.schedule.touch(("puts", self.name))
            put = self.puts.pop(0)
            put.receive(put.pfn, put.pages)

    def _sent(self) -> Hashable:
        return tuple((put.file, put.pfn, put.pages) for put in self.puts)

    def file(self, file: int, /) -> ExploredFile:
        """See `inaccfs.kvm.shim.Shim`."""
        self.connected()
        return ExploredFile(self, self.client.file(file))

    def query_semantics(self) -> ShimSemantics:
        """See `inaccfs.kvm.shim.Shim`."""
        return self.client.query_semantics()

    def query_pins(self) -> ShimPins:
        """See `inaccfs.kvm.shim.Shim`."""
        if self.schedule.runs:
            raise UntrackedError("query_pins reads what the explorer does not track")
        return self.client.query_pins()
