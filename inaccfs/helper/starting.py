"""Starting the helper: first as a fork of the daemon, later as a new interpreter.

Once the daemon has a mount, threads and pinned memory, a fork would keep all these
alive as long as the helper lives. So a helper that replaces a killed one is a new
interpreter.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from inaccfs.children import starting
from inaccfs.errors import MountError
from inaccfs.helper import wire
from inaccfs.helper.process import OOM_SCORE_ADJ, run_child, serve
from inaccfs.readiness import is_readable, wait_readable
from inaccfs.syscalls import peer_credentials

# On an idle machine a start takes a tenth of a second.
_START_SECONDS: Final = 30.0


class Process:
    """A helper, and the socket that it takes requests from."""

    def __init__(
        self,
        pid: int,
        requests: socket.socket,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.pid: Final = pid
        self.requests: Final = requests
        # The process of a helper in a new interpreter.
        self._process = process
        self._pidfd = os.pidfd_open(pid)
        requests.setblocking(False)

    def fileno(self) -> int:
        """A pidfd, readable once it has ended; -1 after `close`."""
        return self._pidfd

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return is_readable(self._pidfd)

    def close(self) -> None:
        """Kill it, and wait until it has ended, which does not take long."""
        self.requests.close()
        # It ends by itself, too, but not while it is stopped.
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        else:
            # If SIGCHLD is ignored, the kernel has reaped it already.
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1


def fork() -> Process:
    """Start a helper. Call it before threads, secrets and mounts are made.

    Raises:
        MountError: no process is allowed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The helper shares the objects made so far, as long as the garbage collector does
    # not write to them.
    gc.freeze()
    parent = os.getpid()
    with starting("the helper", MountError):
        pid = os.fork()
    if pid == 0:
        run_child(partial(serve, theirs), parent)
    theirs.close()
    return Process(pid, ours)


_CODE: Final = """\
import sys
sys.path.insert(0, sys.argv[1])
from inaccfs.helper import process
process.run_alone(int(sys.argv[2]), int(sys.argv[3]))
"""


async def start_anew() -> Process:
    """Start a helper in a new interpreter, in the main thread: it dies with that.

    Until it is undumpable, other processes of the same user could take its fds. So it
    makes the socket for requests itself, after that.

    Raises:
        OSError: no process can be started, or it failed to become the helper.
    """
    bootstrap, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    bootstrap.setblocking(False)
    with bootstrap:
        with theirs:
            process = _spawn(theirs.fileno())
        try:
            with trio.fail_after(_START_SECONDS):
                await wait_readable(bootstrap)
            requests = _receive_requests(bootstrap)
            try:
                _check(requests, process.pid)
                return Process(process.pid, requests, process)
            except BaseException:
                requests.close()
                raise
        except BaseException as exc:
            process.kill()
            process.wait()
            if isinstance(exc, trio.TooSlowError):
                raise TimeoutError("it did not start in time") from None
            raise


def _spawn(bootstrap: int) -> subprocess.Popen[bytes]:
    top = str(Path(__file__).resolve().parent.parent.parent)
    process = subprocess.Popen(
        # It needs neither the environment nor installed packages.
        [
            *(sys.executable, "-I", "-S", "-c", _CODE, top),
            *(str(bootstrap), str(os.getpid())),
        ],
        pass_fds=[bootstrap],
        stdin=subprocess.DEVNULL,
        env={},
        cwd="/",
    )
    # Do this before the helper has the memory to do it itself.
    with suppress(OSError), open(f"/proc/{process.pid}/oom_score_adj", "wb") as file:
        file.write(b"%d" % OOM_SCORE_ADJ)
    return process


def _receive_requests(bootstrap: socket.socket) -> socket.socket:
    """The socket for requests that the helper has made."""
    try:
        _, fd = wire.receive(bootstrap)
    except ConnectionError:
        fd = -1
    if fd < 0:
        raise ConnectionAbortedError("it ended while it started")
    return socket.socket(fileno=fd)


def _check(requests: socket.socket, pid: int) -> None:
    """Check that helper *pid* made the socket, and that no process controls it."""
    if peer_credentials(requests).pid != pid or _is_traced(pid):
        raise PermissionError("another process traces it or answers in its place")


def _is_traced(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
        return any(
            line.startswith("TracerPid:") and int(line.split()[1]) for line in lines
        )
