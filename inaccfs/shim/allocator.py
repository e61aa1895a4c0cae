"""Long allocations, in processes of their own because only those can be interrupted.

A tmpfs whose fallocate(2) is interrupted gives back exactly the memory that the call
had taken; no other code can do that. But in Linux 6.18 only a fatal signal interrupts a
large fallocate(2), and what is fatal for a thread is fatal for the daemon. So each long
allocation has a worker (see `inaccfs.helper`), which is killed when a signal interrupts
the caller.
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

# How long a killed allocation may take to end. One that takes longer is giving memory
# back, and it is certain that the call ends with EINTR.
_GRACE_SECONDS: Final = 0.03


class Undoing:
    """A killed allocation that is still giving back the memory it had taken."""

    def __init__(self, workers: Pool, worker: Worker) -> None:
        self._workers = workers
        self._worker = worker
        self._lock = trio.Lock()
        workers.let_undo(worker)

    async def wait(self) -> None:
        """Wait until all of it has been given back. Any number of tasks may wait."""
        async with self._lock:
            if self._worker.is_open:
                # The worker's end of the connection closes when the worker ends.
                await self._worker.wait_answer()
                self._workers.dismiss(self._worker)


class Allocator:
    """Makes long allocations, each in a separate worker."""

    def __init__(self, workers: Pool, headroom: Headroom | None = None) -> None:
        """Use *workers*, which the caller closes."""
        self._workers: Final = workers
        self._headroom: Final = headroom or Headroom()

    async def allocate(
        self, fd: int, mode: int, offset: int, length: int, interrupted: Event
    ) -> Undoing | None:
        """fallocate(2), until it is done or *interrupted* is set.

        Returns None when the memory has been allocated. If the call was interrupted and
        memory is still being given back, returns that: the caller fails with EINTR.

        Raises:
            OSError: the errno of fallocate(2); EINTR when it was interrupted and has
                ended; ENOMEM near the limit of a memory cgroup, and when the worker
                was killed, by the OOM killer most likely; EAGAIN and the like, when no
                process can be forked.
        """
        self._headroom.check(fd, offset, length)
        request = wire.pack_request(wire.ALLOCATE, mode, offset, length)
        try:
            return await self._allocate(request, fd, interrupted)
        except WorkerGoneError:
            if not await self._workers.lost_helper():
                raise os_error(errno.ENOMEM) from None
        # The helper was killed, and its workers with it.
        try:
            return await self._allocate(request, fd, interrupted)
        except WorkerGoneError:
            raise os_error(errno.ENOMEM) from None

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
                raise os_error(errno.EINTR) from None
            raise
        except OSError:
            self._workers.give_back(worker)
            raise
        except BaseException:
            # The call is abandoned, so its memory must not stay.
            self._workers.let_die(worker)
            raise
        self._workers.give_back(worker)
        return None

    async def _lease(self, interrupted: Event) -> Worker:
        """Lease a worker. Waits for as long as the helper is stopped."""
        leased: list[Worker | OSError] = []

        async def lease() -> None:
            try:
                leased.append(await self._workers.lease())
            except OSError as exc:
                # The nursery would wrap it in an ExceptionGroup.
                leased.append(exc)

        try:
            await first_of(lease, interrupted.wait)
        except BaseException:
            # Cancelled while it leased: the nursery raises that in an ExceptionGroup.
            for one in leased:
                if not isinstance(one, OSError):
                    self._workers.give_back(one)
            raise
        if not leased:
            raise os_error(errno.EINTR)
        if isinstance(leased[0], OSError):
            raise leased[0]
        return leased[0]


async def _wait_or_kill(worker: Worker, interrupted: Event) -> bool:
    """Wait for the answer; after a kill for `_GRACE_SECONDS`. False if none came."""
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
