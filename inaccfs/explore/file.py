"""A file of a scenario's client: each call is a point, and tracks what it accesses."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from inaccfs.explore import keys
from inaccfs.explore.carriers import Ended
from inaccfs.explore.names import frame
from inaccfs.explore.peer import Put, Registered
from inaccfs.explore.schedule import SpinError
from inaccfs.explore.sync import LOT
from inaccfs.explore.tracked_vm import UntrackedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Unpack

    from inaccfs.explore.peer import Peer
    from inaccfs.explore.state import Key
    from inaccfs.inprocess import File, Notifier
    from inaccfs.inprocess.pages import Got
    from inaccfs.kvm.shim import (
        Callback,
        ShimAttributes,
        ShimCallbacks,
        ShimFileInfo,
        ShimRun,
    )
    from inaccfs.shim.frames import Extent


class ExploredFile:
    """See `inaccfs.kvm.shim.ShimFile`."""

    def __init__(self, client: Peer, file: File) -> None:
        self._client = client
        self._file = file
        self._schedule = client.schedule
        self._number = client.numbers[file.ino]
        rules = file.client.mount.semantics
        self._keeps: Final = rules.keeps_references
        self._locked: Final = rules.locks_pages
        self._freezes: Final = rules.has_freeze
        # The page for which get-pfn returned a frame.

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
        self._client.pages_of[self._number, found.pfn] = offset
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
            client.puts.append(Put(self, self._number, pfn, count, self.put_now))
            return
        # A KVM with a bug is correct during the setup, so that the setup ends.
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
            page = self._client.pages_of[self._number, pfn]
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

    def set_memory_attributes(self, offset: int, count: int, private: bool) -> None:
        """See `ShimFile`."""
        word = "private" if private else "shared"
        self._schedule.point(f"makes [{offset}, {offset + count}) {word}")
        self._client.connected()
        self._file.set_memory_attributes(offset, count, private)

    def pin_pages(self, offset: int, count: int = 1) -> list[Extent]:
        """See `ShimFile`."""
        schedule = self._schedule
        schedule.point(f"pins [{offset}, {offset + count})")
        self._client.connected()
        begun = schedule.step
        self._touch_pages(offset, count)
        try:
            found = self._file.pin_pages(offset, count)
        finally:
            if schedule.step != begun:
                # It waited first, and pins the pages in a later step.
                self._touch_pages(offset, count)
        for extent in found:
            for index in range(extent.count):
                if schedule.tracks:
                    key = keys.references(extent.pfn + index)
                    schedule.state.meet_as(key, ())
                place = self._number, extent.pfn + index
                self._client.pages_of[place] = extent.offset + index
        self._count(found, 1)
        return found

    def unpin_pages(self, extents: Sequence[ShimRun]) -> None:
        """See `ShimFile`."""
        self._schedule.point("unpins")
        self._client.connected()
        for extent in extents:
            for pfn in range(extent.pfn, extent.pfn + extent.count):
                page = self._client.pages_of[self._number, pfn]
                self._schedule.touch(keys.page(self._number, page), False)
        self._count(extents, -1)
        self._file.unpin_pages(extents)

    def _touch_pages(self, offset: int, count: int) -> None:
        """This step gets pages, and fills holes."""
        schedule = self._schedule
        if schedule.tracks:
            schedule.touch(keys.frozen(self._number), False)
            for page in range(offset, offset + count):
                schedule.touch(keys.page(self._number, page))
                for extent in self._known(page) or []:
                    schedule.state.meet_early(keys.references(extent.pfn))

    def _count(self, extents: Iterable[ShimRun], more: int) -> None:
        """Count pins of the client: *more* is 1 or -1."""
        schedule = self._schedule
        for extent in extents:
            for pfn in range(extent.pfn, extent.pfn + extent.count):
                self._client.held[pfn] += more
                if schedule.runs:
                    schedule.touch(keys.references(pfn))

    def populate(
        self,
        offset: int,
        count: int,
        source: ExploredFile | None = None,
        source_offset: int = 0,
    ) -> int:
        """See `ShimFile`."""
        self._schedule.point(f"populates [{offset}, {offset + count})")
        self._client.connected()
        begun = self._schedule.step
        self._touch_pages(offset, count)
        given = None if source is None else source._file
        try:
            return self._file.populate(offset, count, given, source_offset)
        finally:
            if self._schedule.step != begun:
                self._touch_pages(offset, count)

    def query_memory_attribute(self, offset: int) -> ShimAttributes:
        """See `ShimFile`."""
        self._schedule.point(f"asks what page {offset} is")
        self._client.connected()
        return self._file.query_memory_attribute(offset)

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
            sent = [put for put in client.puts if put.sender is self]
            client.puts[:] = [put for put in client.puts if put.sender is not self]
            for put in sent:
                self.put_now(put.pfn, put.pages)
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
