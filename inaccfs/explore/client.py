"""A client of a scenario: its calls are points, and an actor calls its callbacks."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from inaccfs.explore import keys
from inaccfs.explore.carriers import Ended
from inaccfs.explore.clientpages import PagesOfFile
from inaccfs.explore.names import frame
from inaccfs.explore.registered import Registered
from inaccfs.explore.schedule import SpinError
from inaccfs.explore.sync import LOT
from inaccfs.explore.tracked_vm import UntrackedError
from inaccfs.inprocess import Client

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Hashable, Sequence
    from typing import Unpack

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.state import Key
    from inaccfs.explore.sync import Loop
    from inaccfs.inprocess import Due, File, Mount, Notifier
    from inaccfs.inprocess.pages import Got
    from inaccfs.kvm.shim import (
        Callback,
        ShimCallbacks,
        ShimFileInfo,
        ShimPins,
        ShimRun,
        ShimSemantics,
    )
    from inaccfs.shim.frames import Extent


class _Client(Client):
    """A client that tracks whether it is disconnected, by either side."""

    explored: ExploredClient

    def disconnect(self, why: str) -> None:
        """See `Client.disconnect`."""
        explored = self.explored
        explored.connected(write=True)
        schedule = explored.schedule
        for pfn, count in explored.held.items():
            if count:
                schedule.touch(keys.references(pfn))
        schedule.note(f"{explored.name} is disconnected")
        explored.held.clear()
        super().disconnect(why)


class ExploredClient:
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
        """*numbers* has each file's number, by st_ino; *who* is the client's number.

        *held* counts the references that the client has, by frame.

        With *puts_late* an actor of its own puts references, as for a client that sends
        put-pfn and does not wait.
        """
        self.schedule: Final = schedule
        self.name: Final = name
        self.loop: Final = loop
        self.numbers: Final = numbers
        self.held: Final = held
        self.client: Final = _Client(mount, self._deliver, who)
        self.client.explored = self
        # Events whose callbacks have not been called.
        self._events: Final[list[Due]] = []
        # Puts that have been sent: the file, the frame, and the number of pages.
        self.puts: Final[list[tuple[ExploredFile, int, int]]] = []
        schedule.state.of_key["puts", name] = self._sent
        self.puts_late: Final = puts_late
        # How often a KVM puts each reference: see `inaccfs.explore.buggy`.
        self.puts_each = 1
        self.unregisters = True
        self.bug: Callable[[], object] = bool
        # Whether it calls get-pfn for a page next to the right one.
        self.asks_next_page = False
        self.listen: Callable[[ExploredClient, Due], None] | None = None
        # A thread of each VM calls its callbacks.
        schedule.spawn(f"{name}.notifier", self._listen, daemon=True)
        if puts_late:
            schedule.spawn(f"{name}.puts", self._put, daemon=True)

    def connected(self, *, write: bool = False) -> None:
        """This step reads, or changes, whether it is connected and registered."""
        if self.schedule.tracks:
            self.schedule.touch(("connected", self.name), write)

    def running(self, *, write: bool = False) -> None:
        """This step reads, or changes, which callbacks run."""
        if self.schedule.tracks:
            self.schedule.touch(("running", self.name), write)

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
            file, pfn, count = self.puts.pop(0)
            file.put_now(pfn, count)

    def _sent(self) -> Hashable:
        return tuple((file._number, pfn, count) for file, pfn, count in self.puts)

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


class ExploredFile(PagesOfFile):
    """See `inaccfs.kvm.shim.ShimFile`."""

    def __init__(self, client: ExploredClient, file: File) -> None:
        self._client = client
        self._file = file
        self._schedule = client.schedule
        self._number = client.numbers[file.ino]
        rules = file.client.mount.semantics
        self._keeps: Final = rules.keeps_references
        self._locked: Final = rules.locks_pages
        self._freezes: Final = rules.frozen != "unknown"
        # The page for which get-pfn returned a frame.
        self._pages: dict[int, int] = {}

    def _known(self, page: int) -> list[Extent] | None:
        memory = self._file.inode.pages.memory
        return None if memory is None else memory.frames.known(page, page + 1)

    def _page(self, page: int) -> Key:
        return keys.page(self._number, page)

    def get_pfn(self, offset: int) -> Got:
        """See `ShimFile`."""
        if self._client.asks_next_page:
            return self._get_pfn(offset ^ 1)._replace(offset=offset)
        return self._get_pfn(offset)

    def _get_pfn(self, offset: int) -> Got:
        schedule, loop = self._schedule, self._client.loop
        schedule.point(f"get-pfn of page {offset}")
        self._client.connected()
        known = self._known(offset)
        new = known is None
        if schedule.tracks:
            if known:
                schedule.state.meet_early(keys.references(known[0].pfn))
            self._touch(offset, new)
        unparked, begun = loop.unparked, schedule.step
        try:
            try:
                found = self._file.get_pfn(offset)
            finally:
                if schedule.step != begun:
                    # By some rules it waits first, and gets the page in a later step.
                    self._touch(offset, True)
        except OSError as exc:
            schedule.note(f"is refused: {exc.strerror}")
            if exc.errno == errno.EAGAIN:
                # Without a point, the caller would retry in an endless loop.
                schedule.point(
                    "waits for a page lock", lambda: loop.unparked > unparked
                )
                schedule.touch(LOT)
            raise
        if schedule.tracks:
            schedule.state.meet_as(keys.references(found.pfn), ())
            schedule.count(keys.references(found.pfn))
        self._pages[found.pfn] = offset
        self._client.held[found.pfn] += self._keeps
        schedule.note(f"gets frame {frame(found.pfn)}" + (", a new one" if new else ""))
        return found

    def _touch(self, page: int, new: bool) -> None:
        """This step gets a page."""
        schedule = self._schedule
        schedule.touch(self._page(page), new)
        if self._freezes:
            schedule.touch(keys.frozen(self._number), False)
        if self._locked:
            schedule.touch(LOT)

    def get_pfns(self, offset: int, count: int) -> list[Got]:
        """See `ShimFile`."""
        return [self.get_pfn(page) for page in range(offset, offset + count)]

    def put_pfn(self, pfn: int, count: int = 1, *, wait: bool = True) -> None:
        """See `ShimFile`."""
        client, schedule = self._client, self._schedule
        if client.puts_late and not wait and schedule.runs:
            schedule.touch(("puts", client.name))
            client.puts.append((self, pfn, count))
            return
        # A weaker KVM is correct during the setup, so that the setup ends.
        for _ in range(client.puts_each if schedule.runs else 1):
            schedule.point("put-pfn")
            self.put_now(pfn, count)

    def put_pfns(self, extents: Sequence[ShimRun], *, wait: bool = True) -> None:
        """See `ShimFile`."""
        for extent in extents:
            self.put_pfn(extent.pfn, extent.count, wait=wait)

    def put_now(self, pfn: int, count: int) -> None:
        """The daemon receives a put-pfn."""
        schedule = self._schedule
        if schedule.tracks:
            page = self._pages[pfn]
            schedule.touch(self._page(page), False)
            known = self._known(page)
            # A put of a present page only counts. The last put of a page that was
            # removed frees its frame.
            if known and known[0].pfn == pfn:
                schedule.count(keys.references(pfn))
            else:
                schedule.touch(keys.references(pfn))
            if self._locked:
                schedule.touch(LOT)
        self._client.held[pfn] -= 1
        schedule.note(f"puts frame {frame(pfn)}")
        self._client.connected()
        if self._file.client.lost is not None:
            return
        try:
            self._file.put_pfn(pfn, count)
        except OSError:
            schedule.violate(
                "refused-put",
                f"{self._client.name} puts frame {frame(pfn)}, and has no reference",
            )

    def get_memory(self) -> int:
        """See `ShimFile`."""
        self._client.connected()
        return self._file.get_memory()

    def query(self) -> ShimFileInfo:
        """See `ShimFile`."""
        self._client.connected()
        return self._file.query()

    def close(self) -> None:
        """See `ShimFile`. The daemon first receives what was sent before."""
        client = self._client
        if client.puts_late and self._schedule.runs:
            self._schedule.touch(("puts", client.name))
            sent = [each for each in client.puts if each[0] is self]
            client.puts[:] = [each for each in client.puts if each[0] is not self]
            for _, pfn, count in sent:
                self.put_now(pfn, count)
        self._file.close()

    def register_notifier(
        self, invalidate: Callback | None = None, **callbacks: Unpack[ShimCallbacks]
    ) -> Registered:
        """See `ShimFile`."""
        self._client.connected()
        made = self._file.register_notifier(
            self._until_ended(invalidate), **self._all(callbacks)
        )
        return self._registered(made)

    def bind(
        self,
        start: int,
        end: int,
        invalidate: Callback | None = None,
        **callbacks: Unpack[ShimCallbacks],
    ) -> Registered:
        """See `ShimFile`."""
        self._client.connected()
        made = self._file.bind(
            start, end, self._until_ended(invalidate), **self._all(callbacks)
        )
        return self._registered(made)

    def _registered(self, notifier: Notifier) -> Registered:
        # A client that is disconnected loses the notifiers that it has by then.
        self._client.connected(write=True)
        self._schedule.note("is registered")
        return Registered(self._client, notifier)

    def _until_ended(self, callback: Callback | None) -> Callback | None:
        """Report what a callback raises; the client would only log it."""
        if callback is None:
            return None

        def call(start: int, end: int, *more: object) -> None:
            try:
                self._client.bug()
                callback(start, end, *more)
            except Ended:
                pass
            except (KeyboardInterrupt, SpinError, UntrackedError) as exc:
                self._schedule.fail(exc)
            except Exception as exc:
                self._schedule.violate(
                    "raises",
                    f"a callback of {self._client.name} raises "
                    f"{type(exc).__name__}: {exc}",
                )

        # The object whose state the callback changes. It is not part of what the caller
        # knows.
        call.__dict__["owner"] = getattr(callback, "__self__", None)
        return call

    def _all(self, callbacks: ShimCallbacks) -> ShimCallbacks:
        return {
            "invalidate_start": self._until_ended(callbacks.get("invalidate_start")),
            "invalidate_end": self._until_ended(callbacks.get("invalidate_end")),
            "error": self._until_ended(callbacks.get("error")),
            "with_kinds": callbacks.get("with_kinds", False),
            "with_frames": callbacks.get("with_frames", False),
            "with_zaps": callbacks.get("with_zaps", False),
        }
