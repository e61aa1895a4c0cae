"""The seam between a daemon and the kernel, where a test makes calls fail or wait.

`CALLS` are the functions through which the daemon's own code makes system calls, with
the errnos of their man pages that a correct program may get (so neither EBADF nor
EFAULT, and no EINTR where Python retries). faulty_daemon.py wraps them; a test arms one
at a time. Test and daemon share a mapped file, so the test also reaches the daemon's
helpers, and can let a waiting call go on.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, Final

from inaccfs import errnos as known
from tests.mount.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CALLS: Final[dict[str, str]] = {
    # --- files ---
    "os.open": "EMFILE ENFILE ENOMEM ENOSPC EACCES ENOENT",
    # ENOSPC and EDQUOT occur only on file systems that write back.
    "os.close": "EIO",
    "os.dup": "EMFILE ENOMEM",
    # From /proc/PID/comm, if the process has ended.
    "os.read": "ESRCH ENOMEM",
    "os.fstat": "ENOMEM",
    "os.stat": "ENOMEM ENOENT EACCES",
    "os.chmod": "EPERM EROFS ENOMEM",
    "os.chown": "EPERM EROFS ENOMEM",
    "os.ftruncate": "EIO EPERM EFBIG",
    "os.posix_fallocate": "ENOSPC EIO EFBIG",
    "os.pread": "EIO",
    # --- names ---
    "os.mkdir": "ENOSPC EDQUOT ENOMEM EROFS",
    "os.mknod": "ENOSPC EDQUOT ENOMEM EPERM",
    "os.symlink": "ENOSPC EDQUOT ENOMEM EROFS",
    "os.link": "ENOSPC EMLINK ENOMEM EPERM",
    "os.unlink": "ENOMEM EBUSY EIO EROFS",
    "os.rmdir": "ENOMEM EBUSY ENOTEMPTY",
    "os.readlink": "ENOMEM EIO",
    "os.listdir": "ENOMEM EMFILE",
    "os.getxattr": "ENODATA ERANGE ENOMEM",
    "os.setxattr": "ENOSPC EDQUOT ENOMEM",
    "os.removexattr": "ENODATA ENOMEM",
    "os.listxattr": "ERANGE ENOMEM",
    "os.fstatvfs": "EIO ENOMEM",
    "inaccfs.syscalls.getdents": "ENOENT ENOMEM",
    "inaccfs.syscalls.renameat2": "ENOSPC ENOMEM EXDEV EBUSY",
    "inaccfs.syscalls.utimensat": "EACCES EPERM EROFS",
    "inaccfs.syscalls.identity": "ENOMEM EACCES",
    # --- allocation ---
    "inaccfs.syscalls.fallocate_now": "ENOSPC EINTR EIO ENOMEM EPERM",
    "inaccfs.syscalls.fallocate": "ENOSPC EINTR EIO ENOMEM EPERM",
    "inaccfs.mmcalls.mmap": "ENOMEM EAGAIN ENFILE EPERM",
    "inaccfs.mmcalls.munmap": "ENOMEM",
    "inaccfs.mmcalls.populate": "ENOMEM EFAULT EHWPOISON EAGAIN",
    "inaccfs.mmcalls.pages_there": "EOPNOTSUPP ENOMEM",
    "inaccfs.uring.update_buffers": "ENOMEM EFAULT EINTR",
    # --- waiting ---
    # Calls of trio and ours. EPOLL_CTL_ADD only: for EPOLL_CTL_MOD the kernel needs
    # neither room nor memory (fs/eventpoll.c), and trio could not go on if it failed.
    "select.epoll.register": "ENOSPC ENOMEM",
    # --- processes and threads ---
    "os.fork": "EAGAIN ENOMEM",
    "os.pidfd_open": "EMFILE ENFILE ENOMEM",
    "threading.Thread.start": "EAGAIN",
    # --- the device and sockets ---
    "io.FileIO.readinto": "ENOENT",
    "io.FileIO.write": "ENOMEM",
    "os.writev": "ENOMEM",
    "socket.socketpair": "EMFILE ENFILE ENOMEM",
    "socket.send_fds": "ENOBUFS ENOMEM ETOOMANYREFS EPIPE",
    "socket.socket.accept": "EMFILE ENFILE ENOBUFS ENOMEM ECONNABORTED EPERM",
    "socket.socket.setblocking": "ENOMEM",
    "socket.socket.getsockopt": "ENOBUFS ENOMEM",
    "socket.socket.send": "ENOBUFS ENOMEM EPIPE ECONNRESET",
    "socket.socket.recv": "ENOMEM ECONNRESET",
    "socket.socket.recvmsg": "ENOMEM ECONNRESET",
    "socket.socket.recv_into": "ENOMEM ECONNRESET",
    "fcntl.fcntl": "EAGAIN ENOMEM",
}

NAMES: Final = tuple(CALLS)

WAIT: Final = 0
"""In place of an errno: the call waits until the seam is disarmed."""

# The errno, the calls to let pass, the calls to fail, the failures so far, and the time
# when this ends (CLOCK_MONOTONIC, which is the same in all processes). Then for each
# call a byte, whether it is armed, and the number of calls made.
_armed: Final = struct.Struct("=iiiid")
_mask_at: Final = 64
_counts_at: Final = 256
_SIZE: Final = _counts_at + 8 * len(NAMES)
assert _mask_at + len(NAMES) <= _counts_at


class Seam:
    """The armed calls, in a file that the test and its daemon have mapped."""

    def __init__(self, path: Path | str, *, create: bool = False) -> None:
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            if create:
                os.ftruncate(fd, _SIZE)
            self._memory = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)
        if create:
            self.disarm()

    def close(self) -> None:
        """Unmap the file."""
        self._memory.close()

    # --- the test's side --------------------------------------------------------

    def arm(
        self,
        number: int,
        *names: str,
        skip: int = 0,
        times: int = 1,
        seconds: float = 1e9,
    ) -> None:
        """Let calls fail with an errno, or `WAIT`: the named calls, or all of them."""
        until = time.monotonic() + seconds
        _armed.pack_into(self._memory, 0, number, skip, times, 0, until)
        self._set_mask(bytes(not names or name in names for name in NAMES))

    def disarm(self) -> None:
        """Let all calls go on, also those that wait."""
        self._set_mask(bytes(len(NAMES)))

    def _set_mask(self, mask: bytes) -> None:
        self._memory[_mask_at : _mask_at + len(NAMES)] = mask

    @property
    def strikes(self) -> int:
        """The failures since the seam was armed."""
        return int(_armed.unpack_from(self._memory)[3])

    def wait_for_strike(self, over: Callable[[], object] = lambda: False) -> bool:
        """Wait until a call has failed; False if the operation is *over* before."""
        deadline = time.monotonic() + PATIENCE
        while not self.strikes:
            if over():
                return bool(self.strikes)
            assert time.monotonic() < deadline, "neither struck nor over"
            time.sleep(0.001)
        return True

    def counts(self) -> dict[str, int]:
        """The number of calls, by name, of those that were made."""
        numbers = struct.unpack_from(f"={len(NAMES)}q", self._memory, _counts_at)
        return {name: n for name, n in zip(NAMES, numbers, strict=True) if n}

    # --- the daemon's side ------------------------------------------------------

    def pass_through(self, which: int) -> None:
        """Called before a call is made.

        Raises:
            OSError: this call is armed.
        """
        at = _counts_at + 8 * which
        (count,) = struct.unpack_from("=q", self._memory, at)
        struct.pack_into("=q", self._memory, at, count + 1)
        if not self._memory[_mask_at + which]:
            return
        number, skip, times, strikes, until = _armed.unpack_from(self._memory)
        if not times or time.monotonic() > until:
            return
        if skip:
            _armed.pack_into(self._memory, 0, number, skip - 1, times, strikes, until)
            return
        _armed.pack_into(self._memory, 0, number, 0, times - 1, strikes + 1, until)
        if number == WAIT:
            while self._memory[_mask_at + which]:
                time.sleep(0.001)
            return
        raise OSError(number, os.strerror(number))


def errnos(name: str) -> list[int]:
    """The errnos that a call is made to fail with."""
    return [known.NUMBERS[word] for word in CALLS[name].split()]


def errno_name(number: int) -> str:
    """The name of an errno."""
    return next(word for word, one in known.NUMBERS.items() if one == number)
