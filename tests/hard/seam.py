"""The seam between a daemon and the kernel: where a test makes calls fail or wait.

`CALLS` are the functions through which the daemon's own code makes system calls, with
the errnos of their man pages that a kernel may give a program without mistakes (so no
EBADF nor EFAULT, and no EINTR where Python retries). faulty_daemon.py wraps them; a
test arms one at a time. They share a mapped file, so that it also reaches the
daemon's helpers, and a call that waits can be let go from outside.
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
    # ENOSPC and EDQUOT are for file systems that write back.
    "os.close": "EIO",
    "os.dup": "EMFILE ENOMEM",
    # Of /proc/PID/comm: the process has ended.
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
    # Of trio and of ours. EPOLL_CTL_ADD only: to change what is there the kernel needs
    # neither room nor memory (fs/eventpoll.c), and trio could not live without.
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
"""Instead of an errno: the call is not made before the seam is disarmed."""

# Errno, how many to let pass, how many to strike, strikes so far, when it ends
# (CLOCK_MONOTONIC, which is one for all processes). Then for each call a byte, whether
# it is armed, and a count of how often it was made.
_armed: Final = struct.Struct("=iiiid")
_mask_at: Final = 64
_counts_at: Final = 256
_SIZE: Final = _counts_at + 8 * len(NAMES)
assert _mask_at + len(NAMES) <= _counts_at


class Seam:
    """What is armed, in a file that the test and its daemon have mapped."""

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
        """Let go of the file."""
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
        """Let calls fail with an errno, or `WAIT`; any call, if none is named."""
        until = time.monotonic() + seconds
        _armed.pack_into(self._memory, 0, number, skip, times, 0, until)
        self._set_mask(bytes(not names or name in names for name in NAMES))

    def disarm(self) -> None:
        """Let all calls be made, also those that wait."""
        self._set_mask(bytes(len(NAMES)))

    def _set_mask(self, mask: bytes) -> None:
        self._memory[_mask_at : _mask_at + len(NAMES)] = mask

    @property
    def strikes(self) -> int:
        """How often it has struck since it was armed."""
        return int(_armed.unpack_from(self._memory)[3])

    def wait_for_strike(self, over: Callable[[], object] = lambda: False) -> bool:
        """Wait until it has struck; False if what it waits for is *over* before."""
        deadline = time.monotonic() + PATIENCE
        while not self.strikes:
            if over():
                return bool(self.strikes)
            assert time.monotonic() < deadline, "neither struck nor over"
            time.sleep(0.001)
        return True

    def counts(self) -> dict[str, int]:
        """How often each call has been made, where it was at all."""
        numbers = struct.unpack_from(f"={len(NAMES)}q", self._memory, _counts_at)
        return {name: n for name, n in zip(NAMES, numbers, strict=True) if n}

    # --- the daemon's side ------------------------------------------------------

    def pass_through(self, which: int) -> None:
        """One call is about to be made.

        Raises:
            OSError: it is the one that is armed.
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
