"""Long allocations, in processes of their own because only those can be interrupted.

A tmpfs that is told to stop gives back what it had taken, which nobody else can do as
exactly. But it stops for a fatal signal only: in Linux 6.18 a large fallocate(2)
takes no notice of others, and what is fatal for a thread is fatal for the daemon. So
each long allocation has a worker (see `inaccfs.helper`), which is killed when its
caller loses ack_timeouts.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.errnos import os_error
from inaccfs.helper import wire
from inaccfs.helper.pool import WorkerGoneError
from inaccfs.shim.headroom import Headroom
from inaccfs.shim.loop import first_of

if TYPE_CHECKING:
    from inaccfs.helper.pool import Pool, Worker
    from inaccfs.shim.loop import Event

# How long a killed allocation may take to end. If it has not by then it is giving back
# what it had taken, and EINTR is certain.
_GRACE_SECONDS: Final = 0.03


class Undoing:
    """A killed allocation that still gives back what it had taken."""

    def __init__(self, workers: Pool, worker: Worker) -> None:
        self._workers = workers
        self._worker = worker
        self._lock = trio.Lock()
        workers.let_undo(worker)

    async def wait(self) -> None:
        """Wait until it has. Any number of tasks may."""
        async with self._lock:
            if self._worker.is_open:
                # Its end of the connection is closed when it has ended.
                await self._worker.wait_answer()
                self._workers.dismiss(self._worker)


class Allocator:
    """Makes long allocations, each in a worker of its own."""

    def __init__(self, workers: Pool, headroom: Headroom | None = None) -> None:
        """Use *workers*; they are closed by whoever made them."""
        self._workers: Final = workers
        self._headroom: Final = headroom or Headroom()

    async def allocate(
        self, fd: int, mode: int, offset: int, length: int, interrupted: Event
    ) -> Undoing | None:
        """fallocate(2), until it is done or *interrupted* is set.

        Returns None when the memory is there. When it was interrupted and is still
        giving the memory back, returns what does so: for the caller that is EINTR.

        Raises:
            OSError: the errno of fallocate(2); EINTR when it was interrupted and has
                ended; ENOMEM near the limit of a memory cgroup, and when the worker
                was killed, by the OOM killer most likely; EAGAIN and the like, when no
                process is to be had.
        """
        self._headroom.check(fd, offset, length)
        request = wire.pack_request(wire.ALLOCATE, mode, offset, length)
        try:
            return await self._allocate(request, fd, interrupted)
        except WorkerGoneError:
            if not await self._workers.lost_helper():
                raise _no_memory() from None
        # It was not the worker that was killed, but the helper, and that with it.
        try:
            return await self._allocate(request, fd, interrupted)
        except WorkerGoneError:
            raise _no_memory() from None

    async def _allocate(
        self, request: bytes, fd: int, interrupted: Event
    ) -> Undoing | None:
        worker = await self._lease(interrupted)
        try:
            worker.ask(request, fd)
            if not await _wait_or_kill(worker, interrupted):
                return Undoing(self._workers, worker)
            worker.take_answer()
        except WorkerGoneError:
            self._workers.let_die(worker)
            if interrupted.is_set():
                raise _interrupted() from None
            raise
        except OSError:
            self._workers.give_back(worker)
            raise
        except BaseException:
            # Nobody wants the memory any more.
            self._workers.let_die(worker)
            raise
        self._workers.give_back(worker)
        return None

    async def _lease(self, interrupted: Event) -> Worker:
        """A worker, which may take as long as the helper is stopped."""
        leased: list[Worker | OSError] = []

        async def lease() -> None:
            try:
                leased.append(await self._workers.lease())
            except OSError as exc:
                # Not out of the nursery, which would make a group of it.
                leased.append(exc)

        try:
            await first_of(lease, interrupted.wait)
        except trio.Cancelled:
            for one in leased:
                if not isinstance(one, OSError):
                    self._workers.give_back(one)
            raise
        if not leased:
            raise _interrupted()
        if isinstance(leased[0], OSError):
            raise leased[0]
        return leased[0]


def _interrupted() -> OSError:
    return os_error(errno.EINTR)


def _no_memory() -> OSError:
    return os_error(errno.ENOMEM)


async def _wait_or_kill(worker: Worker, interrupted: Event) -> bool:
    """Wait for the answer; after a kill only as long as is due. False if none came."""
    ended = False

    async def kill() -> None:
        await interrupted.wait()
        worker.kill()
        await trio.sleep(_GRACE_SECONDS)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        await worker.wait_answer()
        ended = True
        nursery.cancel_scope.cancel()
    return ended
