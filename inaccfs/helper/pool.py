"""The daemon's side of the helper: it gets workers, and starts a new one if need be."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.helper import starting, wire
from inaccfs.readiness import is_readable, wait_readable, wait_writable
from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from inaccfs.helper.starting import Process
    from inaccfs.helper.wire import Answer

log = logging.getLogger(__name__)

# Workers that wait for the next request. A fork takes some half a millisecond.
_IDLE_WORKERS: Final = 1

# A helper that cannot live is not started anew all the time.
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
        """Whether nobody has let go of it yet."""
        return self._connection.fileno() >= 0

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return is_readable(self._pidfd)

    @property
    def has_answered(self) -> bool:
        """Whether there is an answer, or never will be."""
        return is_readable(self._connection.fileno())

    def kill(self) -> None:
        """End it. What it had allocated for an unfinished request is given back."""
        self.killed = True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it. If it waits for a request, it ends."""
        if self.is_open:
            self._connection.close()
            os.close(self._pidfd)

    def wait_ended(self) -> None:
        """Block until it has ended."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        poller.poll()

    def ask(self, request: bytes, fd: int | None = None) -> None:
        """Send a request. The answer comes when it comes.

        Raises:
            OSError: sendmsg(2) failed.
            WorkerGoneError: it has ended.
        """
        try:
            wire.send(self._connection, request, fd)
        except ConnectionError:
            raise WorkerGoneError from None

    async def wait_answer(self) -> None:
        """Wait until there is an answer, or there never will be."""
        await wait_readable(self._connection)

    def take_answer(self) -> tuple[Answer, int]:
        """The answer that is there, and the fd that came with it, or -1.

        Raises:
            OSError: what the worker's system call failed with.
            WorkerGoneError: there is none, and never will be.
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
            # It ends after this.
            self.killed = True
            raise OSError(errno.EIO, "a bug; see the daemon's log")
        if answer.number:
            raise OSError(answer.number, os.strerror(answer.number))
        return answer, fd


class Pool:
    """The helper's workers, to be leased."""

    def __init__(self) -> None:
        """Start the helper. Call it before threads, secrets and mounts are made."""
        self._process: Process = starting.fork()
        self._starting: Final = trio.Lock()
        # Its owner may wait until the helper takes a request.
        self._asking: Final = trio.Lock()
        self._idle: Final[list[Worker]] = []
        # Those that were killed and may still give memory back: nobody else waits for
        # the former, and somebody for the latter.
        self._dying: Final[set[Worker]] = set()
        self._undoing: Final[set[Worker]] = set()

    @property
    def pid(self) -> int:
        """Of the helper."""
        return self._process.pid

    def close(self) -> None:
        """End the helper, and wait until what was killed has given memory back."""
        for worker in self._idle:
            worker.close()
        self._process.close()
        for worker in self._dying | self._undoing:
            worker.wait_ended()
            worker.close()

    async def run(self) -> None:
        """Keep a helper, and a worker for the next request; until cancelled."""
        trouble = Trouble()
        while True:
            begun = trio.current_time()
            try:
                self.give_back(await self.lease())
            except OSError as exc:
                trouble.met(f"no helper process: {exc}")
            except Exception:
                # The mount goes on without, and the next try may do.
                log.exception("bug in starting a helper process")
            else:
                trouble.over()
                # Another task may start the next one, and close this, while we wait.
                with suppress(trio.ClosedResourceError):
                    await wait_readable(self._process)
            await trio.sleep_until(begun + _PAUSE_SECONDS)

    async def lease(self) -> Worker:
        """A worker, for its caller alone until `give_back` or `dismiss`.

        Raises:
            OSError: no process is to be had (EAGAIN, ENOMEM).
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
        """Let others have a worker that has done what it was asked for."""
        if worker.killed or len(self._idle) >= _IDLE_WORKERS:
            self.dismiss(worker)
        else:
            self._idle.append(worker)

    def dismiss(self, worker: Worker) -> None:
        """Kill a worker and let go of it."""
        worker.kill()
        worker.close()
        self._dying.discard(worker)
        self._undoing.discard(worker)

    def let_die(self, worker: Worker) -> None:
        """Kill a worker that may have memory to give back; `close` waits for that."""
        worker.kill()
        self._dying.add(worker)
        self._bury()

    def _bury(self) -> None:
        """Let go of workers that were dying and are dead."""
        for worker in [worker for worker in self._dying if worker.has_ended]:
            self.dismiss(worker)

    def let_undo(self, worker: Worker) -> None:
        """Let a killed worker give memory back, until somebody dismisses it."""
        self._undoing.add(worker)

    async def lost_helper(self) -> bool:
        """Whether the helper has ended, so that its workers were killed with it.

        To be called when the connection to it or to a worker is lost: the process may
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
                # If this is cancelled, the worker finds that nobody wants it.
                await wait_readable(ours)
                packet, pidfd = wire.receive(ours)
            except (ConnectionError, trio.ClosedResourceError):
                return None
            if not packet:
                return None
            if pidfd < 0:
                # Where fork(2) worked, there is no fd left here.
                number = wire.unpack_answer(packet)[0].number or errno.EMFILE
                raise OSError(number, os.strerror(number))
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
        """Start a helper if there is none any more. Raises `OSError`."""
        async with self._starting:
            if not self._process.has_ended:
                return
            process = await starting.start_anew()
            for fd in (self._process, self._process.requests):
                trio.lowlevel.notify_closing(fd)
            self._process.close()
            self._process = process
            log.warning("the helper was killed: started anew")
