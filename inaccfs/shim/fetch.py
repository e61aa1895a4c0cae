"""Fetching pages of a file: to allocate, pin and find them, as the rules allow."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs.errors import PageError
from inaccfs.shim.call import PageRange
from inaccfs.shim.frameoptions import FRAME_BYTES
from inaccfs.shim.frames import Fetched, clipped
from inaccfs.shim.holes import first_hole
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE

if TYPE_CHECKING:
    from inaccfs.shim.frames import Frames
    from inaccfs.shim.memory import Memory
    from inaccfs.shim.superblock import LongAllocator, Superblock
    from inaccfs.shim.turn import Turn

INLINE_FETCH_BYTES: Final = 1 << 20
"""How much is fetched in the loop: new memory has to be cleared.

With the rest of the first and of the last huge page, up to 4 MiB are allocated.
"""


def check_end(fd: int, page_size: int, start: int, end: int) -> None:
    """Raise `OSError`, EINVAL, if a page from *start* to *end* lies past the end."""
    pages = -(-os.fstat(fd).st_size // page_size)
    if end > pages:
        raise OSError(
            errno.EINVAL,
            f"offset {max(start, pages)} lies past the end ({pages} pages)",
        )


def fetch_now(
    superblock: Superblock, memory: Memory, start: int, end: int, *, frozen: bool
) -> Fetched:
    """Fetch the pages from *start* to *end*, of a file that may be *frozen*. Blocks.

    Raises:
        OSError: ENOENT for a hole that the rules do not fill; EPERM if the file is
            frozen; and what `Frames.fetch` raises.
    """
    frames = memory.frames
    if frozen or not superblock.semantics.allocates:
        # SGP_NOALLOC of mm/shmem.c.
        hole = first_hole(frames.fd, superblock.page_size, start, end, frames.known)
        if hole is not None and frozen:
            text = f"page {hole} is a hole, and the file is frozen"
            raise PageError(errno.EPERM, text, hole)
        if hole is not None:
            raise OSError(errno.ENOENT, f"page {hole} is a hole: allocate it first")
    if frozen:
        return frames.fetch(start, end, reach=False)
    if superblock.granule_pages == 1:
        return frames.fetch(start, end)
    extents, moved = frames.fetch(*_granules(superblock, frames.fd, start, end))
    per_page = superblock.page_size // FRAME_BYTES
    return Fetched(clipped(extents, start, end, per_page), moved)


async def fetch(
    superblock: Superblock, memory: Memory, start: int, end: int, *, frozen: bool
) -> Fetched:
    """As `fetch_now`, in a thread. The caller has the file's turn.

    If there is no space, it waits for memory that is being freed.
    """
    closed = superblock.closed

    in_thread = partial(
        superblock.loop.in_thread,
        partial(fetch_now, superblock, memory, start, end, frozen=frozen),
        limiter=superblock.threads.fetches,
    )
    try:
        if not frozen:
            await _allocate_apart(superblock, memory.frames, start, end)
        return await in_thread()
    except OSError as exc:
        if not await superblock.more_space(exc, closed):
            raise
    return await in_thread()


def _granules(superblock: Superblock, fd: int, start: int, end: int) -> PageRange:
    """Pages of a file, widened to whole huge pages where memory comes in these.

    Also those that are split at once are allocated as a whole.
    """
    if superblock.granule_pages == 1:
        return PageRange(start, end)
    low, high = superblock.around(start, end)
    pages = -(-os.fstat(fd).st_size // superblock.page_size)
    return PageRange(low, min(high, pages))


def allocated_with(
    superblock: Superblock, frames: Frames, start: int, end: int
) -> PageRange:
    """The pages that `fetch_now` may allocate for those from *start* to *end*."""
    return frames.reach(*_granules(superblock, frames.fd, start, end))


async def _allocate_apart(
    superblock: Superblock, frames: Frames, start: int, end: int
) -> None:
    """Near the limit of a memory cgroup, let a worker allocate: see `Headroom`."""
    if superblock.allocator is None or not superblock.semantics.allocates:
        return
    low, high = allocated_with(superblock, frames, start, end)
    if superblock.headroom.allows((high - low) * superblock.page_size):
        return
    allocate = partial(_allocate_by, superblock.allocator, superblock, frames.fd)
    # Not cancellable, like a thread: no other code may see memory that is being freed.
    with superblock.loop.shield():
        try:
            await allocate(low, high)
        except OSError as exc:
            least = _granules(superblock, frames.fd, start, end)
            if exc.errno != errno.ENOSPC or least == (low, high):
                # After ENOMEM `fetch_now` would try their whole folios again, in the
                # daemon.
                raise
            # They may fit without the rest of their folios.
            await allocate(*least)


async def _allocate_by(
    allocator: LongAllocator, superblock: Superblock, fd: int, start: int, end: int
) -> None:
    offset, length = (pages * superblock.page_size for pages in (start, end - start))
    never = superblock.loop.event()
    await allocator.allocate(fd, FALLOC_FL_KEEP_SIZE, offset, length, never)


async def check_memory(superblock: Superblock, turn: Turn, fd: int, page: int) -> None:
    """Check that a page is not a hole. The file's turn must be free.

    Raises:
        OSError: ENXIO if it is one, as memory_failure() for a pfn without memory.
    """
    hole = partial(first_hole, fd, superblock.page_size, page, page + 1)
    if superblock.page_size <= INLINE_FETCH_BYTES:
        found = hole()
    else:
        # A huge page may have to be allocated to find that out.
        with turn.take():
            found = await superblock.loop.in_thread(
                hole, limiter=superblock.threads.fetches
            )
    if found is not None:
        raise OSError(
            errno.ENXIO, f"page {page} is a hole: it has no memory that could fail"
        )
