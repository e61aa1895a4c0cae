"""Long allocations: in a thread, in a worker, or in pieces, as the rules demand."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.semantics import refused

if TYPE_CHECKING:
    from inaccfs.shim.call import Call
    from inaccfs.shim.loop import Event
    from inaccfs.shim.superblock import LongAllocator, Superblock
    from inaccfs.shim.turn import Turn

SHORT_BYTES: Final = 128 << 20
"""An allocation up to this is over before a signal could interrupt it."""

PIECE_BYTES: Final = 32 << 20
"""So much is allocated between two looks at an interrupt, where the rules keep what has
been allocated. A page may be larger, up to 1 GiB; it is a piece then.
"""


def worker_for(superblock: Superblock, call: Call) -> LongAllocator | None:
    """What must make an allocation because it is long, or near a cgroup's limit.

    None if it may be made here; it is counted as made then, see `Headroom.allows`.
    """
    allocator = superblock.allocator
    if (
        allocator is not None
        and call.length <= SHORT_BYTES
        and superblock.headroom.allows(call.length)
    ):
        return None
    return allocator


async def allocate(
    superblock: Superblock,
    turn: Turn,
    fd: int,
    call: Call,
    worker: LongAllocator | None,
    interrupted: Event,
) -> None:
    """Allocate what does not fit in the loop. The caller has *turn*.

    *worker* is what `worker_for` has said of *call*.

    Raises:
        OSError: the errno of fallocate(2); EINTR when *interrupted* has been set. What
            has been allocated by then is kept, where the rules say so.
    """
    if superblock.semantics.on_interrupt == "undone":
        await _allocate(superblock, turn, fd, call, worker, interrupted)
        return
    # As kvm_gmem_allocate() of guest_memfd, where a piece is a folio: what has been
    # allocated stays, whatever ends the call.
    for piece in call.pieces(max(PIECE_BYTES, superblock.page_size)):
        if interrupted.is_set():
            raise refused(errno.EINTR)
        worker = worker_for(superblock, piece)
        await _allocate(superblock, turn, fd, piece, worker, interrupted)


async def _allocate(
    superblock: Superblock,
    turn: Turn,
    fd: int,
    call: Call,
    worker: LongAllocator | None,
    interrupted: Event,
) -> None:
    if worker is None:
        change = partial(syscalls.fallocate, fd, *call.arguments)
        await superblock.loop.in_thread(change, limiter=superblock.threads.changes)
        return
    turn.undoing = await worker.allocate(fd, *call.arguments, interrupted)
    if turn.undoing is not None:
        raise refused(errno.EINTR)
