"""The helper's process and its workers: one thread each, no trio.

It imports little, as the helper may run in a new interpreter: see `starting`.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import traceback
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from inaccfs import syscalls
from inaccfs.helper import wire
from inaccfs.helper.wire import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OOM_SCORE_ADJ: Final = 1000
"""Makes the OOM killer choose the allocating worker, not the daemon or its user."""

# More than the helper's file mappings; its workers have its other memory, too.
_STANDING_OUT_BYTES: Final = 32 << 20


def run_child(work: Callable[[], None], parent: int) -> NoReturn:
    """Run *work* as a child of *parent*, which dies with it. Never returns."""
    try:
        syscalls.die_with_parent()
        if os.getppid() == parent:
            work()
    finally:
        os._exit(0)


def serve(requests: socket.socket) -> None:
    """Be the helper: fork a worker for each request, until the daemon closes.

    It keeps no fd except *requests*. Its workers die with it.
    """
    # Ignore Ctrl-C in a terminal: the daemon handles it, and ends its helper.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Let the kernel reap workers: nothing waits for them here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Do not keep the daemon's working directory busy.
    os.chdir("/")
    # Readers of the daemon's output must not wait for the helper to close it.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    _keep_only(requests.fileno())
    me = os.getpid()
    while True:
        packet, fd = wire.receive(requests)
        if not packet:
            return
        # With no fd left here, the daemon finds its connection closed.
        if fd < 0:
            continue
        with socket.socket(fileno=fd) as connection:
            try:
                if os.fork() == 0:
                    requests.close()
                    run_child(partial(_work, connection), me)
            except OSError as exc:
                _answer(connection, Answer(exc.errno or errno.EAGAIN))


def run_alone(bootstrap: int, parent: int) -> None:
    """Be a helper of *parent* in a new interpreter: see `starting`."""
    # The parent raises the score, too, but not once this process is undumpable.
    with syscalls.OomScore().raised(OOM_SCORE_ADJ):
        syscalls.set_dumpable(False)
        run_child(partial(_introduce, bootstrap), parent)


def _introduce(bootstrap: int) -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with socket.socket(fileno=bootstrap) as daemon, theirs:
        wire.send(daemon, wire.READY, theirs.fileno())
    serve(ours)


def _keep_only(fd: int) -> None:
    """Close all fds except 0 to 2 and *fd*."""
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))


# --- workers -------------------------------------------------------------------------


def _work(connection: socket.socket) -> None:
    """Be a worker: execute requests until the daemon closes the connection."""
    # Send a pidfd first, so that the daemon can kill this worker.
    pidfd = os.pidfd_open(os.getpid())
    _answer(connection, Answer(), pidfd)
    os.close(pidfd)
    while True:
        request, fd = wire.receive(connection)
        if not request:
            return
        try:
            _execute(connection, request, fd)
        except OSError as exc:
            _answer(connection, Answer(exc.errno or errno.EIO))
        except Exception:
            _answer(connection, Answer(wire.A_BUG), text=traceback.format_exc())
            return


def _execute(connection: socket.socket, request: bytes, fd: int) -> None:
    kind, *fields = wire.unpack_request(request)
    if kind == wire.ALLOCATE:
        _allocate(connection, fd, *map(int, fields))
    elif kind == wire.OPEN_TMPFILE:
        _open_tmpfile(connection, fields[0], fields[1].decode())
    else:
        _receive(connection, fd, int(fields[0]), fields[1].decode())


def _answer(
    connection: socket.socket, answer: Answer, fd: int | None = None, text: str = ""
) -> None:
    packet = answer.packed() + text.encode()[-wire.TEXT_BYTES :]
    # The daemon may have closed the connection meanwhile.
    with suppress(ConnectionError):
        wire.send(connection, packet, fd)


def _allocate(
    connection: socket.socket, fd: int, mode: int, offset: int, length: int
) -> None:
    with _standing_out():
        try:
            syscalls.fallocate(fd, mode, offset, length)
        finally:
            os.close(fd)
    _answer(connection, Answer())


@contextmanager
def _standing_out() -> Iterator[None]:
    """During a with block the OOM killer chooses this process, not the helper.

    It compares the memory that processes have mapped, and memory allocated in a file is
    not mapped. So this maps something that costs no memory: the interpreter's file, a
    few times.
    """
    with ExitStack() as stack:
        with open("/proc/self/exe", "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for _ in range(-(-_STANDING_OUT_BYTES // size)):
                stack.enter_context(
                    mmap.mmap(
                        file.fileno(),
                        size,
                        flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE,
                        prot=mmap.PROT_READ,
                    )
                )
        yield


def _open_tmpfile(connection: socket.socket, path: bytes, device: str) -> None:
    """Open a file through the mount: the kernel sends requests to the daemon."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    ours = _device(fd) == device
    if ours:
        _answer(connection, Answer(), fd)
    else:
        _answer(connection, Answer(errno.ESTALE))
    # Closing a file of the mount sends no request: see FOPEN_NOFLUSH in fuse/handlers.
    os.close(fd)


def _receive(connection: socket.socket, peer: int, size: int, device: str) -> None:
    """Read from a peer's socket, with an fd if one was sent along."""
    with socket.socket(fileno=peer) as messages:
        data, fd = wire.receive(messages, size, socket.MSG_DONTWAIT)
    if fd < 0:
        _answer(connection, Answer(size=len(data)))
        return
    if _device(fd) == device:
        _answer(connection, Answer(size=len(data)), fd)
        os.close(fd)
        return
    _answer(connection, Answer(size=len(data), foreign=True))
    # If the foreign file system never replies, this hangs, and no signal ends it.
    with suppress(OSError):
        os.close(fd)
    _answer(connection, Answer())


def _device(fd: int) -> str:
    try:
        return syscalls.identity(fd)[0]
    except OSError:
        # This call always succeeds for a file of the mount, so this is a foreign one.
        return ""
