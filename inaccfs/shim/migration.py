"""Migration of pages: kvm_gmem_migrate_folio() of the RFC of June 2026.

Here a command asks for it, as compaction or move_pages(2) would ask the kernel.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from inaccfs.errors import PageError, PinnedError
from inaccfs.shim.call import Kind
from inaccfs.shim.conversions import check_range
from inaccfs.shim.frames import Punched
from inaccfs.shim.order import Changed, drive, in_order

if TYPE_CHECKING:
    from inaccfs.shim.filestate import FileState
    from inaccfs.shim.order import Steps


async def migrate(file: FileState, start: int, end: int, who: int = 0) -> None:
    """Move the fetched ones of these pages to other frames, within a bracket.

    *who* is the peer that asks for it, for traces.

    Raises:
        OSError: EOPNOTSUPP in semantics without, for a private page, and where frames
            are real; EINVAL for a range that is empty or ends past the end; EPERM for a
            frozen file, whose frames are on record; EAGAIN while a call has the file
            locked; `PinnedError`, EAGAIN after the start, if a page has references;
            ENOMEM.
    """
    with file.trace.command("migrate", start, end, who) as traced:
        _check(file, start, end)
        await _migrate(file, start, end, who, traced.began)


def _check(file: FileState, start: int, end: int) -> None:
    superblock = file.superblock
    if not superblock.semantics.has_migrate:
        raise OSError(errno.EOPNOTSUPP, "pages do not migrate in these semantics")
    check_range(file, start, end)
    file.check_frozen()
    page = file.attributes.first(start, end, private=True)
    if page is not None:
        raise PageError(errno.EOPNOTSUPP, f"page {page} is private: it stays", page)
    # filemap_invalidate_trylock_shared().
    if file.notifiers.running or file.turn.taken:
        raise OSError(errno.EAGAIN, "the file is locked: try again")


async def _migrate(file: FileState, start: int, end: int, who: int, cause: int) -> None:
    superblock = file.superblock

    async def change() -> Changed:
        await file.turn.wait()
        memory = file.pages.memory
        # Do not await from here on: get-pfn may take references at any time.
        page = file.pages.first_referenced(start, end)
        if page is not None:
            raise PinnedError(errno.EAGAIN, f"page {page} has references", page)
        if memory is not None:
            memory.record(Punched([], memory.frames.move(start, end)), who)
        return Changed()

    def steps() -> Steps:
        plan = superblock.plans[Kind.PUNCH]
        refusal = yield from in_order(plan, start, end, kinds=file.kinds)
        yield from file.pages.moved.steps()
        return refusal

    with superblock.loop.shield():
        refusal = await drive(
            steps(), file.notifiers, change, whole_call=True, cause=cause
        )
    if refusal is not None:
        raise refusal
