"""`InaccessibleFile`: what mm/memfd_inaccessible.c does for one file."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import nullcontext
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.errnos import os_error
from inaccfs.shim.allocating import allocate, worker_for
from inaccfs.shim.call import Begun, Call, Kind, PageRange, Part
from inaccfs.shim.filestate import FileState
from inaccfs.shim.notifiers import INLINE_NOTIFIERS
from inaccfs.shim.order import Changed, Done, InlineDrive, drive
from inaccfs.shim.punching import are_few, punch_long, punch_now, steps
from inaccfs.syscalls import FALLOC_FL_PUNCH_HOLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.shim.loop import Event
    from inaccfs.shim.trace import What

log = logging.getLogger(__name__)

DONE: Final = Begun.DONE
UNDER_WAY: Final = Begun.UNDER_WAY
LATER: Final = Begun.LATER


class InaccessibleFile(FileState):
    """One file that can be sized, allocated and punched, and nothing else.

    Offsets, lengths and sizes are bytes. Methods raise `OSError` with the errno
    that the caller of the system call shall see.
    """

    __slots__ = ()

    # --- fallocate ---------------------------------------------------------------

    def begin(
        self,
        mode: int,
        offset: int,
        length: int,
        hold: Callable[[], Done],
        who: int = 0,
    ) -> Begun:
        """inaccessible_fallocate() of v8: ask the rules, and do at once what is short.

        Returns DONE if the call is complete. Returns UNDER_WAY if notifiers have to
        answer. Then *hold* has been called, and the `Done` that it returned is called
        after the last answer, with the call's error, if any; that may be before this
        returns. Returns LATER if the call has to wait for the file or for memory, or
        takes long: the caller then awaits `finish`. *who* is the process, for traces.

        Raises:
            OSError: the rules forbid the call, or the backing has refused it.
        """
        trace = self.trace
        # Do not call now() here: a call costs too much.
        began = monotonic_ns() if trace.listeners else 0
        try:
            self._check_fallocate(mode, offset, length, self.granule)
            # 0 also means that it was not looked up yet.
            if (limit := self._size_limit) is not None and offset + length > limit:
                self._check_end(mode, offset + length)
        except OSError as exc:
            if began:
                self._tell(Call(mode, offset, length, who, began), exc)
            raise
        if length > self._fast_limit:
            if mode & FALLOC_FL_PUNCH_HOLE:
                return self._begin_punch(Call(mode, offset, length, who, began), hold)
            return LATER
        headroom = self._headroom
        if length <= headroom.left:
            headroom.left -= length
        elif not mode & FALLOC_FL_PUNCH_HOLE and not headroom.allows(length):
            return LATER
        try:
            syscalls.fallocate_now(self.fd, mode, offset, length)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                return LATER
            if began:
                self._tell(Call(mode, offset, length, who, began), exc)
            raise
        counters = self._counters
        counters.fallocates += 1
        if mode & FALLOC_FL_PUNCH_HOLE:
            counters.punches += 1
        if began:
            what: What = "punch" if mode & FALLOC_FL_PUNCH_HOLE else "allocate"
            trace.tell(what, offset, offset + length, who, None, began)
        return DONE

    def _check_end(self, mode: int, end: int) -> None:
        if not mode & FALLOC_FL_PUNCH_HOLE and self.ends_before(end):
            log.debug("allocation past the end (to %d): EINVAL", end)
            raise os_error(errno.EINVAL)

    def ends_before(self, end: int) -> bool:
        """Whether the rules never let the file have pages up to *end*, in bytes."""
        if self._size_limit is None:
            return False
        if not self._size_limit:
            self._size_limit = self.size
        return end > self._size_limit

    def _count(self, mode: int) -> None:
        self._counters.fallocates += 1
        if mode & FALLOC_FL_PUNCH_HOLE:
            self._counters.punches += 1

    def _tell(self, call: Call, exc: BaseException | None) -> None:
        """Trace a complete call, and its error, if there is one."""
        end = call.offset + call.length
        self.trace.tell(call.kind.value, call.offset, end, call.who, exc, call.began)

    def _traced(self, call: Call, done: Done) -> Done:
        """Wrap *done*, so that the call is traced."""

        def over(exc: Exception | None) -> None:
            self._tell(call, exc)
            done(exc)

        return over

    def _begin_punch(self, call: Call, hold: Callable[[], Done]) -> Begun:
        """A punch that events report, or that removes fetched pages; without a task."""
        superblock = self.superblock
        if (
            call.length > self.inline_bytes
            or self.turn.taken
            or not superblock.punches_inline
            or len(self.notifiers) > INLINE_NOTIFIERS
        ):
            return LATER
        part = call.part(self.page_size)
        if not are_few(self, *part.touched) or not self.notifiers.take():
            return LATER
        self._count(call.mode)
        punch = partial(syscalls.fallocate_now, self.fd, *call.arguments)

        def change() -> Changed:
            superblock.on_change(self.fd, call.offset, call.length)
            return punch_now(self, *part.whole, punch)

        done = hold()
        if self.trace.listeners:
            done = self._traced(call, done)
        timeouts = superblock.ack_timeouts
        assert timeouts is not None
        drive = InlineDrive(
            steps(self, part, call.kind),
            self.notifiers,
            timeouts,
            change,
            done,
            call.began,
        )
        drive.go_on()
        return UNDER_WAY

    async def finish(self, call: Call, interrupted: Event) -> None:
        """Do all of a call for which `begin` has returned LATER.

        *interrupted* is set when a signal interrupts the caller: a long allocation then
        raises EINTR within a tenth of a second. If the rules want it undone, the
        backing does that, which may take longer (see `Turn`). A punch continues to its
        end, as on a tmpfs, and so does its invalidation.
        """
        try:
            await self._finish(call, interrupted)
        except Exception as exc:
            if self.trace.listeners:
                self._tell(call, exc)
            raise
        if self.trace.listeners:
            self._tell(call, None)

    async def _finish(self, call: Call, interrupted: Event) -> None:
        closed = self.superblock.closed
        if not await self.turn.wait_unless(interrupted):
            raise os_error(errno.EINTR)
        self._count(call.mode)

        async def change() -> Changed:
            try:
                return await self._change(call, interrupted)
            except OSError as exc:
                if not await self.superblock.more_space(exc, closed, interrupted):
                    raise
                return await self._change(call, interrupted)

        await self._drive(call.part(self.page_size), call.kind, change, call.began)

    async def _drive(
        self,
        part: Part,
        kind: Kind,
        change: Callable[[], Awaitable[Changed]],
        began: int,
    ) -> None:
        """Change the file, and send the events of it, in the order of the rules."""
        locks = self._locks(kind)
        punches = kind is Kind.PUNCH
        async with self.pages.locked(*part.touched) if punches else nullcontext():
            refusal = await drive(
                # If the list is not locked, `change` checks whether it is frozen.
                steps(self, part, kind, check=self.check_frozen if locks else None),
                self.notifiers,
                change,
                whole_call=locks,
                cause=began,
            )
        if refusal is not None:
            raise refusal

    def _locks(self, kind: Kind) -> bool:
        """Whether a call locks the notifier list from start to end; freeze awaits that.

        Without events the list is not locked: no notifier could see a difference.
        """
        return self.superblock.whole_call and bool(self.superblock.plans[kind])

    async def _change(self, call: Call, interrupted: Event) -> Changed:
        """Let the backing allocate or punch. Raises `OSError`."""
        superblock = self.superblock
        superblock.on_change(self.fd, call.offset, call.length)
        await self.turn.wait()
        # It may have been frozen since `begin`.
        if not self._locks(call.kind):
            self.check_frozen()
        change = partial(syscalls.fallocate, self.fd, *call.arguments)
        if call.kind is Kind.PUNCH and self.pages.memory is not None:
            return await self._punch(call.part(self.page_size), change)
        if call.length <= self.inline_bytes and (
            not call.allocates or worker_for(superblock, call) is None
        ):
            change()
            return Changed()
        with self.turn.take():
            if call.allocates:
                await allocate(superblock, self.turn, self.fd, call, interrupted)
            else:
                await superblock.loop.in_thread(
                    change, limiter=superblock.threads.changes
                )
        return Changed()

    async def _punch(self, part: Part, punch: Callable[[], None]) -> Changed:
        """Let *punch* remove fetched pages, too."""
        start, end = part.touched
        few = (end - start) * self.page_size <= self.inline_bytes
        if few and are_few(self, start, end):
            return punch_now(self, *part.whole, punch)
        return await punch_long(self, *part.whole, punch)

    # --- size ----------------------------------------------------------------------

    async def set_size(self, size: int, *, by_path: bool = False, who: int = 0) -> None:
        """inaccessible_setattr() of v8, with ATTR_SIZE.

        *by_path* is for truncate(2), which leaves the times alone where the size stays;
        ftruncate(2) and O_TRUNC do not. *who* is the process, for traces.
        """
        began = self.trace.now()
        await self.turn.wait()
        current = self.size
        try:
            await self._set_size(current, size, by_path=by_path, began=began)
        except Exception as exc:
            if self.trace.listeners:
                self.trace.tell("truncate", size, current, who, exc, began)
            raise
        if self.trace.listeners:
            self.trace.tell("truncate", size, current, who, None, began)

    async def _set_size(
        self, current: int, size: int, *, by_path: bool, began: int
    ) -> None:
        self.superblock.semantics.check_size(current, size, self.granule)
        self.check_frozen()
        # The page that contains the new end stays. The last page goes, even if it is
        # only a part of a page.
        start, end = -(-size // self.page_size), -(-current // self.page_size)

        def truncate() -> None:
            if by_path:
                os.truncate(f"/proc/self/fd/{self.fd}", size)
            else:
                os.ftruncate(self.fd, size)

        if start >= end:
            await self._truncate(truncate)
        else:
            part = PageRange(start, end)
            await self._shrink(truncate, size, current, part, began)
        if self._size_limit is not None:
            # The size may have changed: look it up again.
            self._size_limit = 0

    async def _truncate(self, truncate: Callable[[], None]) -> None:
        if os.fstat(self.fd).st_blocks * 512 <= self.inline_bytes:
            truncate()
            return
        # Memory allocated beyond the end, with KEEP_SIZE, is freed by this.
        with self.turn.take():
            await self.superblock.loop.in_thread(
                truncate, limiter=self.superblock.threads.changes
            )

    async def _shrink(
        self,
        truncate: Callable[[], None],
        size: int,
        current: int,
        pages: PageRange,
        began: int,
    ) -> None:
        """Notifiers see a truncation as a punch of the *pages* past the new end."""
        part = Part(pages, pages)

        async def change() -> Changed:
            self.superblock.on_change(self.fd, size, current - size)
            await self.turn.wait()
            if not self._locks(Kind.PUNCH):
                self.check_frozen()
            if self.pages.memory is None:
                await self._truncate(truncate)
                return Changed()
            return await self._punch(part, truncate)

        await self._drive(part, Kind.PUNCH, change, began)
