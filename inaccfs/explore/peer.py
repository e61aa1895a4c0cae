"""What a client of a scenario, its files and its notifiers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.sync import Loop
    from inaccfs.inprocess import Notifier


class Put(NamedTuple):
    """A put-pfn that has been sent, and that the daemon has not received."""

    # The object of the file, and its number.
    sender: object
    file: int
    pfn: int
    pages: int
    # Lets the daemon receive it.
    receive: Callable[[int, int], None]


class Peer:
    """A client, without its calls."""

    def __init__(
        self,
        schedule: Schedule,
        loop: Loop,
        name: str,
        numbers: dict[int, int],
        held: Counter[int],
        *,
        puts_late: bool,
    ) -> None:
        """*numbers* has each file's number, by st_ino.

        *held* counts the references that the client has, by frame.

        With *puts_late* an actor of its own puts references, as for a client that sends
        put-pfn and does not wait.
        """
        self.schedule: Final = schedule
        self.loop: Final = loop
        self.name: Final = name
        self.numbers: Final = numbers
        self.held: Final = held
        # By file and frame: the page that had the frame when it was got or pinned.
        self.pages_of: Final[dict[tuple[int, int], int]] = {}
        self.puts_late: Final = puts_late
        self.puts: Final[list[Put]] = []
        # What follows are the bugs of a KVM: see `inaccfs.explore.buggy`. How often it
        # puts each reference.
        self.puts_each = 1
        self.unregisters = True
        # Called in each callback.
        self.bug: Callable[[], object] = bool
        # Whether it calls get-pfn for a page next to the right one.
        self.asks_next_page = False

    def connected(self, *, write: bool = False) -> None:
        """This step reads, or changes, whether it is connected and registered."""
        if self.schedule.tracks:
            self.schedule.touch(("connected", self.name), write)

    def running(self, *, write: bool = False) -> None:
        """This step reads, or changes, which callbacks run."""
        if self.schedule.tracks:
            self.schedule.touch(("running", self.name), write)


class Registered:
    """A notifier of a VM. See `inaccfs.kvm.shim.ShimNotifier`."""

    def __init__(self, client: Peer, notifier: Notifier) -> None:
        self._client: Final = client
        self._notifier: Final = notifier

    @property
    def registered(self) -> bool:
        """See `ShimNotifier`."""
        self._client.connected()
        return self._notifier.registered

    def unregister(self) -> None:
        """See `ShimNotifier`."""
        schedule = self._client.schedule
        if not self._client.unregisters:
            return
        schedule.point("unregisters")
        self._client.connected(write=True)
        self._client.running()
        self._notifier.unregister()
        self._client.running()
