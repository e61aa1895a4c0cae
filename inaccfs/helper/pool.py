"""The daemon's side of the helper: gets workers, and restarts a killed helper."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import trio

from inaccfs import children
from inaccfs.errnos import os_error
from inaccfs.helper import starting, wire
from inaccfs.readiness import is_readable, wait_readable, wait_writable
from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from inaccfs.helper.starting import Process
    from inaccfs.helper.wire import Answer

log = logging.getLogger(__name__)

# Workers that wait for the next request. A fork takes about half a millisecond.
_IDLE_WORKERS: Final = 1

# The pause between starts, so that a helper that keeps dying costs little.
_PAUSE_SECONDS: Final = 1.0


class WorkerGoneError(Exception):
    """A worker has ended without an answer: it was killed."""


class Worker:
    """A process that does one thing at a time, and the daemon's end of its socket."""

    def __init__(self, connection: socket.socket, pidfd: int) -> None:
        self._connection: Final = connection
        self._pidfd: Final = pidfd
        self.killed = False

    @property
    def is_open(self) -> bool:
        """False after `close`."""
        return self._connection.fileno() >= 0

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return is_readable(self._pidfd)

    @property
    def has_answered(self) -> bool:
        """Whether an answer has come, or none can come any more."""
        return is_readable(self._connection.fileno())

    def kill(self) -> None:
        """Kill it. The kernel frees what an unfinished request had allocated."""
        self.killed = True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close its socket and pidfd. If it waits for a request, it ends."""
        if self.is_open:
            self._connection.close()
            os.close(self._pidfd)

    def wait_ended(self) -> None:
        """Block until the process has ended."""
        children.wait_readable(self._pidfd)

    def ask(self, request: bytes, fd: int | None = None) -> None:
        """Send a request, without waiting for the answer.

        Raises:
            OSError: sendmsg(2) failed.
            WorkerGoneError: it has ended.
        """
        try:
            wire.send(self._connection, request, fd)
        except ConnectionError:
            raise WorkerGoneError from None

    async def wait_answer(self) -> None:
        """Wait until an answer has come, or none can come any more."""
        await wait_readable(self._connection)

    def take_answer(self) -> tuple[Answer, int]:
        """Take the answer that has come, and the fd that came with it, or -1.

        Raises:
            OSError: what the worker's system call failed with.
            WorkerGoneError: the worker ended without an answer.
        """
        try:
            packet, fd = wire.receive(self._connection)
        except ConnectionError:
            packet, fd = b"", -1
        if not packet:
            raise WorkerGoneError
        answer, text = wire.unpack_answer(packet)
        if answer.number == wire.A_BUG:
            log.error("bug in a worker of the helper: %s", text)
            # A worker ends after such an answer.
            self.killed = True
            raise OSError(errno.EIO, "a bug; see the daemon's log")
        if answer.number:
            raise os_error(answer.number)
        return answer, fd


class Pool:
    """Gives the helper's workers to tasks of the daemon."""

    def __init__(self) -> None:
        """Start the helper. Call it before threads, secrets and mounts are made."""
        self._process: Process = starting.fork()
        self._starting: Final = trio.Lock()
        # Held while a task sends a request to the helper.
        self._asking: Final = trio.Lock()
        self._idle: Final[list[Worker]] = []
        # Killed workers, whose memory the kernel may still be freeing. No task waits
        # for those in _dying; one does for each of _undoing.
        self._dying: Final[set[Worker]] = set()
        self._undoing: Final[set[Worker]] = set()

    @property
    def pid(self) -> int:
        """The pid of the helper."""
        return self._process.pid

    def close(self) -> None:
        """End the helper, and wait for its workers, and for memory that they free.

        Not for one that closes a foreign fd, which may take for ever.
        """
        self._process.close()
        for worker in {*self._idle, *self._dying, *self._undoing}:
            worker.kill()
            worker.wait_ended()
            worker.close()

    async def run(self) -> None:
        """Until cancelled, keep a helper running and a worker idle."""
        trouble = Trouble()
        while True:
            begun = trio.current_time()
            try:
                self.give_back(await self.lease())
            except OSError as exc:
                trouble.met(f"no helper process: {exc}")
            except Exception:
                # The mount works on without a helper, and the next attempt may succeed.
                log.exception("bug in starting a helper process")
            else:
                trouble.over()
                # While we wait, another task may close this process and start the next.
                with suppress(trio.ClosedResourceError):
                    await wait_readable(self._process)
            await trio.sleep_until(begun + _PAUSE_SECONDS)

    async def lease(self) -> Worker:
        """A worker, for the caller's sole use until `give_back` or `dismiss`.

        Raises:
            OSError: no process can be started (EAGAIN, ENOMEM).
        """
        self._bury()
        while self._idle:
            worker = self._idle.pop()
            if not worker.has_ended:
                return worker
            worker.close()
        while True:
            await self._revive()
            if (made := await self._ask_for_worker()) is not None:
                return made
            await self.lost_helper()

    def give_back(self, worker: Worker) -> None:
        """Return a worker that has finished its request, for other tasks to use."""
        if worker.killed or len(self._idle) >= _IDLE_WORKERS:
            self.dismiss(worker)
        else:
            self._idle.append(worker)

    def dismiss(self, worker: Worker) -> None:
        """Kill and close a worker."""
        worker.kill()
        worker.close()
        self._dying.discard(worker)
        self._undoing.discard(worker)

    def let_die(self, worker: Worker) -> None:
        """Kill a worker whose memory may take time to free; `close` waits for that."""
        worker.kill()
        self._dying.add(worker)
        self._bury()

    def _bury(self) -> None:
        """Close dying workers that have ended."""
        for worker in [worker for worker in self._dying if worker.has_ended]:
            self.dismiss(worker)

    def let_undo(self, worker: Worker) -> None:
        """Keep a killed worker while its memory is freed, until a task dismisses it."""
        self._undoing.add(worker)

    async def lost_helper(self) -> bool:
        """Whether the helper has ended, so that its workers were killed with it.

        Call it after a connection to the helper or a worker has closed: the process may
        end a moment after its sockets.
        """
        process = self._process
        for _ in range(50):
            if process is not self._process or process.has_ended:
                return True
            await trio.sleep(0.001)
        return False

    async def _ask_for_worker(self) -> Worker | None:
        """A new worker, or None if the helper has ended meanwhile."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as stack:
            stack.enter_context(ours)
            ours.setblocking(False)
            try:
                with theirs:
                    await self._send(theirs.fileno())
                # If this is cancelled, the worker finds its connection closed.
                await wait_readable(ours)
                packet, pidfd = wire.receive(ours)
            except (ConnectionError, trio.ClosedResourceError):
                return None
            if not packet:
                return None
            if pidfd < 0:
                # fork(2) has failed; or it worked, but this process has no fd left.
                raise os_error(wire.unpack_answer(packet)[0].number or errno.EMFILE)
            stack.pop_all()
            return Worker(ours, pidfd)

    async def _send(self, connection: int) -> None:
        requests = self._process.requests
        async with self._asking:
            while True:
                try:
                    wire.send(requests, wire.WORKER, connection)
                except BlockingIOError:
                    # The helper has been stopped.
                    await wait_writable(requests)
                else:
                    return

    async def _revive(self) -> None:
        """Start a new helper if the last one has ended. Raises `OSError`."""
        async with self._starting:
            if not self._process.has_ended:
                return
            process = await starting.start_anew()
            for fd in (self._process, self._process.requests):
                trio.lowlevel.notify_closing(fd)
            self._process.close()
            self._process = process
            log.warning("the helper was killed: started a new one")
