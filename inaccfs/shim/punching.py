"""Punches of a file's fetched pages, and the events of fallocate(2) and truncate(2)."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.errors import PinnedError
from inaccfs.shim.call import Kind, PageRange
from inaccfs.shim.frames import Extent, Punched, in_pieces
from inaccfs.shim.order import Changed, in_order
from inaccfs.shim.references import PAGES_A_STEP
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.shim.call import Part
    from inaccfs.shim.filestate import FileState
    from inaccfs.shim.order import Steps

_INLINE_MARKS: Final = 8192
"""How many references may be looked at in the trio loop when pages are punched."""


def steps(
    file: FileState,
    part: Part,
    kind: Kind,
    *,
    check: Callable[[], None] | None = None,
) -> Steps:
    """The events and the change of one operation, in their order.

    *check* is that of `in_order`.
    """
    superblock = file.superblock
    punches = kind is Kind.PUNCH
    frames: Callable[[], list[Extent]] | None = None
    if superblock.semantics.tells_frames:
        frames = partial(file.pages.extents_in, *part.whole) if punches else list
    whole = part.whole if punches else PageRange(0, 0)
    refusal = yield from in_order(
        superblock.plans[kind],
        *part.touched,
        frames,
        check=check,
        settle=partial(_settle, file, whole),
        kinds=file.kinds,
    )
    yield from file.pages.moved.steps()
    return refusal


def _settle(file: FileState, whole: PageRange, changed: Changed) -> None:
    """Record the result of a change that was to punch the pages *whole*."""
    file.pages.moved.note(changed.punched.moved)
    if changed.refusal is None:
        file.pages.poisoned.heal(*whole)


def are_few(file: FileState, start: int, end: int) -> bool:
    """Whether to punch these pages takes little time of the trio loop."""
    memory = file.pages.memory
    return memory is None or (end - start) * memory.holders <= _INLINE_MARKS


def punch_now(
    file: FileState, start: int, end: int, punch: Callable[[], None]
) -> Changed:
    """Call *punch*, which removes these pages and may clear parts of others.

    Raises:
        OSError: EAGAIN for a page with references, where the rules refuse to punch it;
            and whatever *punch* raises.
    """
    memory = file.pages.memory
    if memory is None or start >= end:
        punch()
        return Changed()
    if file.superblock.semantics.pinned_punch == "refused":
        _refuse(file.pages.first_referenced(start, end))
    punched = memory.frames.punch(start, end, punch)
    memory.record(punched)
    return Changed(punched)


async def punch_long(
    file: FileState, start: int, end: int, punch: Callable[[], None]
) -> Changed:
    """As `punch_now`, in a thread and in a turn of the file's."""
    superblock, memory = file.superblock, file.pages.memory
    assert memory is not None
    with file.turn.take():
        if superblock.semantics.pinned_punch == "refused":
            _refuse(await file.pages.find_reference(start, end))
        punched = await superblock.loop.in_thread(
            memory.frames.punch, start, end, punch, limiter=superblock.threads.changes
        )
        # Record all of it, even if this task is cancelled, and before pages are fetched
        # again: these would be taken for the removed ones.
        with superblock.loop.shield():
            slices = Slices(superblock.loop)
            for piece in in_pieces(punched.removed, PAGES_A_STEP, file.page_size):
                memory.record(Punched([piece], []))
                await slices.give()
        memory.record(Punched([], punched.moved))
    return Changed(punched)


def _refuse(page: int | None) -> None:
    """Raise `OSError`, EAGAIN, if a page has references."""
    if page is not None:
        raise PinnedError(errno.EAGAIN, f"page {page} has references", page)
