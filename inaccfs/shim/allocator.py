"""Long allocations, in processes of their own because only those can be interrupted.

A tmpfs that is told to stop gives back what it had taken, which nobody else can do as
exactly. But it stops for a fatal signal only: in Linux 6.18 a large fallocate(2)
takes no notice of others, and what is fatal for a thread is fatal for the daemon. So
each long allocation is a process, which is killed when its caller loses patience.

The processes are children of a helper that is forked from the daemon before it has
anything to hide or a thread to lose: it waits for a request (an fd of the file, and a
socket for the answer), and forks a worker. All die with the daemon.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import struct
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from inaccfs import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.shim.loop import Event

_request: Final = struct.Struct("=iqq")  # mode, offset, length
_answer: Final = struct.Struct("=i")  # errno, or 0

# How long a killed allocation may take to end. If it has not by then it is giving back
# what it had taken, and EINTR is certain.
_GRACE_SECONDS: Final = 0.03


class Undoing:
    """A killed allocation that still gives back what it had taken."""

    def __init__(self, answer: socket.socket) -> None:
        self._answer = answer
        self._lock = trio.Lock()

    async def wait(self) -> None:
        """Wait until it has. Any number of tasks may."""
        async with self._lock:
            if self._answer.fileno() >= 0:
                # The worker's end of the socket is closed when it has ended.
                await trio.lowlevel.wait_readable(self._answer)
                self._answer.close()


class Allocator:
    """The daemon's side of the helper."""

    def __init__(self) -> None:
        """Fork the helper. Call it before threads, fds and other files are made."""
        self._requests, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )
        # What has been made so far is shared with the helper as long as the collector
        # does not write to it.
        gc.freeze()
        parent = os.getpid()
        self._helper = os.fork()
        if self._helper == 0:
            _run_child(partial(_serve, theirs), parent)
        theirs.close()
        self._requests.setblocking(False)

    def close(self) -> None:
        """End the helper, and wait until all that was killed has given memory back."""
        self._requests.close()
        os.waitpid(self._helper, 0)

    async def allocate(
        self, fd: int, mode: int, offset: int, length: int, interrupted: Event
    ) -> Undoing | None:
        """fallocate(2), until it is done or *interrupted* is set.

        Returns None when the memory is there. When it was interrupted and is still
        giving the memory back, returns what does so: for the caller that is EINTR.

        Raises:
            OSError: the errno of fallocate(2), or EINTR when it was interrupted and
                has ended; EPIPE when there is no helper any more.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ExitStack() as stack:
            stack.callback(ours.close)
            with theirs:
                request = _request.pack(mode, offset, length)
                socket.send_fds(self._requests, [request], [fd, theirs.fileno()])
            # Also when cancelled: only with it can the worker be killed.
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(ours)
            pidfd = _receive_pidfd(ours)
            stack.callback(os.close, pidfd)
            # Whatever ends this: nobody wants the memory any more.
            stack.callback(_kill, pidfd)
            if not await _wait_or_kill(ours, pidfd, interrupted):
                stack.pop_all()
                os.close(pidfd)
                return Undoing(ours)
            answer = ours.recv(_answer.size)
        number = _answer.unpack(answer)[0] if answer else errno.EINTR
        if number:
            raise OSError(number, os.strerror(number))
        return None


def _receive_pidfd(answer: socket.socket) -> int:
    """The means to kill a worker: the first that it sends."""
    _, pidfds, _, _ = socket.recv_fds(answer, 1, 1)
    if not pidfds:
        raise OSError(errno.EAGAIN, "no process for a long allocation")
    return pidfds[0]


def _kill(pidfd: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


async def _wait_or_kill(answer: socket.socket, pidfd: int, interrupted: Event) -> bool:
    """Wait for the answer; after a kill only as long as is due. False if none came."""
    ended = False

    async def kill() -> None:
        await interrupted.wait()
        _kill(pidfd)
        await trio.sleep(_GRACE_SECONDS)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        await trio.lowlevel.wait_readable(answer)
        ended = True
        nursery.cancel_scope.cancel()
    return ended


# --- in the helper and in its workers: one thread, no trio ---------------------------


def _run_child(work: Callable[[], None], parent: int) -> NoReturn:
    """Be a child of *parent*: do its work, die with it, and never return."""
    try:
        syscalls.die_with_parent()
        if os.getppid() == parent:
            work()
    finally:
        os._exit(0)


def _serve(requests: socket.socket) -> None:
    # Ctrl-C in a terminal is for the daemon, which ends its helper.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Whoever waits for the end of the daemon's output does not wait for ours.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    os.closerange(3, requests.fileno())
    os.closerange(requests.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    workers: set[int] = set()
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _request.size, 2)
        if not data:
            break
        me = os.getpid()
        # Where no process can be had, the requester finds its socket closed.
        with suppress(OSError):
            worker = os.fork()
            if worker == 0:
                _run_child(partial(_work, data, fds), me)
            workers.add(worker)
        for fd in fds:
            os.close(fd)
        _reap(workers, os.WNOHANG)
    # The daemon ends, and may not have had the time to kill one itself.
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    _reap(workers, 0)


def _reap(workers: set[int], options: int) -> None:
    """Forget the workers that have ended."""
    with suppress(ChildProcessError):
        while (worker := os.waitpid(-1, options)[0]) != 0:
            workers.discard(worker)


def _work(data: bytes, fds: list[int]) -> None:
    file, reply_to = fds
    with socket.socket(fileno=reply_to) as answer:
        # First of all the means to kill us.
        socket.send_fds(answer, [b"\0"], [os.pidfd_open(os.getpid())])
        try:
            syscalls.fallocate(file, *_request.unpack(data))
        except OSError as exc:
            number = exc.errno or errno.EIO
        else:
            number = 0
        answer.send(_answer.pack(number))
