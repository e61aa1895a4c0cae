"""The seal: a file without mmap behind every open, so that no mapping can be made.

FOPEN_DIRECT_IO alone refuses MAP_SHARED; a MAP_PRIVATE mapping would be made and its
first touch would raise SIGBUS. With FUSE passthrough the kernel asks the mmap
operation of a backing file instead, and one that has none refuses both with ENODEV,
as the seed's file does. Reads and writes still come to the daemon, because
FOPEN_DIRECT_IO goes before FOPEN_PASSTHROUGH there. See fs/fuse/passthrough.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from inaccfs import syscalls

# _IOW(229, 1, struct fuse_backing_map { int32_t fd; uint32_t flags; uint64_t pad; })
_BACKING_OPEN: Final = 0x4010E501
_backing_map = struct.Struct("=iIQ")

# Attributes of kernfs that root may open for reading and writing and that nobody
# minds being open. They are only opened, never read or written.
_KERNFS_FILES: Final = (
    "/sys/kernel/rcu_expedited",
    "/sys/kernel/mm/transparent_hugepage/enabled",
)


@dataclass(frozen=True, slots=True)
class Seal:
    """Whether mmap is sealed: by a backing id, or not for a reason."""

    backing_id: int
    reason: str

    @property
    def sealed(self) -> bool:
        return self.backing_id > 0

    def __str__(self) -> str:
        """As `inaccfs status` shows it."""
        return "sealed" if self.sealed else f"not sealed ({self.reason})"


def unsealed(reason: str) -> Seal:
    """No seal, and what it would need."""
    return Seal(0, reason)


def _message_queue() -> int:
    """A POSIX message queue: a regular file with no mmap, read or write.

    Kernels that want a backing file to be regular, and no more, take it.
    """
    return syscalls.anonymous_message_queue(f"/inaccfs-seal-{os.getpid()}")


def _kernfs_file() -> int:
    """A kernfs attribute, for the kernels (6.9) that also want read and write."""
    for path in _KERNFS_FILES:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
    raise OSError(errno.ENOENT, "no kernfs attribute can be opened")


Candidate = Callable[[], int]
CANDIDATES: Final[tuple[Candidate, ...]] = (_message_queue, _kernfs_file)


def make_seal(
    device: int,
    *,
    passthrough: bool,
    candidates: tuple[Candidate, ...] = CANDIDATES,
) -> Seal:
    """Register a file that has no mmap with the connection of *device*.

    *passthrough* tells whether INIT offered FUSE_PASSTHROUGH; call this after the
    reply to INIT, for only then does the kernel take backing files.
    """
    if not passthrough:
        return unsealed("needs Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH")
    failures = []
    for candidate in candidates:
        try:
            fd = candidate()
        except OSError as exc:
            failures.append(f"{_name(candidate)}: {exc.strerror}")
            continue
        try:
            request = bytearray(_backing_map.pack(fd, 0, 0))
            return Seal(fcntl.ioctl(device, _BACKING_OPEN, request, True), "")
        except PermissionError:
            return unsealed("needs CAP_SYS_ADMIN in the initial user namespace")
        except OSError as exc:
            failures.append(f"{_name(candidate)}: {exc.strerror}")
        finally:
            # The connection holds the file from here on.
            os.close(fd)
    return unsealed("needs a file without mmap; " + "; ".join(failures))


def _name(candidate: Candidate) -> str:
    return candidate.__name__.strip("_").replace("_", " ")
