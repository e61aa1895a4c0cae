"""Long allocations: in a thread, in a worker, or in pieces, as the rules demand."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.errnos import os_error

if TYPE_CHECKING:
    from inaccfs.shim.call import Call
    from inaccfs.shim.loop import Event
    from inaccfs.shim.superblock import LongAllocator, Superblock
    from inaccfs.shim.turn import Turn

SHORT_BYTES: Final = 128 << 20
"""An allocation up to this is over before a signal could interrupt it."""

INTERRUPT_CHECK_BYTES: Final = 32 << 20
"""Where the rules keep what has been allocated, a call checks for an interrupt after so
many bytes. A larger page, up to 1 GiB, is allocated in one piece.
"""


def worker_for(superblock: Superblock, call: Call) -> LongAllocator | None:
    """The worker process for an allocation that is long, or near a cgroup's limit.

    None if the daemon may allocate itself; then the bytes are counted, see
    `Headroom.allows`.
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
    interrupted: Event,
) -> None:
    """Make an allocation that is too long for the loop. The caller has *turn*.

    Raises:
        OSError: the errno of fallocate(2); EINTR after *interrupted* was set. By the
            rule `on_interrupt` the memory allocated until then stays.
    """
    if superblock.semantics.on_interrupt == "undone":
        await _allocate(superblock, turn, fd, call, interrupted)
        return
    # Like kvm_gmem_allocate() of guest_memfd, where a piece is a folio: what has been
    # allocated stays, however the call ends.
    for piece in call.pieces(max(INTERRUPT_CHECK_BYTES, superblock.page_size)):
        if interrupted.is_set():
            raise os_error(errno.EINTR)
        await _allocate(superblock, turn, fd, piece, interrupted)


async def _allocate(
    superblock: Superblock,
    turn: Turn,
    fd: int,
    call: Call,
    interrupted: Event,
) -> None:
    worker = worker_for(superblock, call)
    if worker is None:
        change = partial(syscalls.fallocate, fd, *call.arguments)
        await superblock.loop.in_thread(change, limiter=superblock.threads.changes)
        return
    turn.undoing = await worker.allocate(fd, *call.arguments, interrupted)
    if turn.undoing is not None:
        raise os_error(errno.EINTR)
