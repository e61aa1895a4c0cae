"""`InaccessibleFile`: the patch, for one file.

struct inaccessible_data of the seed holds a lock, the memfd and the notifiers;
here the memfd is an fd of the backing, opened for writing, and there is also what has
been fetched of it (pages.py).
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.semantics import refused
from inaccfs.shim.notifiers import AT_ONCE, Notifiers
from inaccfs.shim.order import Changed, Part, drive, drive_at_once
from inaccfs.shim.pages import Pages
from inaccfs.shim.turn import Turn
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.shim.loop import Event
    from inaccfs.shim.mount import Shim

log = logging.getLogger(__name__)

QUICK_BYTES: Final = 4 << 20
"""A range up to this is dealt with in the trio loop: well under a millisecond."""

SHORT_BYTES: Final = 128 << 20
"""An allocation up to this is over before anybody could interrupt it."""


class InaccessibleFile:
    """One file that can be sized, allocated and punched, and nothing else.

    Offsets, lengths and sizes are bytes. Methods raise `OSError` with the errno
    that the caller of the system call shall see.
    """

    __slots__ = (
        "_allowed",
        "_check_fallocate",
        "_counters",
        "_headroom",
        "_quick_limit",
        "_shim",
        "_size_limit",
        "fd",
        "label",
        "notifiers",
        "page_size",
        "pages",
        "quick_bytes",
        "turn",
        "writable",
    )

    def __init__(self, fd: int, shim: Shim, *, writable: bool = True) -> None:
        """Take an *fd* of the backing."""
        # An fd of the backing file. Closed by whoever opened it.
        self.fd = fd
        # Whether fd is open for writing; else it is good for fstat(2) only.
        self.writable = writable
        # What people call a file that has no name.
        self.label = ""
        self.page_size: Final = shim.page_size
        self._shim: Final = shim
        # Looked up once: these are needed for every request.
        self._check_fallocate: Final = shim.semantics.check_fallocate
        self._counters: Final = shim.counters
        self._headroom: Final = shim.headroom
        # The call that the rules have been asked of, and that found no space at once.
        self._allowed: tuple[int, int, int] | None = None
        # A page may be so large that even one takes long.
        self.quick_bytes: Final = QUICK_BYTES if self.page_size <= QUICK_BYTES else 0
        # In bytes: what may be dealt with at once, without a look at notifiers, pages
        # or other operations. Kept by consider().
        self._quick_limit = self.quick_bytes
        rules = shim.semantics
        self.notifiers: Final = Notifiers(
            shim.counters,
            shim.ack_seconds,
            self.consider,
            unit=self.page_size if rules.unit == "bytes" else 1,
            clips=rules.reported == "clipped",
            loop=shim.loop,
        )
        # In bytes: nothing may be allocated behind it. The size, once it is looked up,
        # where that is a rule: it does not change any more then.
        self._size_limit: int | None = 0 if rules.past_end == "refused" else None
        self.turn: Final = Turn(shim.busy, self.consider, shim.loop)
        self.pages: Final = Pages(shim, fd, self.turn, self.notifiers, self.consider)

    def reopened(self, fd: int, *, writable: bool) -> None:
        """Use another fd of the same backing file from now on."""
        self.fd, self.writable = fd, writable
        self.pages.reopened(fd)

    @property
    def is_plain(self) -> bool:
        """Whether nobody waits for it, is told of it, or has fetched any of it."""
        return not self.turn.taken and not self.notifiers and self.pages.plain

    def consider(self) -> None:
        """What is to be looked at before a change of the file has changed."""
        self._quick_limit = self.quick_bytes if self.is_plain else -1

    def close(self) -> None:
        """Let go of what was fetched. May take long for gigabytes."""
        self.pages.close()

    # --- fallocate ---------------------------------------------------------------

    def fallocate_quick(self, mode: int, offset: int, length: int) -> bool:
        """inaccessible_fallocate() of the seed, at once; False if that is not possible.

        It is not for a range that takes more time than the trio loop has, nor while
        others wait for the file, nor where somebody must be told, nor when there is no
        space, of which some may be on its way back, nor near the limit of a memory
        cgroup: use `fallocate` then.
        """
        if length > self._quick_limit:
            return False
        headroom = self._headroom
        if length <= headroom.left:
            headroom.left -= length
        elif not mode & FALLOC_FL_PUNCH_HOLE and not headroom.allows(length):
            return False
        self._check_fallocate(mode, offset, length, self.page_size)
        # 0 also if it has not been looked up.
        if (limit := self._size_limit) is not None and offset + length > limit:
            self._check_end(mode, offset + length)
        try:
            syscalls.fallocate_quick(self.fd, mode, offset, length)
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            self._allowed = mode, offset, length
            return False
        self._count(mode)
        return True

    def _check(self, mode: int, offset: int, length: int) -> None:
        """Raise `OSError` if the rules forbid it."""
        self._check_fallocate(mode, offset, length, self.page_size)
        if self._size_limit is not None:
            self._check_end(mode, offset + length)

    def _check_end(self, mode: int, end: int) -> None:
        if not mode & FALLOC_FL_PUNCH_HOLE and self.ends_before(end):
            log.debug("allocation past the end (to %d): EINVAL", end)
            raise refused(errno.EINVAL)

    def ends_before(self, end: int) -> bool:
        """Whether there is nothing up to *end*, by the rules, nor will there be."""
        if self._size_limit is None:
            return False
        if not self._size_limit:
            self._size_limit = os.fstat(self.fd).st_size
        return end > self._size_limit

    def _count(self, mode: int) -> None:
        self._counters.fallocates += 1
        if mode & FALLOC_FL_PUNCH_HOLE:
            self._counters.punches += 1

    async def fallocate(
        self,
        mode: int,
        offset: int,
        length: int,
        interrupted: Event,
    ) -> None:
        """inaccessible_fallocate() of the seed, for a range of any length.

        *interrupted* is set when the caller wants out: an allocation that takes long
        then raises EINTR within a tenth of a second and is undone by the backing,
        which may take longer (see `Turn`). A punch goes on to its end, as it does
        on a tmpfs; and so does the invalidation, which is a promise.
        """
        freed = self._shim.freed
        # The rules are asked once for each call.
        if allowed := self._allowed == (mode, offset, length):
            self._allowed = None
        if not await self.turn.wait_unless(interrupted):
            raise refused(errno.EINTR)
        if not allowed:
            self._check(mode, offset, length)
        self._count(mode)

        async def change() -> Changed:
            try:
                return await self._change(mode, offset, length, interrupted)
            except OSError as exc:
                if not await self._shim.more_space(exc, freed, interrupted):
                    raise
                return await self._change(mode, offset, length, interrupted)

        part = Part.of(offset, length, self.page_size)
        await self._drive(part, change, punches=bool(mode & FALLOC_FL_PUNCH_HOLE))

    async def _drive(
        self, part: Part, change: Callable[[], Awaitable[Changed]], *, punches: bool
    ) -> None:
        """Let a change happen, and tell of it, in the order of the rules."""
        shim = self._shim
        # If nobody is told, the list may do what it likes.
        whole_call = shim.whole_call and bool(shim.plan(punches=punches))
        async with self.pages.locked(*part.told) if punches else nullcontext():
            refusal = await drive(
                self.pages.steps(part, punches=punches),
                self.notifiers,
                change,
                whole_call=whole_call,
            )
        if refusal is not None:
            raise refusal

    def punch_at_once(
        self,
        mode: int,
        offset: int,
        length: int,
        done: Callable[[Exception | None], None],
    ) -> bool:
        """A quick punch of which somebody must be told, without a task.

        *done* is called when all have answered, with what the call fails with, if it
        does; that may be before this returns. False, and nothing is done, if this is
        not possible: use `fallocate` then. Must not be called for other modes.

        Raises:
            OSError: the rules forbid it.
        """
        patience = self._shim.patience
        if (
            length > self.quick_bytes
            or self.turn.taken
            or not self._shim.punches_at_once
        ):
            return False
        part = Part.of(offset, length, self.page_size)
        if len(self.notifiers) > AT_ONCE or not self.pages.are_few(*part.told):
            return False
        # First, for `fallocate` asks the rules, too.
        if not self.notifiers.take():
            return False
        try:
            self._check(mode, offset, length)
        except BaseException:
            self.notifiers.release()
            raise
        assert patience is not None
        self._count(mode)
        punch = partial(syscalls.fallocate_quick, self.fd, mode, offset, length)

        def change() -> Changed:
            self._shim.on_change(self, offset, length)
            return self.pages.punch_now(*part.gone, punch)

        drive_at_once(
            self.pages.steps(part, punches=True),
            self.notifiers,
            patience,
            change,
            done,
        )
        return True

    async def _change(
        self, mode: int, offset: int, length: int, interrupted: Event
    ) -> Changed:
        """Let the backing allocate or punch. Raises `OSError`."""
        self._shim.on_change(self, offset, length)
        await self.turn.wait()
        change = partial(syscalls.fallocate, self.fd, mode, offset, length)
        if mode & FALLOC_FL_PUNCH_HOLE and self.pages.memory is not None:
            return await self._punch(Part.of(offset, length, self.page_size), change)
        allocates = not mode & ~FALLOC_FL_KEEP_SIZE
        allocator = self._shim.allocator if allocates else None
        if allocator and length <= SHORT_BYTES and self._headroom.allows(length):
            allocator = None
        if length <= self.quick_bytes and allocator is None:
            change()
            return Changed()
        with self.turn.take():
            if allocator is not None:
                self.turn.undoing = await allocator.allocate(
                    self.fd, mode, offset, length, interrupted
                )
            else:
                await self._shim.loop.in_thread(
                    change, limiter=self._shim.threads.changes
                )
        if self.turn.undoing is not None:
            raise refused(errno.EINTR)
        return Changed()

    async def _punch(self, part: Part, punch: Callable[[], None]) -> Changed:
        """Let *punch* take what has been fetched, too."""
        start, end = part.told
        if (end - start) * self.page_size <= self.quick_bytes and self.pages.are_few(
            start, end
        ):
            return self.pages.punch_now(*part.gone, punch)
        return await self.pages.punch(*part.gone, punch)

    # --- size ----------------------------------------------------------------------

    async def set_size(self, size: int, *, by_path: bool = False) -> None:
        """inaccessible_setattr() of the seed, with ATTR_SIZE.

        *by_path* is for truncate(2), which leaves the times alone where the size stays;
        ftruncate(2) and O_TRUNC do not.
        """
        await self.turn.wait()
        current = os.fstat(self.fd).st_size
        self._shim.semantics.check_size(current, size, self.page_size)
        # The page at the cut stays, and the last one goes, be it only a part of one.
        start, end = -(-size // self.page_size), -(-current // self.page_size)

        def truncate() -> None:
            if by_path:
                os.truncate(f"/proc/self/fd/{self.fd}", size)
            else:
                os.ftruncate(self.fd, size)

        if start >= end:
            await self._truncate(truncate)
        else:
            await self._shrink(truncate, size, current, start, end)
        if self._size_limit is not None:
            # It may be free, and is to be looked up.
            self._size_limit = 0

    async def _truncate(self, truncate: Callable[[], None]) -> None:
        if os.fstat(self.fd).st_blocks * 512 <= QUICK_BYTES:
            truncate()
            return
        # Memory allocated beyond the end, with KEEP_SIZE, is freed by this.
        with self.turn.take():
            await self._shim.loop.in_thread(
                truncate, limiter=self._shim.threads.changes
            )

    async def _shrink(
        self,
        truncate: Callable[[], None],
        size: int,
        current: int,
        start: int,
        end: int,
    ) -> None:
        """To whom it concerns a truncation is a punch of the pages that were behind."""
        part = Part((start, end), (start, end))

        async def change() -> Changed:
            self._shim.on_change(self, size, current - size)
            await self.turn.wait()
            if self.pages.memory is None:
                await self._truncate(truncate)
                return Changed()
            return await self._punch(part, truncate)

        await self._drive(part, change, punches=True)
