"""The notifiers of a file: their list, its lock, and the events that they answer.

struct inaccessible_data of v8 has a list of notifiers and a mutex, and calls one
notifier after the other under the mutex. Here notifiers are in other processes: each
event goes to all of them at once, and the list stays locked until each has answered,
has been removed, or has been evicted because it did not answer in time. In
restrictedmem_bind(), which came later, notifiers are bound to a range of the file, and
are found by that.
"""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from inaccfs.shim.bindings import Bindings
from inaccfs.shim.call import PageRange
from inaccfs.shim.loop import TRIO
from inaccfs.shim.notice import Notice as Notice
from inaccfs.shim.notice import Notifier as Notifier
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from inaccfs.shim.loop import Loop
    from inaccfs.shim.trace import FileTrace, What


INLINE_NOTIFIERS: Final = 128
"""How many notifiers an event is sent to in one go: it takes some 2 ms of the loop."""


_NO_NOTICE: Final = Notice("", 0, 0)


class Notifiers:
    """The notifiers of one file. Starts and ends are pages."""

    def __init__(
        self,
        trace: FileTrace,
        ack_seconds: float,
        changed: Callable[[], None] = lambda: None,
        *,
        unit: int = 1,
        clips: bool = False,
        overlap_errno: int = errno.EINVAL,
        loop: Loop = TRIO,
    ) -> None:
        """*ack_seconds* is how long a notifier may take to answer.

        *changed* is called after each change of the list. Events count in *unit* per
        page; with *clips* each reports only pages that its notifier is bound to.
        `bind` raises *overlap_errno* for pages that are bound to another notifier.
        """
        self._trace: Final = trace
        self._ack_seconds: Final = ack_seconds
        self._changed: Final = changed
        self._unit: Final = unit
        self._clips: Final = clips
        # Whether the units or ranges in an event differ from those of the change.
        self._adapts: Final = clips or unit != 1
        self._overlap_errno: Final = overlap_errno
        # In order of registration, each with its range; None for the whole file. It
        # changes only under _lock, except that drop() may remove one at any time.
        self._registered: dict[Notifier, PageRange | None] = {}
        # The same by page. None until one is bound. In no semantics does a file have
        # both kinds of notifiers.
        self._bindings: Bindings[Notifier] | None = None
        # Locked while events are sent and answered, and while the list changes, so that
        # each event is waited for from the same notifiers that got it. The outermost
        # lock: its holder waits for peers, so do not take it while holding anything
        # that a peer may need.
        self._lock: Final = loop.mutex()
        self._loop: Final = loop
        # Whether the list is locked: in `fixed`, or between `take` and `release`.
        self.running = False
        # The sequence of the last event that needs answers. There is one at a time.
        self._sequence = 0
        # That event, and its `cause` for traces.
        self._notice = _NO_NOTICE
        self._cause = 0
        # The notifiers that have not answered it yet, and when it was sent to each. 0
        # means not sent yet: other tasks run between the slices of a long list.
        self._awaited: dict[Notifier, int] = {}
        # Notifiers whose unregistration waits for the lock. They get no more events: a
        # callback that has unregistered its notifier cannot answer.
        self._leaving: set[Notifier] = set()
        # Called when the last notifier in _awaited has answered or was removed.
        self._then: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._registered)

    def __contains__(self, notifier: Notifier) -> bool:
        return notifier in self._registered

    def __iter__(self) -> Iterator[Notifier]:
        return iter(self._registered)

    def gets_events(self, notifier: Notifier) -> bool:
        """Whether *notifier* is registered, and its unregistration does not wait."""
        return notifier in self._registered and notifier not in self._leaving

    def waiting(self, notifier: Notifier) -> int | None:
        """The sequence of the event that *notifier* has not answered yet.

        It may not have been sent to *notifier* yet: from the first that gets it on, all
        are waited for.
        """
        return self._sequence if notifier in self._awaited else None

    @property
    def invalidating(self) -> PageRange | None:
        """The pages of the invalidation in progress; None if there is none.

        It lasts from its first event to the last answer; if the list is locked for the
        whole call, it lasts from the start to the end of the bracket.
        """
        notice = self._notice
        return PageRange(notice.start, notice.end) if notice.invalidates else None

    def cover(self, start: int, end: int) -> bool:
        """Whether notifiers are bound to each page from *start* to *end*."""
        if self._bindings is None:
            return start >= end
        return self._bindings.cover(start, end)

    def first(self, start: int, end: int) -> int | None:
        """The first page from *start* to *end* of which a notifier gets events."""
        if self._bindings is None:
            return start if self._registered else None
        return self._bindings.first(start, end)

    async def register(self, notifier: Notifier) -> None:
        """inaccessible_register_notifier(); waits while an invalidation runs."""
        async with self._lock:
            self._registered[notifier] = None
            self._changed()

    async def bind(
        self, notifier: Notifier, start: int, end: int, *, exclusive: bool
    ) -> None:
        """restrictedmem_bind(); waits while an invalidation runs.

        Raises:
            OSError: `overlap_errno`, if pages are bound to another notifier, and one of
                the two bindings is *exclusive*.
        """
        async with self._lock:
            if self._bindings is None:
                self._bindings = Bindings(self._overlap_errno)
            self._bindings.add(notifier, start, end, exclusive=exclusive)
            self._registered[notifier] = PageRange(start, end)
            self._changed()

    async def unregister(self, notifier: Notifier) -> None:
        """inaccessible_unregister_notifier(), restrictedmem_unbind(); may wait, too.

        It counts as the notifier's answer: it may be called in the notifier's callback,
        and would otherwise wait for itself.
        """
        self.silence(notifier)
        try:
            async with self._lock:
                pass
        finally:
            # Remove it also when cancelled: the caller does not want it any more.
            self.drop(notifier)

    def drop(self, notifier: Notifier) -> None:
        """Remove *notifier*. Nothing waits for its answer any more."""
        self._leaving.discard(notifier)
        if notifier in self._registered:
            bound = self._registered.pop(notifier)
            if bound is not None and self._bindings is not None:
                self._bindings.remove(notifier, *bound)
        self._changed()
        if notifier in self._awaited:
            self._forget(notifier)

    def silence(self, notifier: Notifier) -> None:
        """Stop waiting for *notifier*, which is about to be dropped."""
        self._leaving.add(notifier)
        if notifier in self._awaited:
            self._forget(notifier)

    def answer(self, notifier: Notifier, sequence: int) -> None:
        """The callback of *notifier* has returned.

        Raises:
            OSError: EINVAL if no such event waits for its answer.
        """
        if not self._awaited.get(notifier) or sequence != self._sequence:
            raise OSError(
                errno.EINVAL,
                f"no event {sequence} of this notifier waits for an answer",
            )
        if self._trace.listeners:
            self._trace_event("answer", notifier)
        self._forget(notifier)

    def _forget(self, notifier: Notifier) -> None:
        del self._awaited[notifier]
        if not self._awaited:
            self._then()

    # --- events ---------------------------------------------------------------------

    @asynccontextmanager
    async def fixed(self) -> AsyncIterator[None]:
        """Lock the list for an async with block."""
        async with self._lock:
            self.running = True
            try:
                yield
            finally:
                self._end()

    async def idle(self) -> None:
        """Wait until the list is not locked."""
        async with self._lock:
            pass

    def take(self) -> bool:
        """Lock the list until `release`; False if it is locked already."""
        if not self._lock.take():
            return False
        self.running = True
        return True

    def release(self) -> None:
        """Undo `take`."""
        self._end()
        self._lock.release()

    def _end(self) -> None:
        self.running = False
        self._notice = _NO_NOTICE
        # The rest got an event of a call that has failed since, or the daemon is
        # shutting down. A late answer gets EINVAL.
        self._awaited = {}

    def begin(
        self, notice: Notice, then: Callable[[], None], cause: int = 0
    ) -> int | None:
        """Send an event; call *then* when each that got it has answered or was removed.

        The list must be locked, and not longer than `INLINE_NOTIFIERS`. Returns the
        event's sequence, for `give_up`; None if no notifier gets it, and *then* is not
        called. *cause* is for traces.
        """
        if not (targets := self._concerned(notice.start, notice.end)):
            return None
        self._notice, self._cause = notice, cause
        sequence = self._expect(targets, then)
        for notifier in targets:
            self._send(notifier, notice, sequence)
        return sequence

    def _expect(self, targets: list[Notifier], then: Callable[[], None]) -> int:
        """Expect answers of *targets*; returns the sequence of the event."""
        self._trace.counters.invalidations += 1
        self._then = then
        self._awaited = dict.fromkeys(targets, 0)
        self._sequence += 1
        return self._sequence

    def _send(self, notifier: Notifier, notice: Notice, sequence: int | None) -> None:
        """Send an event, which *notifier* is to answer if it has a *sequence*."""
        if sequence is not None:
            if notifier not in self._awaited:
                # Sending to another notifier has ended the connection that both use.
                return
            # Without listeners, any number except 0.
            self._awaited[notifier] = self._trace.now() or 1
        self._trace.counters.events += 1
        if self._trace.listeners:
            # Trace it before it is sent: it may be answered at once.
            event, start, end = notice[:3]
            cause = 0 if sequence is None else self._cause
            self._trace.tell_event(
                "event",
                start,
                end,
                notifier.who,
                event,
                sequence or 0,
                notifier.number,
                0,
                cause,
            )
        if self._adapts:
            notice = self._adapted(notifier, notice)
        notifier.tell(notice, sequence)

    def _trace_event(self, what: What, notifier: Notifier) -> None:
        """Trace the answer to the last event of *notifier*, or its eviction."""
        event, start, end = self._notice[:3]
        sent = self._awaited[notifier]
        self._trace.tell_event(
            what,
            start,
            end,
            notifier.who,
            event,
            self._sequence,
            notifier.number,
            sent if sent > 1 else 0,
            self._cause,
        )

    async def tell(self, notice: Notice, cause: int = 0) -> None:
        """Send an event to any number of notifiers, and wait for their answers.

        *cause* is for traces. Evicts notifiers that do not answer in time.
        """
        if not (targets := self._concerned(notice.start, notice.end)):
            return
        answered = self._loop.event()
        self._notice, self._cause = notice, cause
        sequence = self._expect(targets, answered.set)
        slices = Slices(self._loop)
        for notifier in targets:
            self._send(notifier, notice, sequence)
            await slices.give()
        if await self._loop.in_time(self._ack_seconds, answered.wait):
            return
        for notifier in targets:
            self._give_up(notifier, sequence)
            await slices.give()

    def awaits(self, sequence: int) -> bool:
        """Whether a notifier has not answered event *sequence*."""
        return bool(self._awaited) and sequence == self._sequence

    def give_up(self, sequence: int) -> None:
        """Evict the notifiers that have not answered event *sequence*."""
        for notifier in list(self._awaited):
            self._give_up(notifier, sequence)

    def _give_up(self, notifier: Notifier, sequence: int) -> None:
        if notifier in self._awaited and sequence == self._sequence:
            self._trace.counters.evictions += 1
            if self._trace.listeners:
                self._trace_event("evict", notifier)
            self.drop(notifier)
            notifier.evict()

    async def announce(self, notice: Notice) -> None:
        """Send an event that needs no answer."""
        slices = Slices(self._loop)
        for notifier in self._concerned(notice.start, notice.end):
            if self.gets_events(notifier):
                self._send(notifier, notice, None)
            await slices.give()

    def _concerned(self, start: int, end: int) -> list[Notifier]:
        """The notifiers that get an event of pages from *start* to *end*.

        In order of registration; or if they are bound, in order of their pages, as
        restrictedmem_bind() has them in an xarray.
        """
        found: Iterable[Notifier] = self._registered
        if self._bindings is not None:
            found = self._bindings.bound_to(start, end)
        if not self._leaving:
            return list(found)
        return [one for one in found if one not in self._leaving]

    def _adapted(self, notifier: Notifier, notice: Notice) -> Notice:
        """The notice for *notifier*: its own pages, in its units."""
        bound = self._registered.get(notifier) if self._clips else None
        start, end = self._shown(notice.start, notice.end, bound)
        zaps = None if notice.zaps is None else self._shown(*notice.zaps, bound)
        return notice._replace(start=start, end=end, zaps=zaps)

    def _shown(self, start: int, end: int, bound: PageRange | None) -> PageRange:
        """The part of a range that is in *bound*, in units of events; may be empty."""
        if bound is not None:
            start = min(max(start, bound.start), bound.end)
            end = max(start, min(end, bound.end))
        return PageRange(start * self._unit, end * self._unit)
