"""Conversions: pages become private or shared and stay where they are.

KVM_SET_MEMORY_ATTRIBUTES2 of the in-place series, an ioctl of a guest_memfd. The lock
of the notifier list stands for the invalidate_lock, taken exclusively.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.errors import PageError, PinnedError
from inaccfs.semantics.attributes import BOTH, PRIVATE, SHARED
from inaccfs.shim import content
from inaccfs.shim.call import PageRange
from inaccfs.shim.order import Changed, drive_locked, in_order, no_change

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.semantics.attributes import Kinds
    from inaccfs.shim.call import Conversion
    from inaccfs.shim.filestate import FileState
    from inaccfs.shim.order import Steps


async def convert(file: FileState, call: Conversion) -> None:
    """Make pages private or shared, and report it to the notifiers.

    Each part that `atomicity` names is converted completely, even if the task is
    cancelled (its peer has disconnected), because others may have got a start by then.
    A cancelled task begins no further part.

    Raises:
        OSError: EOPNOTSUPP where attributes are not kept in the file, or present pages
            cannot be converted; EINVAL for a range that is empty or ends past the end;
            EFAULT if all users have closed the file; EPERM for a frozen file; ENOMEM
            for too many ranges; `PinnedError`, EAGAIN, for pages with references.
            In these cases nothing was converted, except as `atomicity` says.
    """
    trace = file.trace
    with trace.command("convert", call.start, call.end, call.who) as traced:
        _check(file, call)
        refusal = await _Running(file, traced.began).run(call)
        if refusal is not None:
            raise refusal


def check_range(file: FileState, start: int, end: int) -> None:
    """Raise `OSError`, EINVAL, unless the file has the pages from *start* to *end*."""
    if not 0 <= start < end:
        raise OSError(errno.EINVAL, f"no pages from {start} to {end}")
    size = file.size
    if end * file.page_size > size:
        raise OSError(
            errno.EINVAL,
            f"page {end - 1} lies past the end ({size // file.page_size} pages)",
        )


def _check(file: FileState, call: Conversion) -> None:
    """The checks of the file. Raises `OSError` as `convert` does."""
    superblock = file.superblock
    if not superblock.converts:
        kept = superblock.semantics.attributes
        raise OSError(
            errno.EOPNOTSUPP,
            "these semantics keep memory attributes in the VM, by gfn: set them there"
            if kept == "vm"
            else f"in these semantics all pages are {superblock.semantics.initial}",
        )
    file.pages.check_open()
    check_range(file, call.start, call.end)
    file.check_frozen()


class _Running:
    """A conversion in progress."""

    def __init__(self, file: FileState, began: int) -> None:
        """*began* is for traces."""
        self._file: Final = file
        self._superblock: Final = file.superblock
        self._began: Final = began
        # The pages that `_change` has to convert.
        self._part: Conversion
        # The page that `_look` has found, if it was called.
        self._looked = False
        self._found: int | None = None

    async def run(self, call: Conversion) -> Exception | None:
        """Convert all parts, one after the other; return why one was refused."""
        loop, notifiers = self._superblock.loop, self._file.notifiers
        async with notifiers.fixed():
            try:
                return await self._run(call)
            finally:
                # Pages that get-pfn has found to have moved meanwhile.
                with loop.shield():
                    moved = self._file.pages.moved.steps()
                    await drive_locked(moved, notifiers, no_change)

    async def _run(self, call: Conversion) -> Exception | None:
        """`run`, with the notifier list locked."""
        loop = self._superblock.loop
        with loop.shield():
            await self._look(call)
        # It may have been closed, frozen or truncated while this waited for the lock.
        _check(self._file, call)
        if self._is_done(call):
            # The whole range has the attribute already: no event is sent.
            return None
        for part in self._parts(call):
            await loop.check_cancelled()
            self._part = part
            with loop.shield():
                refusal = await drive_locked(
                    self._steps(part),
                    self._file.notifiers,
                    self._change,
                    cause=self._began,
                )
            if refusal is not None:
                return refusal
        return None

    async def _look(self, call: Conversion) -> None:
        """Look for references to all pages, if that may take long.

        By the rule `get_waits` no reference is taken meanwhile; without it, get-pfn may
        take some at any time.
        """
        # After this wait, a get-pfn that ran in a thread has its references.
        await self._file.turn.wait()
        if self._is_done(call):
            return
        if self._superblock.semantics.atomicity == "range" and self._looks(call):
            self._found = await self._find(call)
            self._looked = True

    def _looks(self, part: Conversion) -> bool:
        """Whether references matter: not if the pages become shared."""
        rules = self._superblock.semantics
        return part.private and rules.pin_check != "none"

    async def _find(self, call: Conversion) -> int | None:
        find = self._file.pages.find_reference
        if self._superblock.semantics.pin_check == "pins first":
            page = await find(call.start, call.end, pins_only=True)
            if page is not None:
                return page
        return await find(call.start, call.end)

    def _steps(self, part: Conversion) -> Steps:
        """The steps of one part. Take them with the notifier list locked."""
        rules = self._superblock.semantics
        # Found before the change; also used for the end event.
        kinds = self._kinds(part)
        exact = PageRange(part.start, part.end)
        around = self._superblock.around(*exact)
        return in_order(
            self._superblock.plans[part.kind],
            *around,
            list if rules.tells_frames else None,
            check=partial(self._check_part, part),
            kinds=lambda start, end: kinds,
            # A huge page is locked as a whole, but only converted pages are zapped.
            zaps=None if around == exact else exact,
            change_last=rules.stored == "after the end",
        )

    def _is_done(self, call: Conversion) -> bool:
        """Whether all pages already have the attribute."""
        find = self._file.attributes.first
        return find(call.start, call.end, private=not call.private) is None

    def _parts(self, call: Conversion) -> Iterator[Conversion]:
        """The parts that are converted one after the other, each as a whole.

        All huge pages before the next one that events report, or that may be refused,
        are one part: a file may have too many to convert them one by one.
        """
        granule = self._superblock.granule_pages
        while call.start < call.end:
            part = call
            if self._superblock.semantics.atomicity != "range":
                noted = self._first_noted(call)
                if noted is not None:
                    low = noted // granule * granule
                    stop = low if low > call.start else low + granule
                    part = call._replace(end=min(stop, call.end))
            yield part
            call = call._replace(start=part.end)

    def _first_noted(self, call: Conversion) -> int | None:
        """The first page that events report or that may be refused, if there is one."""
        low, high = self._superblock.around(call.start, call.end)
        found = [self._file.notifiers.first(low, high)]
        if found[0] is not None and found[0] <= call.start:
            return found[0]
        memory = self._file.pages.memory
        if self._looks(call) and memory is not None and memory.references:
            found.append(self._first_referenced(call))
        if self._superblock.semantics.content == "refused":
            # Look only up to the first notifier's page: a later present page would not
            # be the first.
            end = call.end if found[0] is None else min(found[0], call.end)
            found.append(self._file.first_present(call.start, end))
        return min((page for page in found if page is not None), default=None)

    def _kinds(self, part: Conversion) -> Kinds:
        rule = self._superblock.semantics.conversion_kinds
        if rule == "present":
            return self._file.attributes.kinds(part.start, part.end)
        if rule == "opposite":
            return SHARED if part.private else PRIVATE
        return BOTH

    def _check_part(self, part: Conversion) -> None:
        """Check what may be refused, before the first event. Raises `OSError`."""
        rules = self._superblock.semantics
        # Like the kernel when it cannot allocate a node of the maple tree.
        if not self._file.attributes.has_room(part.start, part.end):
            raise PageError(errno.ENOMEM, "the file has too many ranges", part.start)
        if rules.content == "refused":
            page = self._file.first_present(part.start, part.end)
            if page is not None:
                raise PageError(
                    errno.EOPNOTSUPP,
                    f"page {page} has memory, and would lose its content: punch it",
                    page,
                )
        if not self._looks(part):
            return
        page = self._found if self._looked else self._first_referenced(part)
        if page is not None:
            raise PinnedError(
                errno.EAGAIN, f"page {page} has references, or is pinned", page
            )

    def _first_referenced(self, part: Conversion) -> int | None:
        find = self._file.pages.first_referenced
        page = None
        if self._superblock.semantics.pin_check == "pins first":
            page = find(part.start, part.end, pins_only=True)
        return find(part.start, part.end) if page is None else page

    async def _change(self) -> Changed:
        """Convert the next part."""
        file, part = self._file, self._part
        await file.turn.wait()
        if self._superblock.semantics.content == "zeroed" and not part.private:
            with file.turn.take():
                await content.clear(file, part.start, part.end)
        file.attributes.set(part.start, part.end, private=part.private)
        return Changed()
